"""One stage, from its directory: `python -m pipeline.stages STAGE_DIR`, on every rank.

Exit code 0: done.json is valid. 75: stopped by a signal, saved where there was something to save;
start it again to go on. 1: failed; the last line of the output says why.
"""

import os
import platform
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

from data_prep import atomic
from data_prep.config import ConfigError, Document, StrictModel, parse_model
from pipeline import paths, prep, progress
from pipeline.done import (
    DoneRecord,
    OutputRecord,
    combined,
    damaged_weights,
    digest_of,
    read_done,
    write_done,
)
from pipeline.frozen import FrozenStage, read_frozen
from pipeline.hashing import science_hash
from pipeline.nodes import STAGE_VERSION
from pipeline.science import SCIENCE
from pipeline.stopping import (
    EXIT_PREEMPTED,
    Stopped,
    accept_signals,
    ignore_signals,
    stop_on_signals,
)
from tigan.config import StageJob, StageResult

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
_LIBRARIES = ("torch", "torchvision", "numpy", "h5py", "opencv-python-headless", "mpi4py")


class StageError(ValueError):
    """The stage cannot run as it was frozen; the message is complete."""


def env_rank() -> int:
    """This process's rank as the launcher tells it; 0 where there is none."""
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)


def main(arguments: list[str]) -> int:
    """Run the stage of one directory; returns the exit code."""
    if len(arguments) != 1:
        print("usage: python -m pipeline.stages STAGE_DIR", file=sys.stderr)
        return 2
    stage_dir = Path(arguments[0]).resolve()
    stop_on_signals()
    try:
        accept_signals()
        run_stage(stage_dir)
    except (Stopped, Exception) as error:
        return record_end(stage_dir, error)
    return 0


def record_end(stage_dir: Path, error: BaseException) -> int:
    """Record that `error` ended a stage on this rank; returns the exit code."""
    if isinstance(error, Stopped):
        ignore_signals()
        # Every rank: one that is stopped before the ranks have met may be the only one.
        progress.write_state(stage_dir, "preempted", "start it again to go on")
        print("stopped by a signal; start it again to go on", flush=True)
        return EXIT_PREEMPTED
    traceback.print_exception(error)
    is_users = isinstance(error, ValueError)  # wrong input: the same again would fail again
    message = f"{'' if is_users else type(error).__name__ + ': '}{error}".strip()
    sick = list(getattr(error, "nodes", ()))
    progress.write_state(stage_dir, "failed", message, may_retry=not is_users, sick_nodes=sick)
    print(f"error: {stage_dir.name} (rank {env_rank()}): {message}", file=sys.stderr, flush=True)
    return 1


def run_stage(stage_dir: Path) -> None:
    """Run a frozen stage unless it is done. Raises `StageError`, `Stopped` and what it raises."""
    frozen = read_frozen(stage_dir)
    run_dir = paths.run_dir_of(stage_dir, frozen.point)
    _verify_hash(frozen)
    inputs, digests = find_inputs(frozen, run_dir)
    _refuse_if_superseded(stage_dir)
    first = env_rank() == 0
    record = read_done(stage_dir, frozen.science_hash)
    if record is not None and record.inputs == digests:
        print("already done")
        if first:
            progress.write_state(stage_dir, "done", "")
        return
    if first:
        progress.write_state(stage_dir, "running", "")
        _note_start(frozen, stage_dir, digests)
    before = progress.seconds_so_far(stage_dir)
    started = time.monotonic()
    science = parse_science(frozen)

    def finish(outputs: dict[str, OutputRecord], result: StageResult, world_size: int) -> None:
        ignore_signals()
        _refuse_if_superseded(stage_dir)
        seconds = before + time.monotonic() - started
        record = DoneRecord(
            stage=frozen.stage,
            point=frozen.point,
            science_hash=frozen.science_hash,
            stage_version=frozen.stage_version,
            inputs=digests,
            output_digest=combined(outputs),
            outputs=outputs,
            figures=result.figures,
            versions=versions(),
            seconds=round(seconds, 3),
            world_size=world_size,
            threads=frozen.launch.threads,
            restarts=max(0, progress.attempts(stage_dir) - 1),
        )
        write_done(stage_dir, record)
        progress.write_state(stage_dir, "done", "")

    if frozen.stage in _LEARNING:
        job = StageJob(stage_dir, science, frozen.launch.training, inputs)
        _run_learning(frozen, job, finish)
    else:
        outputs = _run_prep(frozen, science, stage_dir, inputs, before)
        if first:
            finish(outputs, StageResult(list(outputs)), frozen.launch.ranks)


def _refuse_if_superseded(stage_dir: Path) -> None:
    """Raise RuntimeError where a newer attempt has begun."""
    if progress.is_superseded(stage_dir):
        raise RuntimeError(
            f"{stage_dir}: a newer attempt of this stage is running; this one stops without "
            "recording its result"
        )


def _verify_hash(frozen: FrozenStage) -> None:
    """Raise `StageError` where the code or the class set changed since the driver froze it."""
    upstream = {role: ref.hash for role, ref in frozen.inputs.items()}
    now = science_hash(frozen.stage, frozen.science, STAGE_VERSION[frozen.stage], upstream)
    if now != frozen.science_hash:
        raise StageError(
            f"{paths.CONFIG}: frozen as {frozen.science_hash[:10]}, but this code and these class "
            f"sets make it {now[:10]}; give the driver's command again, which plans anew"
        )


