"""Partition profiles: how a machine runs the stages. Launch only: nothing here is ever hashed."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from data_prep.config import ConfigError, StrictModel, load_yaml, parse_model
from pipeline.config import StageName, config_path


@dataclass(frozen=True)
class Resources:
    """What a node is run with: ranks, threads per rank, processes of a rendering, slots taken."""

    ranks: int = 1
    threads: int = 1
    processes: int = 1
    slots: int = 1


class StageResources(StrictModel):
    """What one stage gets on this machine, where it differs from the profile's own keys."""

    ranks: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    processes: int | None = Field(default=None, ge=1)
    slots: int | None = Field(default=None, ge=1)


class LocalProfile(StrictModel):
    """`configs/partitions/local.yaml`: run the graph on this machine."""

    kind: Literal["local"] = Field(description="which engine runs the stages")
    run: str = Field(min_length=1, description="default run config: configs/runs/NAME.yaml")
    parallel: int = Field(default=2, ge=1, description="slots: stages that run side by side")
    ranks: int = Field(default=1, ge=1, description="processes of a training stage or a packing")
    threads: int = Field(default=1, ge=1, description="threads per rank")
    max_restarts: int = Field(
        default=3, ge=0, description="times that a stage which saved and stopped is started again"
    )
    stages: dict[StageName, StageResources] = Field(
        default={}, description="for single stages: ranks, threads, processes, slots"
    )

    def resources(self, stage: StageName) -> Resources:
        """What a node of `stage` gets; never more slots than there are."""
        own = self.stages.get(stage, StageResources())
        single = stage.startswith("render_") or stage == "report"
        return Resources(
            ranks=1 if single else own.ranks or self.ranks,
            threads=own.threads or self.threads,
            processes=own.processes or 1,
            slots=min(self.parallel, own.slots or 1),
        )


def find_mpiexec() -> str | None:
    """The mpiexec beside this Python, else the one on PATH; None where there is none."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.is_file() else shutil.which("mpiexec")


def load_profile(name: str) -> LocalProfile:
    """The profile `configs/partitions/NAME.yaml`, or a file. Raises `ConfigError` listing them."""
    try:
        path = config_path(name, "partitions")
    except ConfigError as error:
        raise ConfigError(f"--partition {name}: {error}") from None
    return parse_model(LocalProfile, load_yaml(path))
