"""What is to be packed, what is there already, and what the rest will take; rank 0 finds it out."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2

from data_prep.config import PackConfig
from data_prep.estimate import Estimate, counted, shard_bytes
from data_prep.index import (
    INDEX_NAME,
    PackedIndex,
    Recipe,
    ShardError,
    read_index,
    recipe_differences,
    shard_name,
)
from data_prep.listing import (
    Item,
    Source,
    SourceError,
    SourceKind,
    fingerprint,
    missing_images,
    shown,
)
from data_prep.samples import read_sample
from data_prep.sources import Size, open_source

# Called on rank 0, about once a second: images done by all ranks, images in all.
Progress = Callable[[int, int], None]
_TIMED_IMAGES = 9


def say(line: str) -> None:
    """Print a line at once: a log is read while the job runs."""
    print(line, flush=True)


class Task(NamedTuple):
    """One shard to pack."""

    split: str
    number: int
    items: list[Item]

    @property
    def file(self) -> str:
        """File name of the shard."""
        return shard_name(self.split, self.number)


@dataclass(frozen=True)
class PackJob:
    """What is to be packed where, and whom to tell; the same on every rank.

    `subset` allows another number of images than the published data set has, `fingerprint` is what
    the data must be, where that is known. With `dry_run` all is checked and nothing written.
    `record_end` is called with an error that ends all ranks, and gives their exit code.
    """

    kind: SourceKind
    root: Path
    out_dir: Path
    config: PackConfig
    subset: bool = False
    fingerprint: str | None = None
    dry_run: bool = False
    progress: Progress | None = None
    tell: Callable[[str], None] = say
    record_end: Callable[[BaseException], int] | None = None


@dataclass(frozen=True)
class Survey:
    """What rank 0 finds out for all: the shards to make, of what, and those that are there."""

    recipe: Recipe
    tasks: list[Task]
    existing: PackedIndex | None

    @property
    def recorded(self) -> dict[str, str]:
        """File name -> digest of the shards in the index that is there already."""
        splits = self.existing.splits.values() if self.existing else ()
        return {entry.file: entry.xxh3_64 for split in splits for entry in split}


def plan(source: Source, images_per_shard: int) -> list[Task]:
    """Every shard of every split, in order."""
    return [
        Task(split, number, items[start : start + images_per_shard])
        for split, items in source.splits.items()
        for number, start in enumerate(range(0, len(items), images_per_shard))
    ]


def list_source_files(job: PackJob) -> tuple[Source, Recipe]:
    """The data set, and what decides the bytes of the shards. Raises `SourceError`."""
    source = open_source(job.kind, job.root, job.config.val_images)
    recipe = Recipe(
        source=job.kind,
        fingerprint=fingerprint(source),
        opencv=cv2.__version__,
        pack=job.config,
    )
    if job.fingerprint not in (None, recipe.fingerprint):
        raise SourceError(
            f"{source.base}: its files changed since this run was planned (fingerprint "
            f"{recipe.fingerprint}, expected {job.fingerprint}); give the driver's command again"
        )
    _check_count(job, source)
    return source, recipe


def _check_count(job: PackJob, source: Source) -> None:
    """Raise `SourceError` where images lack; with `subset` only say so."""
    lacks = missing_images(source)
    if not lacks:
        return
    if not job.subset:
        raise SourceError(
            f"{lacks}; complete it, or pack what is there with --subset (in a run's configuration "
            "data.subset: true)"
        )
    job.tell(f"warning: {lacks}; packed as it is, as --subset allows")


def survey_directory(job: PackJob, source: Source, recipe: Recipe) -> Survey:
    """What is there already. Raises `ShardError` where it is of another packing."""
    existing = read_index(job.out_dir) if (job.out_dir / INDEX_NAME).exists() else None
    if existing is not None:
        differences = recipe_differences(existing.recipe.model_dump(), recipe.model_dump())
        if differences:
            raise ShardError(
                f"{job.out_dir}: already holds a data set packed otherwise: {differences}; choose "
                "another directory, or delete this one yourself if it is no longer wanted"
            )
    survey = Survey(recipe, plan(source, job.config.images_per_shard), existing)
    planned = {task.file for task in survey.tasks}
    others = sorted(path.name for path in job.out_dir.glob("[!.]*.h5") if path.name not in planned)
    if others:
        raise ShardError(
            f"{job.out_dir}: holds {counted(len(others), 'file')} that this packing would not make "
            f"({shown(others)}), as another one with other settings left them; choose another "
            "directory, or delete them yourself if they are no longer wanted"
        )
    return survey


def estimate(job: PackJob, survey: Survey, sizes: Mapping[int, list[Size]], ranks: int) -> Estimate:
    """What is left to do: bytes from the sizes of the images, time from packing a few."""
    left = [
        (i, task) for i, task in enumerate(survey.tasks) if not (job.out_dir / task.file).exists()
    ]
    size = sum(
        shard_bytes(
            len(task.items),
            job.config,
            sum(h * w for h, w in sizes[i]) if task.split == "val" else 0,
        )
        for i, task in left
    )
    items = [item for _, task in left for item in task.items]
    return Estimate(len(items), len(left), size, ranks, _seconds_each(job, items))


def _seconds_each(job: PackJob, items: list[Item]) -> float:
    """Time to read and resize one image: the median of a few spread over `items`."""
    seconds = []
    for k in range(min(_TIMED_IMAGES, len(items))):
        item = items[len(items) * k // _TIMED_IMAGES]
        started = time.perf_counter()
        read_sample(job.kind, item, job.config, False)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) if seconds else 0.0
