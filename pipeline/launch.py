"""Profile -> submitit -> Slurm: the text of a batch's sbatch file, and its submission."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

from data_prep.config import REPO_ROOT
from pipeline import batches, paths, slurm
from pipeline.arrange import Batch
from pipeline.batches import BatchRecord
from pipeline.plan import Plan
from pipeline.profiles import SlurmLayout, SlurmProfile
from pipeline.progress import attempts
from pipeline.task import Task


def record_of(
    plan: Plan, batch: Batch, profile: SlurmProfile, token: str, after: str
) -> BatchRecord:
    """What is recorded of a batch, before it has an id. `after` is its --dependency."""
    layout = profile.layout(batch.stage)
    return BatchRecord(
        token=token,
        stage=batch.stage,
        units=[list(unit) for unit in batch.units],
        hashes={name: str(plan.graph[name].hash) for name in batch.nodes},
        first_attempts={name: attempts(plan.run_dir / name) + 1 for name in batch.nodes},
        dependency=after,
        shares_node=layout.points_per_node > 1,
        max_requeues=profile.max_requeues,
        max_retries=profile.max_retries,
        submitted=batches.now(),
    )


def parameters(
    record: BatchRecord, profile: SlurmProfile, account: str | None, run_dir: Path
) -> dict[str, Any]:
    """The parameters that submitit turns into an sbatch file."""
    layout = profile.layout(record.stage)
    given: dict[str, Any] = {
        "job_name": batches.job_name(record.stage),
        "partition": profile.partition,
        "account": account,
        "time": layout.time_min,
        "nodes": layout.nodes,
        "ntasks_per_node": _tasks_per_node(record, layout),
        "cpus_per_task": layout.cpus_per_task,
        "gres": f"gpu:{layout.gpus_per_node}" if layout.gpus_per_node else None,
        "dependency": record.dependency or None,
        "signal_delay_s": profile.signal_delay_s,
        "array_parallelism": profile.max_parallel,
        "comment": batches.comment(record.token),
        "wckey": "",  # submitit's own is refused on some sites
        "stderr_to_stdout": True,
        "setup": _setup(record, profile, run_dir),
        "srun_args": _srun_arguments(record, profile, layout),
        # Relative to the run directory, where sbatch is called: Slurm reads quotes and blanks in
        # the paths of its options in ways of its own.
        "additional_parameters": {
            "output": f"{paths.SLURM}/{'%A_%a' if len(record.units) > 1 else '%j'}.log",
            "requeue": True,
            **{key: value for key, value in profile.sbatch.items() if value is not False},
        },
    }
    return {key: value for key, value in given.items() if value is not None}


def _tasks_per_node(record: BatchRecord, layout: SlurmLayout) -> int:
    """Ranks per node; where points share a node, one task for each."""
    return max(map(len, record.units)) if record.shares_node else layout.tasks_per_node


def _setup(record: BatchRecord, profile: SlurmProfile, run_dir: Path) -> list[str]:
    """The lines of the batch script before srun; slurm/job.sh has the rest."""
    values = {
        "TIGAN_ROOT": str(REPO_ROOT),
        "TIGAN_PYTHON": sys.executable,
        "TIGAN_RUN_DIR": str(run_dir.resolve()),
        "TIGAN_BATCH": record.token,
        "TIGAN_HOST_SUFFIX": profile.host_suffix,
    }
    return [
        "set -e",  # else a job goes on, and ends well, after a source that failed
        f"cd {shlex.quote(str(Path.cwd()))}",
        *(f"export {name}={shlex.quote(value)}" for name, value in values.items()),
        'source "$TIGAN_ROOT/slurm/end.sh"',  # first: it sees to an environment file that fails
        f"source {shlex.quote(str(profile.environment_path))}",
        'source "$TIGAN_ROOT/slurm/job.sh"',
    ]


def _srun_arguments(record: BatchRecord, profile: SlurmProfile, layout: SlurmLayout) -> list[str]:
    """What srun is told, after submitit's own options."""
    arguments = [
        "--output=all",  # over submitit's file per rank: every rank opens its own log
        # srun of 22.05 and later does not inherit it from sbatch.
        f"--cpus-per-task={layout.cpus_per_task}",
        # Else the job runs on to its time limit after one rank died; points that share a node
        # have nothing to do with each other.
        f"--kill-on-bad-exit={0 if record.shares_node else 1}",
    ]
    if record.shares_node:  # a site's WaitTime would end the others some time after the first
        arguments.append("--wait=0")
    if profile.cpu_bind is not None:
        arguments.append(f"--cpu-bind={profile.cpu_bind}")
    if profile.mpi is not None and record.stage.startswith("pack_"):
        arguments.append(f"--mpi={profile.mpi}")
    return arguments


def sbatch_text(
    record: BatchRecord, profile: SlurmProfile, account: str | None, run_dir: Path
) -> str:
    """The sbatch file as submitit writes it. Pure but for the current directory."""
    from submitit.slurm.slurm import _make_sbatch_string

    given = parameters(record, profile, account, run_dir)
    if len(record.units) > 1:
        given["map_count"] = len(record.units)
    folder = paths.slurm_dir(run_dir).resolve()
    command = (
        f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    )
    text: str = _make_sbatch_string(command=command, folder=folder, **given)
    return text


def submit(record: BatchRecord, profile: SlurmProfile, account: str | None, run_dir: Path) -> str:
    """Submit a batch; returns Slurm's id (of the array, where it is one). Raises `SlurmError`."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder = paths.slurm_dir(run_dir).resolve()
    tasks: Sequence[Task] = [Task(str(paths.batch(run_dir.resolve(), record.token)))] * len(
        record.units
    )
    given = parameters(record, profile, account, run_dir)
    try:
        with slurm.outside_of_any_job(), chdir(run_dir):
            # A new executor each time: submitit pauses 0.2 s between two calls of one.
            executor = SlurmExecutor(folder)
            executor.update_parameters(**given)
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
    except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
        raise slurm.SlurmError(f"sbatch refused {record.stage}: {error}") from None
    return str(jobs[0].job_id).partition("_")[0]
