"""One of two ranks of a stage of which rank 1 is told to stop; started by test_ranks.py."""

import os
import signal
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from torch.distributed import distributed_c10d

from pipeline import stages
from pipeline.frozen import FrozenStage, Launch
from pipeline.stopping import Stopped
from tigan import distributed, preemption
from tigan.config import StageJob, StageResult, TrainingConfig


def stage(_: StageJob) -> StageResult:
    """Stops as a training does: one rank has the signal, all ranks agree."""
    timeout = distributed_c10d._get_default_store().timeout
    assert timeout == timedelta(minutes=10), f"the health check's time-out is left: {timeout}"
    if distributed.group().rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.agreed()
    raise preemption.Preempted


def main() -> None:
    """The stage as the launcher runs it, with a health check; prints how it ended."""
    stages._LEARNING["gan"] = stage
    frozen = FrozenStage(
        stage="gan",
        point="",
        science_hash="",
        stage_version=1,
        science={},
        launch=Launch(ranks=2, health_check_s=60),
        inputs={},
    )
    try:
        stages._run_learning(frozen, StageJob(Path(), None, TrainingConfig(), {}), lambda *_: None)
    except Stopped:
        print("stopped,", "group left" if dist.is_initialized() else "group ended")


if __name__ == "__main__":
    main()