def find_inputs(
    frozen: FrozenStage, run_dir: Path
) -> tuple[dict[str, Path], dict[str, str | None]]:
    """Role -> directory, and role -> output digest (None: not finished, allowed for the report).

    Raises `StageError` where an input is missing, not the one that the config names, or damaged.
    Every rank digests the weights, which it reads next anyway: a rank that failed alone would
    leave the others waiting for it.
    """
    folders: dict[str, Path] = {}
    digests: dict[str, str | None] = {}
    for role, ref in frozen.inputs.items():
        folders[role] = run_dir / ref.dir
        if Path(ref.dir).is_absolute():
            if not folders[role].is_dir():
                raise StageError(f"input {role}: no folder {ref.dir}; was the data moved?")
            continue
        record = read_done(folders[role], ref.hash)
        if record is None and frozen.stage != "report":
            raise StageError(
                f"input {role}: {folders[role]} holds no valid {paths.DONE} of science hash "
                f"{ref.hash[:10]}; give the driver's command again, which makes it first"
            )
        digests[role] = record.output_digest if record else None
        if record is not None and frozen.stage != "report":  # it checks those it draws with
            _verify_weights(role, folders[role], record)
    return folders, digests


def _verify_weights(role: str, folder: Path, record: DoneRecord) -> None:
    """Raise `StageError` where weights of an input are not those that it recorded."""
    for path in damaged_weights(folder, record):
        raise StageError(
            f"input {role}: {path} is not the file that {record.stage} recorded (its digest "
            f"differs): it was damaged or replaced; put it back, or make it anew: give the "
            f"driver's command again with --force {record.stage}, or delete {folder / paths.DONE}"
        )


def _note_start(frozen: FrozenStage, stage_dir: Path, digests: dict[str, str | None]) -> None:
    """Record what the stage begins with; raise `StageError` where it began with something else."""
    path = stage_dir / paths.STARTED
    before = atomic.read_json(path, must_read=True)
    if before == digests and path.is_file():
        return
    if path.is_file() and frozen.stage != "report":
        changed = sorted(role for role in digests if before.get(role) != digests[role])
        raise StageError(
            f"its input {', '.join(changed)} was made anew since it began; give the driver's "
            "command again, which keeps this directory aside and starts afresh"
        )
    atomic.write_json(path, digests)


def parse_science(frozen: FrozenStage) -> StrictModel:
    """The science document as the stage's model. Raises `ConfigError`."""
    try:
        return parse_model(SCIENCE[frozen.stage], Document(dict(frozen.science), "science"))
    except ConfigError as error:
        raise StageError(f"{paths.CONFIG}: {error}") from None


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that are installed, and the machine's name."""
    found = {"python": platform.python_version(), "host": socket.gethostname()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _segmenter(job: StageJob) -> StageResult:
    from tigan import segmenter

    return segmenter.run(job)


def _gan(job: StageJob) -> StageResult:
    from tigan import gan

    return gan.run(job)


def _finetune(job: StageJob) -> StageResult:
    from tigan import finetune

    return finetune.run(job)


def _finetune_segmenter(job: StageJob) -> StageResult:
    from tigan import finetune_segmenter

    return finetune_segmenter.run(job)


def _adaptsegnet(job: StageJob) -> StageResult:
    from tigan import adaptsegnet

    return adaptsegnet.run(job)


def _evaluate(job: StageJob) -> StageResult:
    from tigan import evaluate

    return evaluate.run(job)


def _report(job: StageJob) -> StageResult:
    from tigan import report

    return report.run(job)


# The others have nothing to save when they stop.
_SAVE_FIRST = ("segmenter", "gan", "finetune", "finetune_segmenter", "adaptsegnet", "oracle")

# Functions, not module names: a stage's code is imported inside its call, and found by tools.
_LEARNING: dict[str, Callable[[StageJob], StageResult]] = {
    "segmenter": _segmenter,
    "gan": _gan,
    "finetune": _finetune,
    "finetune_segmenter": _finetune_segmenter,
    "adaptsegnet": _adaptsegnet,
    "oracle": _segmenter,  # the same training, on other images
    "evaluate": _evaluate,
    "report": _report,
}


def _run_learning(
    frozen: FrozenStage,
    job: StageJob,
    finish: Callable[[dict[str, OutputRecord], StageResult, int], None],
) -> None:
    """A stage of `tigan`, under all ranks; rank 0 records it."""
    from tigan import distributed, preemption

    if frozen.stage in _SAVE_FIRST:
        preemption.install()
    launch, result = frozen.launch, None
    with distributed.session(
        launch.threads, health_check_s=launch.health_check_s, needs_gpu=launch.gpu
    ) as group:
        # Caught in here: all ranks agreed to stop, so their group can end as after a result.
        with suppress(preemption.Preempted):
            result = _LEARNING[frozen.stage](job)
        ignore_signals()
        if result is not None and group.is_first:
            outputs = {name: digest_of(job.stage_dir / name) for name in sorted(result.outputs)}
            finish(outputs, result, group.world_size)
    if result is None:
        raise Stopped


def _run_prep(
    frozen: FrozenStage,
    science: StrictModel,
    stage_dir: Path,
    inputs: dict[str, Path],
    before: float,
) -> dict[str, OutputRecord]:
    """A rendering or a packing."""
    if frozen.stage == "render_synthia":
        return prep.render_synthia(science, stage_dir, frozen.launch, before)
    if frozen.stage == "render_cityscapes":
        return prep.render_cityscapes(science, stage_dir, frozen.launch, before)
    record = partial(record_end, stage_dir)
    return prep.pack(frozen, science, stage_dir, inputs["raw"], env_rank(), before, record)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
