"""The frozen `config.yaml` of a stage directory: written by the driver, read by the stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from data_prep import atomic
from data_prep.config import ConfigError, StrictModel, load_yaml, parse_model, parse_yaml
from pipeline import paths
from pipeline.config import RunConfig, StageName
from tigan.config import TrainingConfig


class InputRef(StrictModel):
    """One input: the directory of another stage, or the user's own data."""

    dir: str = Field(
        description="relative to the run directory, so that a run can be moved; the user's own "
        "data has an absolute path"
    )
    hash: str = Field(description="science hash of the stage, or fingerprint of the data")


class Launch(StrictModel):
    """How the stage is run here; never hashed."""

    training: TrainingConfig = TrainingConfig()
    ranks: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1, description="per rank")
    processes: int = Field(default=1, ge=1, description="of a rendering")
    subset: bool = Field(default=False, description="of a pack: see data.subset of a run")
    gpu: bool = Field(default=False, description="whether every rank must have a GPU of its own")
    health_check_s: int = Field(
        default=0, ge=0, description="seconds the ranks wait for each other at the start; 0: none"
    )


class FrozenStage(StrictModel):
    """The content of a stage's `config.yaml`."""

    stage: StageName
    point: str
    swept: dict[str, Any] = Field(
        default={}, description="the swept keys that the point stands for"
    )
    science_hash: str
    stage_version: int
    science: dict[str, Any]
    launch: Launch
    inputs: dict[str, InputRef]
    weights: str | None = Field(
        default=None, description="digest of the file of backbone weights, where one is read"
    )


# libyaml's emitter, where PyYAML was built with it: a sweep freezes hundreds of configs.
_Emitter: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_Emitter):
    """PyYAML's safe dumper for readers of YAML 1.2, such as our own strict loader.

    PyYAML leaves strings such as 1e5 unquoted: numbers by YAML 1.2, but not by its own 1.1.
    """


def _quoted_if_numeric(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if text[:1] in set("+-.0123456789") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _quoted_if_numeric)


def write_yaml(path: Path, tree: Mapping[str, Any], comment: str = "") -> None:
    """Write `tree` as YAML, atomically, such that our own strict loader reads back the same."""
    text = yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    atomic.write_text(path, comment + text)


def write_frozen(stage_dir: Path, frozen: FrozenStage) -> None:
    """Write `config.yaml`."""
    write_yaml(stage_dir / paths.CONFIG, frozen.model_dump(), "# Written by the driver.\n")


def read_frozen(stage_dir: Path) -> FrozenStage:
    """Read `config.yaml`. Raises `ConfigError` where it is missing or not ours."""
    return parse_model(FrozenStage, load_yaml(stage_dir / paths.CONFIG))


def read_frozen_tree(stage_dir: Path) -> dict[str, Any]:
    """`config.yaml` as it stands; empty where it is missing or damaged.

    Raises OSError where it is there, but cannot be read now: what was half made is then no other.
    """
    path = stage_dir / paths.CONFIG
    try:
        return parse_yaml(path.read_bytes().decode(), str(path)).tree
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, ConfigError):
        return {}


def write_run_record(run_dir: Path, config: RunConfig) -> None:
    """Write `run.yaml`: the run config as it was last run, for `--status`."""
    comment = "# The run config as it was last run, with --set and --sweep; read by --status.\n"
    write_yaml(run_dir / paths.RUN_CONFIG, _set_keys(config), comment)


def _set_keys(config: RunConfig) -> dict[str, Any]:
    """All keys of the config; of `stage_training` only those that were given."""
    given = config.model_dump(include={"stage_training"}, exclude_unset=True)
    return {**config.model_dump(), "stage_training": given.get("stage_training", {})}


def load_run_record(run_dir: Path) -> str | None:
    """The text of `run.yaml`; None where there is none."""
    try:
        return (run_dir / paths.RUN_CONFIG).read_text(encoding="utf-8")
    except OSError:
        return None
