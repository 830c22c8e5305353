"""What was submitted: `RUN_DIR/slurm/TOKEN.json`, written before the job and again with its id."""

import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from data_prep import atomic
from data_prep.config import ConfigError, StrictModel
from pipeline import paths
from pipeline.config import StageName
from pipeline.slurm import Queued


class BatchRecord(StrictModel):
    """One sbatch: a job, or an array of them. The jobs themselves read it too."""

    token: str = Field(description="also the job's comment, by which it is found without its id")
    stage: StageName
    units: list[list[str]] = Field(description="the nodes of each job or element")
    hashes: dict[str, str] = Field(description="node -> science hash that it was submitted for")
    first_attempts: dict[str, int] = Field(description="node -> number of its next attempt")
    dependency: str = Field(description="sbatch --dependency, as it was")
    shares_node: bool = Field(description="whether each task runs a point of its own")
    max_requeues: int
    max_retries: int
    submitted: str = Field(description="when, ISO 8601")
    job: str | None = Field(default=None, description="Slurm's id; null: never learnt")

    def job_ids(self) -> dict[str, str]:
        """Node -> id of its job or element; empty where the id is not known."""
        if self.job is None:
            return {}
        is_array = len(self.units) > 1
        return {
            name: f"{self.job}_{element}" if is_array else self.job
            for element, unit in enumerate(self.units)
            for name in unit
        }


def new_token(number: int, stage: str) -> str:
    """A token that sorts by number, and that no other run directory has."""
    return f"{number:04d}-{stage}-{uuid.uuid4().hex[:8]}"


def next_number(records: Sequence[BatchRecord]) -> int:
    """The number of the next token; records may have been deleted."""
    return max((int(record.token.partition("-")[0]) for record in records), default=-1) + 1


def comment(token: str) -> str:
    """The comment of the jobs of a batch."""
    return f"tigan:{token}"


def write_batch(run_dir: Path, record: BatchRecord) -> None:
    """Write a record, atomically."""
    folder = paths.slurm_dir(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_json(paths.batch(run_dir, record.token), record.model_dump())


def read_batch(path: Path) -> BatchRecord:
    """Read a record. Raises `ConfigError` where it is damaged."""
    try:
        return BatchRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        what = str(error).splitlines()[0]
        raise ConfigError(
            f"{path}: not a record of submitted jobs ({what}); cancel the run's jobs with "
            "scancel, and delete this file"
        ) from None


def load_batches(run_dir: Path) -> list[BatchRecord]:
    """All that was ever submitted for a run directory, oldest first. Raises `ConfigError`."""
    files = sorted(paths.slurm_dir(run_dir).glob("[0-9]*.json"))
    return [read_batch(path) for path in files]


def job_name(stage: str) -> str:
    """The name of the jobs of a stage."""
    return f"tigan-{stage}"


def is_job_of(record: BatchRecord, queued: Queued) -> bool:
    """Whether a job in the queue is of this batch: ids come again, and some sites set comments."""
    if queued.comment.startswith("tigan:"):
        return queued.comment == comment(record.token)
    return queued.name in ("", job_name(record.stage))


def live_jobs(
    records: Iterable[BatchRecord], queue: Mapping[str, Queued]
) -> dict[str, tuple[str, BatchRecord]]:
    """The latest jobs of nodes, as `latest_jobs`, as far as they are in the queue."""
    return {
        name: (job, record)
        for name, (job, record) in latest_jobs(records).items()
        if job in queue and is_job_of(record, queue[job])
    }


def latest_jobs(records: Iterable[BatchRecord]) -> dict[str, tuple[str, BatchRecord]]:
    """Node -> the job that was last submitted for it, and its record."""
    return {name: (job, record) for record in records for name, job in record.job_ids().items()}


def dependents(records: Iterable[BatchRecord], job: str) -> list[str]:
    """The jobs that can never run once `job` has failed: those that wait for it, and so on.

    Not the report: it waits for any end. `records` are in the order of submission.
    """
    dead = {job}
    found = []
    for record in records:
        if record.job is None or record.stage == "report":
            continue
        for element in range(len(record.units)):
            terms = [term.partition(":") for term in record.dependency.split(",")]
            if any(_is_dead(kind, on, element, dead) for kind, _, on in terms):
                own = f"{record.job}_{element}" if len(record.units) > 1 else record.job
                dead.add(own)
                found.append(own)
    return found


def _is_dead(kind: str, on: str, element: int, dead: Collection[str]) -> bool:
    """Whether one term of a dependency can no longer be satisfied."""
    if kind == "aftercorr":
        return f"{on}_{element}" in dead
    return bool(on) and (on in dead or any(job.startswith(f"{on}_") for job in dead))


def now() -> str:
    """The present, ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
