"""Pack a data set into shards at training resolution: `python -m data_prep.pack` under MPI.

Shard i is packed by rank i mod n, so its bytes do not depend on the number of ranks. A shard gets
its name only when it is complete and verified, and the index is written last: a run that was
killed at any moment is simply started again, and keeps every complete shard.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data_prep.config import ConfigError, PackConfig
from data_prep.estimate import require_space
from data_prep.histograms import Totals
from data_prep.index import (
    FORMAT_VERSION,
    INDEX_NAME,
    PackedIndex,
    Recipe,
    ShardEntry,
    ShardError,
    sealed_digest,
    shard_recipe,
    write_index,
)
from data_prep.listing import SourceError
from data_prep.mpi import Communicator, Tally, abort_all, world
from data_prep.pace import Pace
from data_prep.pack_lock import packing
from data_prep.samples import PackedSample, read_sample
from data_prep.shard_file import REPAIR, OpenShard, verify_shard
from data_prep.shard_writer import shard_entry, write_shard
from data_prep.sources import Size, check_headers, refusal
from data_prep.survey import (
    PackJob,
    Survey,
    Task,
    estimate,
    list_source_files,
    say,
    survey_directory,
)


class Packed(NamedTuple):
    """A finished shard."""

    entry: ShardEntry
    totals: Totals


def _samples(recipe: Recipe, task: Task, tally: Tally) -> Iterator[PackedSample]:
    """The samples of one shard, one at a time."""
    for item in task.items:
        yield read_sample(recipe.source, item, recipe.pack, task.split == "val")
        tally.add(1)


def _pack_shard(
    out_dir: Path, survey: Survey, task: Task, sizes: list[Size], tally: Tally
) -> Packed:
    """Write one shard, or verify the one that is there."""
    path = out_dir / task.file
    keys = [item.key for item in task.items]
    expected = shard_recipe(survey.recipe, task.split, task.number)
    if path.exists():
        digest = _digest(path, survey.recorded.get(task.file))  # before HDF5 opens the file
        shard = verify_shard(path, expected, keys, sizes)
        entry = shard_entry(path, keys, digest)
        tally.add(len(keys))
    else:
        samples = _samples(survey.recipe, task, tally)
        entry, shard = write_shard(path, expected, keys, sizes, samples)
    return Packed(entry, _totals(shard))


def _digest(path: Path, recorded: str | None) -> str:
    """The digest of a shard that is there, if it is whole and the one that the index names."""
    digest = sealed_digest(path)
    if digest is None:
        raise ShardError(
            f"{path}: its last 8 bytes are not the digest of those before: the shard is damaged, "
            f"or of format version 1; {REPAIR}"
        )
    if recorded not in (None, digest):
        raise ShardError(
            f"{path}: does not match its digest in {INDEX_NAME}: another shard than was packed; "
            f"{REPAIR}"
        )
    return digest


def _totals(shard: OpenShard) -> Totals:
    totals = Totals()
    for image, labels in zip(shard.image_histograms, shard.label_histograms, strict=True):
        totals.add(image.astype(np.int64), labels.astype(np.int64))
    return totals


def _clear_leftovers(out_dir: Path) -> None:
    """Remove the temporary files of a killed run; only the holder of the lock may."""
    for pattern in (".*.tmp.h5", ".index.*.tmp.json"):
        for leftover in out_dir.glob(pattern):
            leftover.unlink(missing_ok=True)


def _pack_on(comm: Communicator, job: PackJob) -> None:
    """The part of every rank."""
    with ExitStack() as stack:
        survey: Survey | None = None
        if comm.rank == 0:
            # Only rank 0 lists: thousands of ranks would storm the file system's metadata.
            source, recipe = list_source_files(job)
            if not job.dry_run:
                stack.enter_context(_prepared(job))
            survey = survey_directory(job, source, recipe)
        survey = comm.bcast(survey)
        assert survey is not None
        mine = range(comm.rank, len(survey.tasks), comm.size)
        sizes = _check_files(comm, job, survey, mine)
        if job.dry_run:
            return
        tally = Tally(comm, sum(len(task.items) for task in survey.tasks), job.progress)
        done = {i: _pack_shard(job.out_dir, survey, survey.tasks[i], sizes[i], tally) for i in mine}
        tally.finish()
        gathered = comm.gather(done)
        if gathered is not None:
            _finish(job, survey, {i: shard for part in gathered for i, shard in part.items()})


@contextmanager
def _prepared(job: PackJob) -> Iterator[None]:
    """The output directory: locked, writable, and without leftovers. Raises `ShardError`.

    Directories that were made for it are taken away where nothing came to stand in them.
    """
    made = [path for path in (job.out_dir, *job.out_dir.parents) if not path.exists()]
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(packing(job.out_dir, job.tell))
                _clear_leftovers(job.out_dir)
            except OSError as error:
                raise ShardError(
                    f"{job.out_dir}: cannot be written to ({error.strerror}); choose another "
                    "directory, or ask its owner for the right to write"
                ) from None
            yield
    finally:
        with suppress(OSError):  # the first that is not empty
            for path in made:
                path.rmdir()


def _check_files(
    comm: Communicator, job: PackJob, survey: Survey, mine: range
) -> dict[int, list[Size]]:
    """Sizes of the images of this rank's shards, once all files and the space have been checked.

    A collective. Raises `SourceError` and `ShardError` on rank 0, before anything is written.
    """
    found = {i: check_headers(job.kind, survey.tasks[i].items) for i in mine}
    gathered = comm.gather(found)
    if gathered is not None:
        everything = dict(sorted((i, value) for part in gathered for i, value in part.items()))
        problems = [line for _, lines in everything.values() for line in lines]
        if problems:
            raise refusal(problems, sum(len(task.items) for task in survey.tasks))
        sizes = {i: sizes for i, (sizes, _) in everything.items()}
        left = estimate(job, survey, sizes, comm.size)
        job.tell(left.describe(job.out_dir))
        require_space(job.out_dir, left)
    comm.bcast(None)
    return {i: sizes for i, (sizes, _) in found.items()}


def _finish(job: PackJob, survey: Survey, shards: dict[int, Packed]) -> None:
    """Write the index, unless the one that is there says the same."""
    splits: dict[str, list[ShardEntry]] = {}
    totals: dict[str, Totals] = {}
    for i, task in enumerate(survey.tasks):
        splits.setdefault(task.split, []).append(shards[i].entry)
        totals.setdefault(task.split, Totals()).add(shards[i].totals.image, shards[i].totals.labels)
    index = PackedIndex(
        format_version=FORMAT_VERSION,
        recipe=survey.recipe,
        splits=splits,
        statistics={split: total.statistics() for split, total in totals.items()},
    )
    if index != survey.existing:
        write_index(job.out_dir, index)


def pack(job: PackJob) -> None:
    """Pack a data set; every MPI rank calls it with the same job.

    Complete shards and a complete packed set are kept (and verified); nothing is overwritten.
    Raises `SourceError` (the data set), `ShardError` (what `out_dir` holds) and `RuntimeError`
    (MPI does not know its ranks). With several ranks an error on one prints it and aborts all.
    """
    comm = world()
    cv2.setNumThreads(1)  # the ranks are the parallelism; more threads would fight for the cores
    try:
        _pack_on(comm, job)
    except BaseException as error:
        if comm.size == 1:
            raise
        try:
            abort_all(comm, error, job.record_end)
        except BaseException:
            # A signal in the midst of it: a rank that ended without Abort would wait in MPI's
            # finalisation for the others, for ever.
            comm.Abort(1)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line of `python -m data_prep.pack`."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.pack", description=__doc__)
    parser.add_argument("kind", choices=["synthia", "cityscapes"], help="layout of ROOT")
    parser.add_argument("root", type=Path, help="the data set")
    parser.add_argument("out_dir", type=Path, help="where the shards and index.json go")
    parser.add_argument("--height", type=int, required=True, help="rows of the packed images")
    parser.add_argument("--width", type=int, required=True, help="columns of the packed images")
    parser.add_argument("--images-per-shard", type=int, default=64)
    parser.add_argument("--val-images", type=int, default=0, help="Synthia only: held out as val")
    parser.add_argument(
        "--subset",
        action="store_true",
        help="another number of images than the published data set has is meant",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check files and space, tell the size, write nothing"
    )
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

    try:
        pack(
            PackJob(
                args.kind,
                args.root,
                args.out_dir,
                config,
                subset=args.subset,
                dry_run=args.dry_run,
                progress=Pace(say),
            )
        )
    except (ConfigError, SourceError, ShardError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
