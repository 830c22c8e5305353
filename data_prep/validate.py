"""Check a packed data set from the outside in: `python -m data_prep.validate PACKED_DIR`.

The digests of each file are compared before HDF5 opens it: many changed bytes in HDF5's own
metadata alter nothing that a reader sees, others may crash the library.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data_prep.config import ClassSet, ConfigError, load_class_set
from data_prep.histograms import Totals, histogram, image_histogram
from data_prep.index import (
    PackedIndex,
    ShardEntry,
    ShardError,
    file_digest,
    read_index,
    shard_recipe,
)
from data_prep.labels import class_shares
from data_prep.shard_file import REPAIR, OpenShard, check_outside_pixels, verify_shard


@dataclass
class Checked:
    """What the check of one split found; `images` maps the digests of an image to its keys."""

    errors: list[ShardError] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    images: dict[bytes, list[str]] = field(default_factory=dict)


def check_shard(path: Path, entry: ShardEntry, recipe: dict[str, object]) -> OpenShard:
    """Check one shard completely, to the last byte.

    Raises `ShardError` with what is wrong, the sample where it is in a sample, and what to do.
    """
    check_outside_pixels(path, entry)
    shard = verify_shard(path, recipe, entry.keys)
    if file_digest(path) != entry.xxh3_64:
        raise ShardError(
            f"{path}: damaged: its bytes do not match the digest in the index; {REPAIR}"
        )
    return shard


def count_pixels(shard: OpenShard) -> Totals:
    """Histograms over a shard, counted anew. Raises `ShardError` where it records others."""
    totals = Totals()
    for row, (image, labels) in enumerate(zip(shard.images, shard.labels, strict=True)):
        counted = image_histogram(image), histogram(labels)
        recorded = shard.image_histograms[row], shard.label_histograms[row]
        if not all(np.array_equal(a, b) for a, b in zip(counted, recorded, strict=True)):
            raise shard.damaged(row, "the histograms do")
        totals.add(*counted)
    return totals


def check_split(packed_dir: Path, index: PackedIndex, split: str) -> Checked:
    """Check every shard of one split; one error per bad shard."""
    checked = Checked()
    entries, full = index.splits[split], index.recipe.pack.images_per_shard
    for number, entry in enumerate(entries):
        path = packed_dir / entry.file
        try:
            shard = check_shard(path, entry, shard_recipe(index.recipe, split, number))
            totals = count_pixels(shard)
        except ShardError as error:
            checked.errors.append(error)
            continue
        checked.totals.add(totals.image, totals.labels)
        for key, digests in zip(shard.keys, shard.image_digests, strict=True):
            checked.images.setdefault(digests.tobytes(), []).append(key)
        if len(entry.keys) > full or (len(entry.keys) < full and number < len(entries) - 1):
            checked.errors.append(
                ShardError(
                    f"{path}: {len(entry.keys)} samples, expected {full}; pack the data set again "
                    "into another directory"
                )
            )
    if not checked.errors and checked.totals.statistics() != index.statistics[split]:
        checked.errors.append(
            ShardError(
                f"{packed_dir}: the statistics of split {split!r} in the index are not those of "
                "its shards; pack the data set again into another directory"
            )
        )
    return checked


def validate(packed_dir: Path, class_set: ClassSet) -> list[ShardError]:
    """Check a packed data set and print what it holds. Returns one error per bad shard.

    Raises `ShardError` where `index.json` itself is missing or damaged.
    """
    index = read_index(packed_dir)
    checked = {split: check_split(packed_dir, index, split) for split in index.splits}
    errors = [error for split in checked.values() for error in split.errors]
    keys = [entry.keys for entries in index.splits.values() for entry in entries]
    names = [key for part in keys for key in part]
    if len(set(names)) != len(names):
        errors.append(ShardError(f"{packed_dir}: a key stands twice in the index; pack again"))
    console = Console(soft_wrap=True)
    console.print(_files_table(index, checked))
    console.print(_pixels_table(index, class_set))
    for warning in _warnings(checked):
        console.print(f"warning: {warning}", markup=False, highlight=False)
    return errors


def _files_table(index: PackedIndex, checked: dict[str, Checked]) -> Table:
    """A row per split: what there is, and whether it is good."""
    table = Table("split", box=None)
    for column in ("samples", "shards", "bad", "GB", "mean RGB", "deviation RGB"):
        table.add_column(column, justify="right")
    for split, entries in index.splits.items():
        statistics = index.statistics[split]
        table.add_row(
            split,
            f"{sum(len(entry.keys) for entry in entries):,}",
            f"{len(entries):,}",
            str(len(checked[split].errors)),
            f"{sum(entry.bytes for entry in entries) / 1e9:.2f}",
            " ".join(f"{value:.3f}" for value in statistics.channel_mean),
            " ".join(f"{value:.3f}" for value in statistics.channel_std),
        )
    return table


def _pixels_table(index: PackedIndex, class_set: ClassSet) -> Table:
    """A row per class: its share of the pixels of each split."""
    table = Table("class", box=None, title=f"share of the pixels in %, classes {class_set.name}")
    for split in index.splits:
        table.add_column(split, justify="right")
    source = index.recipe.source
    shares = {
        split: class_shares(index.statistics[split].label_pixels, source, class_set)
        for split in index.splits
    }
    for name in (*class_set.classes, "ignored"):
        table.add_row(name, *(f"{100 * shares[split][name]:.2f}" for split in index.splits))
    return table


def _warnings(checked: dict[str, Checked]) -> list[str]:
    """Images that are there twice under different names; worst where train and val share one."""
    found = []
    for split, one in checked.items():
        twins = [keys for keys in one.images.values() if len(keys) > 1]
        if twins:
            found.append(
                f"{split}: {sum(map(len, twins)):,} samples share their image with another one, "
                f"such as {twins[0][0]} and {twins[0][1]}"
            )
    train, val = (checked.get(split, Checked()).images for split in ("train", "val"))
    leaks = sorted(train.keys() & val.keys())
    if leaks:
        found.append(
            f"{len(leaks):,} images of val are in train too, such as {val[leaks[0]][0]} and "
            f"{train[leaks[0]][0]}: scores on val are of images that were trained on"
        )
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (0: all is well, 1: something is not)."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.validate", description=__doc__)
    parser.add_argument("packed_dir", type=Path, help="directory with index.json")
    parser.add_argument(
        "--class-set", default="cityscapes19", metavar="NAME", help="configs/classes/NAME.yaml"
    )
    args = parser.parse_args(arguments)
    try:
        errors = validate(args.packed_dir, load_class_set(args.class_set))
    except (ConfigError, ShardError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for bad in errors:
        print(f"error: {bad}", file=sys.stderr)
    if not errors:
        print("all is well")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
