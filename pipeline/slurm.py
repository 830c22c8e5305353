"""Slurm's commands, as far as the driver reads them: the queue, accounting, partition limits."""

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

_TIMEOUT_S = 60.0
# Of an outer job, they would become options of ours: SLURM_CPU_BIND once pinned all ranks to one
# core. SLURM_CONF says which cluster, and stays.
_OUTER = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "PMI_", "PMIX_", "TIGAN_")
# A user's own defaults: SQUEUE_STATES=RUNNING would hide jobs that wait, and have them doubled.
_DEFAULTS = ("SQUEUE_", "SACCT_", "SCONTROL_", "SCANCEL_")
_KEPT = ("SLURM_CONF",)


class SlurmError(RuntimeError):
    """A Slurm command failed; the message is complete."""


@dataclass(frozen=True)
class Queued:
    """A job (or one element of an array) that Slurm still knows as pending or running."""

    state: str  # PENDING, RUNNING, COMPLETING, SUSPENDED, ...
    reason: str
    restarts: int
    comment: str
    name: str = ""

    @property
    def is_pending(self) -> bool:
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")


@dataclass(frozen=True)
class Ended:
    """What accounting says of a job, over all its restarts."""

    state: str
    node_hours: float


@dataclass(frozen=True)
class Limits:
    """A partition's limits; None where there is none."""

    time_min: int | None
    nodes: int | None


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what an outer job or launcher left in it."""
    return {
        k: v for k, v in environment.items() if k in _KEPT or not k.startswith(_OUTER + _DEFAULTS)
    }


@contextmanager
def outside_of_any_job() -> Iterator[None]:
    """Clean this process's own environment: submitit hands it to sbatch."""
    before = dict(os.environ)
    try:
        for name in before.keys() - clean_environment(before).keys():
            del os.environ[name]
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def is_here() -> bool:
    """Whether this machine has Slurm's commands."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "scontrol", "scancel", "srun"))


def _run(*command: str) -> str:
    """Standard output of a Slurm command. Raises `SlurmError` with what it said."""
    try:
        result = subprocess.run(
            command,
            env=clean_environment(os.environ),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]}: no such command here; submit on a login node of the cluster, or use "
            "--partition local"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{' '.join(command)}: no answer in {_TIMEOUT_S:.0f} s") from None
    if result.returncode != 0:
        said = (result.stderr or result.stdout).strip() or f"exit code {result.returncode}"
        raise SlurmError(f"{command[0]}: {said}")
    return result.stdout


_QUEUE_FIELDS = ("JobArrayID", "State", "Reason", "RestartCnt", "Comment", "Name")


def queue() -> dict[str, Queued]:
    """All jobs of this user that are pending or running: id (`123` or `123_4`) -> job.

    One command, whatever their number. Raises `SlurmError`.
    """
    # A width is what Slurm truncates at: ids and our comments are far shorter.
    fields = ",".join(f"{name}:200" for name in _QUEUE_FIELDS)
    user = str(os.getuid())
    return parse_queue(_run("squeue", "--noheader", "--array", "--user", user, "--Format", fields))


def parse_queue(text: str) -> dict[str, Queued]:
    """`squeue --Format` output with columns of 200 characters."""
    jobs = {}
    for line in text.splitlines():
        cells = [line[start : start + 200].strip() for start in range(0, 1200, 200)]
        if cells[0]:
            restarts = int(cells[3]) if cells[3].isdigit() else 0
            jobs[cells[0]] = Queued(cells[1], cells[2], restarts, cells[4], cells[5])
    return jobs


def accounting(job_ids: Collection[str]) -> dict[str, Ended] | None:
    """What accounting knows of jobs, by id; None on a cluster without accounting.

    `job_ids` without array indices; elements come back as `123_4`. One command.
    """
    if not job_ids or shutil.which("sacct") is None:
        return None
    # --duplicates: the attempts before a requeue cost node-hours too.
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates"]
    fields = ["--format", "JobID,State,ElapsedRaw,NNodes"]
    try:
        return parse_accounting(_run(*command, *fields, "--jobs", ",".join(job_ids)))
    except SlurmError:
        return None


def parse_accounting(text: str) -> dict[str, Ended]:
    """`sacct --parsable2` lines of `JobID|State|ElapsedRaw|NNodes`; a job's last line is newest."""
    jobs: dict[str, Ended] = {}
    for line in text.splitlines():
        job, state, elapsed, nodes = line.split("|")[:4]
        hours = int(elapsed or 0) * int(nodes or 0) / 3600
        before = jobs[job].node_hours if job in jobs else 0.0
        jobs[job] = Ended(state.split(" ")[0], before + hours)
    return jobs


def cancel(job_ids: Collection[str]) -> None:
    """Cancel jobs; those that have ended meanwhile are no error. Raises `SlurmError`."""
    if job_ids:
        _run("scancel", "--quiet", *sorted(job_ids))


def partition_limits(name: str) -> Limits:
    """A partition's limits. Raises `SlurmError` naming the partitions that there are."""
    try:
        return parse_limits(_run("scontrol", "--oneliner", "show", "partition", name))
    except SlurmError as error:
        if "not found" not in str(error):
            raise
    known = re.findall(r"PartitionName=(\S+)", _run("scontrol", "--oneliner", "show", "partition"))
    raise SlurmError(f"no partition {name!r} on this cluster; there are: {', '.join(known)}")


def parse_limits(text: str) -> Limits:
    """`scontrol show partition` as limits."""
    fields = dict(re.findall(r"(\w+)=(\S+)", text))
    nodes = [fields[key] for key in ("MaxNodes", "TotalNodes") if key in fields]
    return Limits(
        time_min=_minutes(fields.get("MaxTime", "UNLIMITED")),
        nodes=min((int(text) for text in nodes if text.isdigit()), default=None),
    )


def _minutes(text: str) -> int | None:
    """`[days-]hours:minutes:seconds` in whole minutes; None for UNLIMITED."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes
