"""Every path of a run directory, as pure functions: nothing here touches the disk."""

import hashlib
import re
from pathlib import Path

CONFIG = "config.yaml"
DONE = "done.json"
METRICS = "metrics.jsonl"
STATE = "state.json"
STARTED = "inputs.json"
LOGS = "logs"
RUN_CONFIG = "run.yaml"
LOCK = "driver.lock"
SUPERSEDED = "superseded"
SLURM = "slurm"

# Most file systems take 255 bytes in a name; the rest is for the suffix of superseded directories.
_LONGEST_NAME = 160


def run_dir(name: str) -> Path:
    """`runs/NAME` under the current directory."""
    return Path("runs") / name


def node_name(stage: str, point: str) -> str:
    """`STAGE` or `STAGE/POINT`: the name of a node, and its directory in the run directory."""
    return f"{stage}/{point}" if point else stage


def stage_dir(run_dir: Path, node: str) -> Path:
    """The directory of the node called `node`."""
    return run_dir / node


def run_dir_of(stage_dir: Path, point: str) -> Path:
    """The run directory that `stage_dir`, of the given point, lies in."""
    return stage_dir.parent.parent if point else stage_dir.parent


def report_dir(run_dir: Path) -> Path:
    """Where the report lies: index.html, results.json, figures/."""
    return run_dir / "report"


def log(stage_dir: Path, attempt: int) -> Path:
    """The log of attempt `attempt` (counted from 1) of a stage."""
    return stage_dir / LOGS / f"attempt-{attempt}.log"


def rank_log(stage_dir: Path, attempt: int, rank: int) -> Path:
    """The log of one rank, not the first, of an attempt under Slurm."""
    return stage_dir / LOGS / "ranks" / f"attempt-{attempt}-rank-{rank}.log"


def slurm_dir(run_dir: Path) -> Path:
    """What was submitted to Slurm, and what the batch scripts printed."""
    return run_dir / SLURM


def batch(run_dir: Path, token: str) -> Path:
    """The record of one submission."""
    return slurm_dir(run_dir) / f"{token}.json"


def requeues(run_dir: Path, job: str) -> Path:
    """Why a job was requeued, one word a line."""
    return slurm_dir(run_dir) / f"{job}.requeues"


def superseded(run_dir: Path, stage: str, point: str, short_hash: str, number: int) -> Path:
    """Where a stage directory that no longer fits its configuration is kept."""
    return run_dir / SUPERSEDED / stage / f"{point or 'base'}-{short_hash or 'unknown'}-{number}"


def point_label(values: dict[str, object], prefix: str = "") -> str:
    """A point's directory name: `prefix,key=value,key=value`, sorted by key, safe on any system.

    What is not in [A-Za-z0-9._+=,-] becomes '_'; a label changed so, or one that is too long,
    ends in a digest, so that two points never share a directory.
    """
    parts = [f"{key}={_text(value)}" for key, value in sorted(values.items())]
    exact = ",".join([prefix, *parts] if prefix else parts)
    safe = re.sub(r"[^A-Za-z0-9._+=,-]", "_", exact)
    if safe == exact and len(safe) <= _LONGEST_NAME:
        return safe
    return f"{safe[:_LONGEST_NAME]}~{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def is_point(name: str) -> bool:
    """Whether an entry of a stage's directory is the directory of one of its points."""
    return "=" in name


def _text(value: object) -> str:
    """A value as it stands in a label: `0.5`, `14`, `true`, `0.5x0.999`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "x".join(_text(item) for item in value)
    return str(value)
