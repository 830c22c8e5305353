"""Check a packed data set from the outside in: `python -m data_prep.validate PACKED_DIR`.

The digest of each whole file is compared before HDF5 opens it: many changed bytes in HDF5's own
metadata alter nothing that a reader sees, others may crash the library.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.config import ClassSet, ConfigError, load_class_set
from data_prep.index import (
    PackedIndex,
    ShardEntry,
    ShardError,
    file_digest,
    read_index,
    shard_recipe,
)
from data_prep.labels import IGNORED, lookup_table
from data_prep.shards import verify_shard

Counts = npt.NDArray[np.int64]


def check_shard(path: Path, entry: ShardEntry, recipe: dict[str, object]) -> Counts:
    """Check one shard completely; the pixels per label id, int64 [256], of its packed labels.

    Raises `ShardError` with what is wrong and what to do.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ShardError(
            f"{path}: cannot be read ({error.strerror}); run `python -m data_prep.pack` again, "
            "which packs missing shards only"
        ) from None
    if size != entry.bytes or file_digest(path) != entry.xxh3_64:
        found = f"{size} bytes instead of {entry.bytes}" if size != entry.bytes else "changed bytes"
        raise ShardError(
            f"{path}: damaged ({found}); delete the file and run `python -m data_prep.pack` again"
        )
    shard = verify_shard(path, recipe, entry.keys)
    counts = np.zeros(256, np.int64)
    for labels in shard.labels:
        counts += np.bincount(labels.reshape(-1), minlength=256)
    return counts


def check_split(
    packed_dir: Path, index: PackedIndex, split: str
) -> tuple[Counts, list[ShardError]]:
    """Check every shard of one split; pixels per label id, and one error per bad shard."""
    total, errors = np.zeros(256, np.int64), []
    entries = index.splits[split]
    for number, entry in enumerate(entries):
        try:
            recipe = shard_recipe(index.recipe, split, number)
            total += check_shard(packed_dir / entry.file, entry, recipe)
        except ShardError as error:
            errors.append(error)
        full = index.recipe.pack.images_per_shard
        if len(entry.keys) > full or (len(entry.keys) < full and number < len(entries) - 1):
            errors.append(
                ShardError(
                    f"{packed_dir / entry.file}: {len(entry.keys)} samples, expected {full}; pack "
                    "the data set again into another directory"
                )
            )
    return total, errors


def class_shares(
    counts: Counts, index: PackedIndex, class_set: ClassSet
) -> list[tuple[str, float]]:
    """Share of all pixels, 0..1, of each class and, last, of the ignored ones."""
    table = lookup_table(class_set, index.recipe.source)
    by_class = np.bincount(table, weights=counts, minlength=256) / max(counts.sum(), 1)
    shares = [(name, float(by_class[i])) for i, name in enumerate(class_set.classes)]
    return [*shares, ("ignored", float(by_class[IGNORED]))]


def validate(packed_dir: Path, class_set: ClassSet) -> list[ShardError]:
    """Check a packed data set and print what it holds. Returns one error per bad shard.

    Raises `ShardError` where `index.json` itself is missing or damaged.
    """
    index = read_index(packed_dir)
    errors: list[ShardError] = []
    for split, entries in index.splits.items():
        counts, bad = check_split(packed_dir, index, split)
        errors += bad
        keys = [key for entry in entries for key in entry.keys]
        if len(set(keys)) != len(keys):
            errors.append(ShardError(f"{packed_dir}: split {split!r} holds a key twice"))
        print(f"{split}: {len(keys)} samples in {len(entries)} shards, {len(bad)} bad")
        if not bad:
            print(f"  share of the pixels, class set {class_set.name}:")
            for name, share in class_shares(counts, index, class_set):
                print(f"  {100 * share:6.2f} %  {name}")
    return errors


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
    except (ConfigError, ShardError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for bad in errors:
        print(f"error: {bad}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
