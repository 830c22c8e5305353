"""Partition profiles: how a machine runs the stages. Launch only: nothing here is ever hashed."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from data_prep.config import REPO_ROOT, ConfigError, Document, StrictModel, load_yaml, parse_model
from pipeline.config import StageName, config_path


@dataclass(frozen=True)
class Resources:
    """What a node of the graph is run with.

    Ranks, threads per rank, processes of a rendering, slots taken, whether every rank must have a
    GPU, and how many seconds the ranks wait for each other at the start (0: no check).
    """

    ranks: int = 1
    threads: int = 1
    processes: int = 1
    slots: int = 1
    gpu: bool = False
    health_check_s: int = 0


def _is_single(stage: StageName) -> bool:
    """Whether a stage is one process by its nature."""
    return stage.startswith("render_") or stage == "report"


_ON_GPUS = (
    "segmenter",
    "gan",
    "finetune",
    "finetune_segmenter",
    "adaptsegnet",
    "oracle",
    "evaluate",
)


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
        return Resources(
            ranks=1 if _is_single(stage) else own.ranks or self.ranks,
            threads=own.threads or self.threads,
            processes=own.processes or 1,
            slots=min(self.parallel, own.slots or 1),
        )


class SlurmLayout(StrictModel):
    """The shape of a stage's jobs. In `stages`, only the keys that differ are given."""

    nodes: int = Field(default=1, ge=1, description="nodes of one job")
    tasks_per_node: int = Field(default=1, ge=1, description="ranks per node: one per GPU")
    cpus_per_task: int = Field(default=1, ge=1, description="physical cores of one rank")
    gpus_per_node: int = Field(default=0, ge=0, description="asked for as --gres=gpu:N; 0: none")
    time_min: int = Field(
        default=60, ge=1, description="time limit of one job, minutes; longer work is requeued"
    )
    points_per_node: int = Field(
        default=1,
        ge=1,
        description="points of a sweep that share one job, each as one rank of its own, so that a "
        "whole batch must fit one GPU; more than 1 needs nodes: 1",
    )
    processes: int = Field(default=1, ge=1, description="processes of a rendering")
    images_per_s: float | None = Field(
        default=None,
        gt=0,
        description="images per second of one job of this shape: for the estimate of node-hours",
    )

    @model_validator(mode="after")
    def _points_share_one_node(self) -> "SlurmLayout":
        if self.points_per_node > 1 and self.nodes > 1:
            raise ValueError(
                f"points_per_node: {self.points_per_node} points cannot share {self.nodes} nodes; "
                "set nodes to 1, or points_per_node to 1"
            )
        return self


# Options of sbatch that the driver itself gives -> the key of the profile to use instead.
_OWN_OPTIONS = {
    "account": "account",
    "cpus-per-task": "cpus_per_task",
    "gres": "gpus_per_node",
    "nodes": "nodes",
    "ntasks-per-node": "tasks_per_node",
    "partition": "partition",
    "signal": "signal_delay_s",
    "time": "time_min",
    **dict.fromkeys(
        ("array", "comment", "dependency", "error", "job-name", "open-mode", "output", "requeue"),
        "none: the driver lives by it",
    ),
}


