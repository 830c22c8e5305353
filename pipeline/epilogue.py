"""The end of every batch script: `python -m pipeline.epilogue CODE`, after srun has ended.

Says whether the job is done, goes on in a requeue, or has failed. It stands here, and not in a
rank, because the batch script outlives the ranks: it sees those that were killed, too. Only the
completion records say that a stage is done, never an exit code. Exit code 0: all is done; 75: to
be started again, but Slurm did not requeue it; else failed.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline import paths, progress
from pipeline.batches import BatchRecord, dependents, load_batches, read_batch
from pipeline.done import read_done
from pipeline.frozen import read_frozen
from pipeline.stopping import EXIT_PREEMPTED, ignore_signals

_TRIES = 5
_TRY_EVERY_S = 5.0
# Slurm's controller may be away for minutes, and without its word nothing can be decided. What
# time there is ends with the job: Slurm ends this script too.
_ASKS = 60
_WAIT_FOR_END_S = 120.0
_WAIT_FOR_DRIVER_S = 300.0
# Slurm's words for a job that nobody has ended: a signal or a change may be on its way to it.
_STILL_RUNNING = ("RUNNING", "SIGNALING", "CONFIGURING", "RESIZING")

Why = Literal["stopped", "died", "unhealthy"]

# Of a stage that was started by hand: no profile says how often it may be requeued.
_LIMITS_BY_HAND: Mapping[Why, int] = {"stopped": 50, "died": 2, "unhealthy": 2}


@dataclass(frozen=True)
class Stage:
    """How one stage of the job stands, after this attempt."""

    name: str
    is_done: bool
    state: str  # of state.json, in this attempt; empty where it wrote none
    may_retry: bool  # whether it could go better without a change
    sick_nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What becomes of the job: its exit code, or why it is requeued, and without which nodes."""

    code: int = 0
    requeue: Why | None = None
    exclude: tuple[str, ...] = ()
    message: str = ""


def judge(
    code: int,
    stages: Sequence[Stage],
    job_state: str,
    before: Sequence[str],
    limits: Mapping[Why, int],
) -> Verdict:
    """What becomes of a job whose srun ended with `code`.

    `job_state` is Slurm's, `before` why it was requeued so far, `limits` how often it may be for
    each reason. Pure.
    """
    left = [stage for stage in stages if not stage.is_done]
    if not left:
        return Verdict(0, message="done")
    names = ", ".join(stage.name for stage in left)
    # A job that was cancelled must not be brought back to life: scontrol requeue would.
    if job_state not in _STILL_RUNNING:
        return Verdict(
            code or 1, message=f"{names}: not done; Slurm has taken the job ({job_state})"
        )
    sick = tuple(sorted({node for stage in left for node in stage.sick_nodes}))
    why: Why = "died"
    if sick:
        why = "unhealthy"
    elif any(stage.state == "preempted" for stage in left):
        why = "stopped"
    elif not any(stage.may_retry for stage in left):
        return Verdict(code or 1, message=f"{names}: failed; see its log")
    count = _count(before, why) + 1
    if count > limits[why]:
        code = EXIT_PREEMPTED if why == "stopped" else code or 1
        return Verdict(code, message=f"{names}: {why}, and requeued {limits[why]} times already")
    message = f"{names}: {why}; to be requeued ({count} of {limits[why]})"
    return Verdict(EXIT_PREEMPTED, why, sick, message)


def _count(before: Sequence[str], why: Why) -> int:
    """How often it was requeued for this reason; of crashes, since it last stopped and saved.

    In a chain of days a few crashes are to be expected, and it went on well in between.
    """
    if why == "died" and "stopped" in before:
        before = before[len(before) - before[::-1].index("stopped") :]
    return before.count(why)


def look(record: BatchRecord, unit: Sequence[str], run_dir: Path, restarts: int) -> list[Stage]:
    """How the stages of a job stand after its start number `restarts`."""
    return [
        _look_at(run_dir / name, name, record.hashes[name], record.first_attempts[name] + restarts)
        for name in unit
    ]


