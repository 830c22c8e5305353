"""Pack a data set into shards at training resolution: `python -m data_prep.pack` under MPI.

Shard i is packed by rank i mod n, so its bytes do not depend on the number of ranks. A shard gets
its name only when it is complete and verified, and the index is written last: a run that was
killed at any moment is simply started again, and keeps every complete shard.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2

from data_prep.config import ConfigError, PackConfig
from data_prep.index import (
    FORMAT_VERSION,
    INDEX_NAME,
    PackedIndex,
    Recipe,
    ShardEntry,
    ShardError,
    file_digest,
    read_index,
    recipe_differences,
    shard_name,
    shard_recipe,
    write_index,
)
from data_prep.labels import UInt8
from data_prep.listing import Item, Source, SourceError, SourceKind, fingerprint
from data_prep.mpi import Communicator, abort_all, world
from data_prep.shard_writer import PackedSample, write_shard
from data_prep.shards import verify_shard
from data_prep.sources import open_source, original_sizes, read_image, read_labels

# Called after each shard of this rank: name, shards done, shards in all (of this rank).
Progress = Callable[[str, int, int], None]


class Task(NamedTuple):
    """One shard to pack."""

    split: str
    number: int
    items: list[Item]

    @property
    def file(self) -> str:
        """File name of the shard."""
        return shard_name(self.split, self.number)


def resize_image(image: UInt8, height: int, width: int) -> UInt8:
    """RGB uint8 [h, w, 3] -> [height, width, 3]: area average to shrink, bicubic to enlarge."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=mode)  # type: ignore[return-value]


def resize_labels(labels: UInt8, height: int, width: int) -> UInt8:
    """Label ids uint8 [h, w] -> [height, width], each pixel the id under its centre.

    INTER_NEAREST_EXACT aligns pixel centres, as INTER_AREA does for the image. Plain
    INTER_NEAREST takes the upper left neighbour: labels shifted by up to half an output pixel.
    """
    if labels.shape == (height, width):
        return labels
    size = (width, height)
    return cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[return-value]


def plan(source: Source, images_per_shard: int) -> list[Task]:
    """Every shard of every split, in order."""
    return [
        Task(split, number, items[start : start + images_per_shard])
        for split, items in source.splits.items()
        for number, start in enumerate(range(0, len(items), images_per_shard))
    ]


def _samples(kind: SourceKind, task: Task, config: PackConfig) -> Iterator[PackedSample]:
    """Read and resize the samples of one shard, one at a time."""
    for item in task.items:
        image, labels = read_image(item.image_path), read_labels(kind, item.label_path)
        yield PackedSample(
            resize_image(image, config.height, config.width),
            resize_labels(labels, config.height, config.width),
            labels if task.split == "val" else None,
        )


def _pack_shard(out_dir: Path, recipe: Recipe, task: Task, recorded: str | None) -> ShardEntry:
    """Write one shard, or verify the one that is there. `recorded` is its digest in the index."""
    path = out_dir / task.file
    keys = [item.key for item in task.items]
    expected = shard_recipe(recipe, task.split, task.number)
    sizes = original_sizes(task.items)
    if path.exists():
        digest = file_digest(path)
        if recorded not in (None, digest):
            raise ShardError(
                f"{path}: does not match its digest in {INDEX_NAME}: the shard is damaged; delete "
                "the file and run `python -m data_prep.pack` again"
            )
        verify_shard(path, expected, keys, sizes)
    else:
        write_shard(path, expected, keys, sizes, _samples(recipe.source, task, recipe.pack))
        digest = file_digest(path)
    return ShardEntry(file=task.file, bytes=path.stat().st_size, xxh3_64=digest, keys=keys)