class SlurmProfile(SlurmLayout):
    """`configs/partitions/NAME.yaml` of a partition of a Slurm cluster."""

    kind: Literal["slurm"] = Field(description="which engine runs the stages")
    run: str = Field(min_length=1, description="default run config: configs/runs/NAME.yaml")
    partition: str = Field(min_length=1, description="sbatch --partition")
    account: str | None = Field(
        default=None, min_length=1, description="whom Slurm charges; --account goes before it"
    )
    account_required: bool = Field(
        default=True, description="refuse to submit without an account, before the first sbatch"
    )
    environment: str = Field(
        min_length=1, description="shell file sourced by every job: in slurm/, or a path"
    )
    sbatch: dict[str, str | int | bool] = Field(
        default={}, description="further options of sbatch, without the dashes; true for a flag"
    )
    cpu_bind: str | None = Field(default=None, description="srun --cpu-bind; null: the site's own")
    mpi: str | None = Field(
        default=None, description="srun --mpi of the packing stages; null: the site's own"
    )
    host_suffix: str = Field(
        default="",
        description="added to the first node's name for the rendezvous: 'i' for JUWELS' InfiniBand",
    )
    signal_delay_s: int = Field(
        default=300, ge=10, description="seconds before the time limit at which ranks save"
    )
    max_requeues: int = Field(
        default=50, ge=0, description="times that a job which saved and stopped is requeued"
    )
    max_retries: int = Field(
        default=2,
        ge=0,
        description="times that a job whose ranks died is requeued, since it last stopped and "
        "saved; wrong input is never retried",
    )
    health_check_s: int = Field(
        default=120,
        ge=0,
        description="seconds the ranks wait for each other at the start; a node that does not "
        "come is excluded and the job requeued; 0: no check",
    )
    max_parallel: int = Field(default=64, ge=1, description="elements of one array at a time")
    max_array: int = Field(default=1000, ge=1, description="elements of one array: MaxArraySize")
    stages: dict[StageName, SlurmLayout] = Field(
        default={}, description="for single stages: any key of the job's shape"
    )

    def layout(self, stage: StageName) -> SlurmLayout:
        """The shape of a job of `stage`: the profile's, with what `stages` restates."""
        shape = {name: getattr(self, name) for name in SlurmLayout.model_fields}
        own = self.stages.get(stage)
        if own is not None:
            shape |= own.model_dump(include=own.model_fields_set)
        if _is_single(stage):
            shape |= {"nodes": 1, "tasks_per_node": 1, "points_per_node": 1}
        return SlurmLayout(**shape)

    def resources(self, stage: StageName) -> Resources:
        """What a node of the graph gets: one rank where several points share a job."""
        layout = self.layout(stage)
        ranks = 1 if layout.points_per_node > 1 else layout.nodes * layout.tasks_per_node
        return Resources(
            ranks=ranks,
            threads=layout.cpus_per_task,
            processes=layout.processes,
            gpu=stage in _ON_GPUS and layout.gpus_per_node > 0,
            health_check_s=self.health_check_s,
        )

    @property
    def environment_path(self) -> Path:
        """The shell file that every job sources."""
        path = Path(self.environment)
        return path.resolve() if "/" in self.environment else REPO_ROOT / "slurm" / path

    @model_validator(mode="after")
    def _options_are_free(self) -> "SlurmProfile":
        for option in self.sbatch:
            if own := _OWN_OPTIONS.get(option.replace("_", "-")):
                raise ValueError(f"sbatch: {option}: not here; the key of the profile is {own}")
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> "SlurmProfile":
        for stage in get_args(StageName):
            try:
                layout = self.layout(stage)
            except ValidationError as error:
                what = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"stages.{stage}: {what}") from None
            per_node = max(layout.tasks_per_node, layout.points_per_node)
            if stage in _ON_GPUS and 0 < layout.gpus_per_node < per_node:
                raise ValueError(
                    f"stages.{stage}: {per_node} ranks on a node (tasks_per_node, "
                    f"points_per_node), but gpus_per_node is {layout.gpus_per_node}; expected at "
                    "most one rank per GPU"
                )
            if self.signal_delay_s >= 60 * layout.time_min:
                raise ValueError(
                    f"signal_delay_s: {self.signal_delay_s} leaves {stage} no time to work: its "
                    f"time_min is {layout.time_min}; expected less than {60 * layout.time_min}"
                )
        return self


Profile = LocalProfile | SlurmProfile


def find_mpiexec() -> str | None:
    """The mpiexec beside this Python, else the one on PATH; None where there is none."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.is_file() else shutil.which("mpiexec")


def load_profile(name: str) -> Profile:
    """The profile `configs/partitions/NAME.yaml`, or a file. Raises `ConfigError` listing them."""
    try:
        path = config_path(name, "partitions")
    except ConfigError as error:
        raise ConfigError(f"--partition {name}: {error}") from None
    document = load_yaml(path)
    return parse_model(_model(document), document)


def _model(document: Document) -> Any:
    """The model that the profile's `kind` names. Raises `ConfigError` for another word."""
    models: dict[str, type[StrictModel]] = {"local": LocalProfile, "slurm": SlurmProfile}
    kind = document.tree.get("kind")
    if not isinstance(kind, str) or kind not in models:
        raise ConfigError(
            f"{document.place(('kind',))}: kind: {kind!r}; expected one of {', '.join(models)}"
        )
    return models[kind]