def _look_at(stage_dir: Path, name: str, science_hash: str, attempt: int) -> Stage:
    state = progress.read_state(stage_dir)
    if state.get("attempt") != attempt:  # of an attempt before: in this one, no rank began
        state = {}
    try:
        record = read_done(stage_dir, science_hash)
    except OSError as error:  # its next start sees whether it is done
        print(f"{stage_dir}: {error}", flush=True)
        record = None
    # A report is made anew in its place, where the record of the one before lies all the while.
    is_old = record is not None and record.stage == "report" and state.get("state") != "done"
    may_retry = bool(state.get("may_retry", True))
    # It refused to run, as on inputs that were made anew: what lies there is of other ones.
    is_refused = state.get("state") == "failed" and not may_retry
    return Stage(
        name=name,
        is_done=record is not None and not is_old and not is_refused,
        state=str(state.get("state", "")),
        may_retry=may_retry,
        sick_nodes=tuple(state.get("sick_nodes", ())),
    )


def main(arguments: list[str]) -> int:
    """Judge the job that this process runs in, and act on it; returns the job's exit code."""
    ignore_signals()
    code = int(arguments[0])
    # Not SLURM_JOB_ID: an array's last element has the array's own, which is that of all.
    job = os.environ["TIGAN_JOB"]
    run_dir, stages, limits = _submitted() if os.environ.get("TIGAN_BATCH") else _by_hand()
    log = paths.requeues(run_dir, job)
    before = log.read_text(encoding="utf-8").split() if log.is_file() else []
    state = _job_state(job, _ASKS)
    verdict = judge(code, stages, state, before, limits)
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {verdict.message}", flush=True)
    if verdict.requeue is None:
        if verdict.code and state in _STILL_RUNNING:
            _cancel_dependents(run_dir, job)
        return verdict.code
    log.parent.mkdir(exist_ok=True)  # a stage by hand may be of a run that never saw Slurm
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{verdict.requeue}\n")
    if _requeue(job, verdict.exclude):
        _wait_to_be_ended()
    else:
        print("not requeued; give the driver's command again, which goes on from here", flush=True)
        _cancel_dependents(run_dir, job)
    return verdict.code


def _submitted() -> tuple[Path, list[Stage], Mapping[Why, int]]:
    """Run directory, stages and limits of a job that the driver submitted: by its record."""
    run_dir, token = Path(os.environ["TIGAN_RUN_DIR"]), os.environ["TIGAN_BATCH"]
    record = read_batch(paths.batch(run_dir, token))
    unit = record.units[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]
    # What keeps nothing when it stops would start from nothing each time.
    keeps = record.stage not in ("evaluate", "report")
    limits: dict[Why, int] = {
        "stopped": record.max_requeues if keeps else record.max_retries,
        "died": record.max_retries,
        "unhealthy": record.max_retries,
    }
    return run_dir, look(record, unit, run_dir, _restarts()), limits


def _by_hand() -> tuple[Path, list[Stage], Mapping[Why, int]]:
    """The same of a stage that was started with slurm/stage.sbatch: by its frozen config."""
    stage_dir = Path(os.environ["TIGAN_STAGE_DIR"])
    frozen = read_frozen(stage_dir)
    name = paths.node_name(frozen.stage, frozen.point)
    stage = _look_at(stage_dir, name, frozen.science_hash, progress.own_attempt(stage_dir))
    return paths.run_dir_of(stage_dir, frozen.point), [stage], _LIMITS_BY_HAND