def _prepare(
    kind: SourceKind, root: Path, out_dir: Path, config: PackConfig
) -> tuple[Source, Recipe, PackedIndex | None]:
    """What rank 0 finds out for all: the items, the recipe, and the index that is there already."""
    source = open_source(kind, root, config.val_images)
    recipe = Recipe(source=kind, fingerprint=fingerprint(root, kind), pack=config)
    existing = None
    if (out_dir / INDEX_NAME).exists():
        existing = read_index(out_dir)
        differences = recipe_differences(existing.recipe.model_dump(), recipe.model_dump())
        if differences:
            raise ShardError(
                f"{out_dir}: already holds a data set packed otherwise: {differences}; choose "
                "another directory, or delete this one yourself if it is no longer wanted"
            )
    out_dir.mkdir(parents=True, exist_ok=True)
    for pattern in (*(f".{split}-*.tmp.h5" for split in source.splits), ".index.*.tmp.json"):
        for leftover in out_dir.glob(pattern):  # of a killed run
            leftover.unlink()
    return source, recipe, existing


def _pack_on(
    comm: Communicator,
    kind: SourceKind,
    root: Path,
    out_dir: Path,
    config: PackConfig,
    progress: Progress | None,
) -> None:
    """The part of every rank."""
    # Only rank 0 lists the files: thousands of ranks would storm the file system's metadata.
    source, recipe, existing = comm.bcast(
        _prepare(kind, root, out_dir, config) if comm.rank == 0 else None
    )
    entries = [entry for split in existing.splits.values() for entry in split] if existing else []
    recorded = {entry.file: entry.xxh3_64 for entry in entries}
    tasks = plan(source, config.images_per_shard)
    mine = list(range(comm.rank, len(tasks), comm.size))
    done: dict[int, ShardEntry] = {}
    for i in mine:
        done[i] = _pack_shard(out_dir, recipe, tasks[i], recorded.get(tasks[i].file))
        if progress is not None:
            progress(tasks[i].file, len(done), len(mine))
    gathered = comm.gather(done)
    if gathered is None:
        return
    everything = {i: entry for part in gathered for i, entry in part.items()}
    splits: dict[str, list[ShardEntry]] = {split: [] for split in source.splits}
    for i, task in enumerate(tasks):
        splits[task.split].append(everything[i])
    index = PackedIndex(format_version=FORMAT_VERSION, recipe=recipe, splits=splits)
    if index != existing:
        write_index(out_dir, index)


def pack(
    kind: SourceKind,
    root: Path,
    out_dir: Path,
    config: PackConfig,
    *,
    progress: Progress | None = None,
) -> None:
    """Pack the data set `root` into `out_dir`; every MPI rank calls it with the same arguments.

    Complete shards and a complete packed set are kept (and verified); nothing is overwritten.
    Raises `SourceError` (the data set), `ShardError` (what `out_dir` holds) and `RuntimeError`
    (MPI does not know its ranks). With several ranks an error on one prints it and aborts all.
    """
    comm = world()
    cv2.setNumThreads(1)  # the ranks are the parallelism; more threads would fight for the cores
    try:
        _pack_on(comm, kind, root, out_dir, config, progress)
    except BaseException as error:
        if comm.size == 1:
            raise
        abort_all(comm, error)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line of `python -m data_prep.pack`."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.pack", description=__doc__)
    parser.add_argument("kind", choices=["synthia", "cityscapes"], help="layout of ROOT")
    parser.add_argument("root", type=Path, help="the data set")
    parser.add_argument("out_dir", type=Path, help="where the shards and index.json go")
    parser.add_argument("--height", type=int, required=True, help="rows of the packed images")
    parser.add_argument("--width", type=int, required=True, help="columns of the packed images")
    parser.add_argument("--images-per-shard", type=int, default=256)
    parser.add_argument("--val-images", type=int, default=0, help="Synthia only: held out as val")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (2: a wrong argument, 1: packing failed)."""
    args = parse_arguments(arguments)
    keys = ("height", "width", "images_per_shard", "val_images")
    try:
        config = PackConfig(**{key: getattr(args, key) for key in keys})
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def report(name: str, done: int, total: int) -> None:
        print(f"{name} ({done} of {total} shards of this rank)", flush=True)

    try:
        pack(args.kind, args.root, args.out_dir, config, progress=report)
    except (ConfigError, SourceError, ShardError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
