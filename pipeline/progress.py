"""How far a stage is, as its directory tells: `state.json`, `metrics.jsonl` and `logs/`."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep import atomic
from data_prep.processes import identity, is_alive
from pipeline import paths

StageState = Literal["running", "preempted", "failed", "done"]


def write_state(stage_dir: Path, state: StageState, message: str, **more: Any) -> None:
    """Record what this process does with the stage.

    A failure stands until the next attempt: neither the ranks that die of it later nor those that
    the launcher stops because of it hide it. `more` says of a failure whether a restart could help
    (`may_retry`), and which nodes it was the fault of (`sick_nodes`).
    """
    if is_superseded(stage_dir):
        return
    is_stop = state in ("failed", "preempted")
    if is_stop and state_of_attempt(stage_dir).get("state") == "failed":
        return
    _write_state(stage_dir, state, message, {**identity(), **more})


def is_superseded(stage_dir: Path) -> bool:
    """Whether a newer attempt has begun: this process is one of a node that was given up for lost.

    Only a Slurm job knows the number of its attempt.
    """
    own = os.environ.get("TIGAN_ATTEMPT")
    return own is not None and int(own) < attempts(stage_dir)


def note_started(stage_dir: Path, pid: int) -> None:
    """Record that process `pid` of this machine was started on the stage.

    For the moments before it says so itself; what it has said already stands.
    """
    if not state_of_attempt(stage_dir):
        _write_state(stage_dir, "running", "", identity(pid))


def state_of_attempt(stage_dir: Path) -> dict[str, Any]:
    """`state.json` where it is of the present attempt; else empty."""
    content = read_state(stage_dir)
    return content if content.get("attempt") == own_attempt(stage_dir) else {}


def own_attempt(stage_dir: Path) -> int:
    """The number of the present attempt; a Slurm job knows it before its first log is there."""
    return int(os.environ.get("TIGAN_ATTEMPT", 0)) or max(1, attempts(stage_dir))


def _write_state(stage_dir: Path, state: StageState, message: str, process: dict[str, Any]) -> None:
    content = {
        "state": state,
        "attempt": own_attempt(stage_dir),
        "message": message,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **process,
    }
    atomic.write_json(stage_dir / paths.STATE, content)


def read_state(stage_dir: Path) -> dict[str, Any]:
    """`state.json`; empty where there is none."""
    return atomic.read_json(stage_dir / paths.STATE)


def is_running(stage_dir: Path) -> bool:
    """Whether a process is at work in the stage's directory, as far as can be seen from here."""
    state = read_state(stage_dir)
    return state.get("state") == "running" and is_alive(state)


def named(stage_dir: Path) -> str:
    """The process of `state.json` in words."""
    state = read_state(stage_dir)
    job = f"Slurm job {state['job']}, " if "job" in state else ""
    return f"{job}process id {state.get('pid')} on {state.get('host')}"


def attempts(stage_dir: Path) -> int:
    """How often the stage has been started: the number of its newest log.

    Not how many logs there are: a job that is preempted before its ranks begin leaves none.
    """
    numbers = [
        path.stem.removeprefix("attempt-") for path in (stage_dir / paths.LOGS).glob("*.log")
    ]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


@dataclass(frozen=True)
class Reading:
    """The last line of `metrics.jsonl`."""

    images: int
    total: int
    seconds: float

    @property
    def rate(self) -> float:
        """Images per second, over the whole stage."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at that rate; None where it is not known yet."""
        return (self.total - self.images) / self.rate if self.rate > 0 else None


def last_reading(stage_dir: Path) -> Reading | None:
    """How far the stage is; None where it has not reported yet."""
    try:
        with (stage_dir / paths.METRICS).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65536))
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline is unfinished
    except OSError:
        return None
    for line in reversed(lines):
        try:
            values = json.loads(line)
            return Reading(int(values["images"]), int(values["total"]), float(values["seconds"]))
        except (ValueError, KeyError, TypeError):
            continue
    return None


def seconds_so_far(stage_dir: Path) -> float:
    """Wall time that earlier attempts have spent in the stage, as far as they reported it."""
    reading = last_reading(stage_dir)
    return reading.seconds if reading else 0.0


def duration(seconds: float | None) -> str:
    """`12s`, `3m20s`, `2h05m`; `-` for None."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