def _restarts() -> int:
    """How often Slurm has started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _job_state(job: str, tries: int) -> str:
    """The JobState of `scontrol show job`; UNKNOWN where Slurm does not answer.

    STARTED_AGAIN where the job is, but not this start of it: one whose node Slurm had lost lives
    on beside the next, which has the same id and must be left alone.
    """
    for attempt in range(tries):
        try:
            shown = _scontrol("show", "job", job)
            restarts = re.search(r"Restarts=(\d+)", shown)
            if restarts and int(restarts.group(1)) > _restarts():
                return "STARTED_AGAIN"
            found = re.search(r"JobState=(\w+)", shown)
            return found.group(1) if found else "UNKNOWN"
        except (OSError, subprocess.SubprocessError) as error:
            print(f"scontrol show job {job}: {_said(error)}", flush=True)
            if attempt < tries - 1:
                time.sleep(_TRY_EVERY_S)
    return "UNKNOWN"


def _requeue(job: str, exclude: Sequence[str]) -> bool:
    """Requeue this job, without the nodes to exclude; False where Slurm refuses."""
    for attempt in range(_TRIES):
        try:
            _scontrol("requeue", job)
            break
        except (OSError, subprocess.SubprocessError) as error:
            print(f"scontrol requeue {job}: {_said(error)}", flush=True)
        if attempt < _TRIES - 1:
            time.sleep(_TRY_EVERY_S)
        # Requeued by the end of the grace time, or cancelled meanwhile: not ours any more.
        if _job_state(job, _ASKS) not in (*_STILL_RUNNING, "UNKNOWN"):
            break
    else:
        return False
    if exclude:
        _exclude(job, exclude)
    return True


def _wait_to_be_ended() -> None:
    """Slurm ends what is left of a requeued job; no need to resist, nor to wait for ever."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_WAIT_FOR_END_S)


def _cancel_dependents(run_dir: Path, job: str) -> None:
    """Cancel what waits for this job, now that it has failed: else it waits for ever.

    The report waits for the end of all of it; one failed point must not keep it from being made.
    """
    token = os.environ.get("TIGAN_BATCH")
    if not token:  # a stage by hand: nothing was submitted behind it
        return
    _wait_for_driver(run_dir)
    records = [record for record in load_batches(run_dir) if record.token >= token]
    waiting: dict[str, list[str]] = {}
    for dependent in dependents(records, job):
        waiting.setdefault(dependent.partition("_")[0], []).append(dependent)
    for ids in reversed(waiting.values()):  # the last first: else its turn might come
        command = ["scancel", "--quiet", "--state=PENDING", *ids]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            said = done.stderr.strip()  # none where they are gone already
        except (OSError, subprocess.SubprocessError) as error:
            said = _said(error)
        how = f"could not cancel ({said})" if said else "cancelled"
        print(f"{how} what waits for it: {', '.join(ids)}", flush=True)


def _wait_for_driver(run_dir: Path) -> None:
    """Let a driver that is still submitting come to its end, to know all that waits.

    A lock that is older than any submission takes is of a driver that was killed.
    """
    lock = run_dir / paths.LOCK
    with suppress(FileNotFoundError):
        while time.time() - lock.stat().st_mtime < _WAIT_FOR_DRIVER_S:
            time.sleep(1.0)


def _exclude(job: str, nodes: Sequence[str]) -> None:
    """Keep the requeued job off `nodes`, besides those it was kept off before."""
    try:
        found = re.search(r"ExcNodeList=(\S+)", _scontrol("show", "job", job))
        known = [] if found is None or found.group(1) == "(null)" else [found.group(1)]
        _scontrol("update", f"JobId={job}", f"ExcNodeList={','.join([*known, *nodes])}")
        print(f"excluded from now on: {', '.join(nodes)}", flush=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"could not exclude {', '.join(nodes)}: {_said(error)}", flush=True)


def _scontrol(*arguments: str) -> str:
    return subprocess.run(
        ["scontrol", *arguments], capture_output=True, text=True, timeout=60, check=True
    ).stdout


def _said(error: Exception) -> str:
    """What a failed command printed, else the error itself."""
    return (getattr(error, "stderr", "") or str(error)).strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
