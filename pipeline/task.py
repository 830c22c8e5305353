"""What every task of a Slurm job does first: take its place among the ranks, become the stage.

submitit unpickles a `Task` and calls it; `python -m pipeline.task STAGE_DIR` under srun does the
same for one stage by hand. Nothing heavy is imported here: the process is replaced.
"""

import json
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pipeline import paths
from pipeline.stopping import SIGNALS


@dataclass(frozen=True)
class Task:
    """The picklable job: the record of its batch says what to run."""

    record: str

    def __call__(self) -> None:
        """Run this task's share of the batch; returns only where there is nothing to do."""
        path = Path(self.record)
        record = json.loads(path.read_text(encoding="utf-8"))
        unit = record["units"][int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]
        rank, world_size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
        node = unit[0]
        if record["shares_node"]:
            if rank >= len(unit):  # the last job of an array may have points to spare
                return
            node, rank, world_size = unit[rank], 0, 1
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        stage_dir = path.parent.parent / node
        attempt = record["first_attempts"][node] + restarts
        _write_to_log(stage_dir, attempt, rank)
        os.environ["TIGAN_ATTEMPT"] = str(attempt)
        become_stage(stage_dir, rank, world_size)


def _write_to_log(stage_dir: Path, attempt: int, rank: int) -> None:
    """Let standard output and error go to this rank's log."""
    path = paths.rank_log(stage_dir, attempt, rank) if rank else paths.log(stage_dir, attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def rank_environment(rank: int, world_size: int, environment: dict[str, str]) -> dict[str, str]:
    """What torch.distributed reads, from what srun and slurm/job.sh set.

    Raises ValueError where the first node's name does not resolve: the ranks would wait for it
    until their time-out.
    """
    added = {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
    }
    if world_size > 1:
        host, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
        try:
            socket.getaddrinfo(host, port)
        except OSError as error:
            raise ValueError(
                f"MASTER_ADDR: the name {host!r} of the first node does not resolve on "
                f"{socket.gethostname()} ({error}); correct host_suffix in the partition profile "
                "(JUWELS: i; elsewhere usually empty)"
            ) from error
    return environment | added


def become_stage(stage_dir: Path, rank: int, world_size: int) -> NoReturn:
    """Replace this process by `python -m pipeline.stages STAGE_DIR`."""
    try:
        environment = rank_environment(rank, world_size, dict(os.environ))
    except ValueError as error:
        from pipeline import progress

        print(f"error: {stage_dir.name} (rank {rank}): {error}", file=sys.stderr, flush=True)
        # A name service that is only slow to answer may do better on the next start.
        is_slow = getattr(error.__cause__, "errno", None) == socket.EAI_AGAIN
        progress.write_state(stage_dir, "failed", str(error), may_retry=is_slow)
        os._exit(1)
    # submitit's handlers end here. A signal that comes while Python starts anew must not be lost,
    # nor kill: it stays pending until the stage has handlers of its own.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    command = [sys.executable, "-m", "pipeline.stages", str(stage_dir)]
    os.execve(sys.executable, command, environment)


def main(arguments: list[str]) -> Any:
    """One stage by hand, under srun."""
    if len(arguments) != 1 or "SLURM_PROCID" not in os.environ:
        print("usage, under srun: python -m pipeline.task STAGE_DIR", file=sys.stderr)
        return 2
    rank, world_size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    become_stage(Path(arguments[0]).resolve(), rank, world_size)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
