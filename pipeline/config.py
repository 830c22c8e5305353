"""A run's configuration: what is to be learned, at which points, and how this machine runs it."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from data_prep.config import (
    ClassSet,
    ConfigError,
    Document,
    MiniCityConfig,
    PackConfig,
    StrictModel,
    load_class_set,
    load_yaml,
    named_config,
    parse_model,
    set_key,
    set_override,
)
from pipeline.done import digest_of
from tigan.config import (
    EvaluateConfig,
    FinetuneConfig,
    GanConfig,
    SegmenterConfig,
    TrainingConfig,
)

StageName = Literal[
    "render_synthia",
    "render_cityscapes",
    "pack_synthia",
    "pack_cityscapes",
    "segmenter",
    "gan",
    "finetune",
    "evaluate",
    "report",
]
MINICITY = "minicity"
SWEPT_STAGES = ("segmenter", "gan", "finetune", "evaluate")
# Class sets matter to these; their colours only to the stages that draw pictures.
CLASS_STAGES = ("segmenter", "finetune", "evaluate", "report")
COLOUR_STAGES = ("evaluate", "report")


class DataConfig(StrictModel):
    """Where the images lie. Launch, not science: moving the data retrains nothing."""

    synthia_root: str | None = Field(
        default=None, min_length=1, description="folder in Synthia's layout, or 'minicity'"
    )
    cityscapes_root: str | None = Field(
        default=None, min_length=1, description="folder in Cityscapes' layout, or 'minicity'"
    )


class PackConfigs(StrictModel):
    """How each source is packed."""

    synthia: PackConfig
    cityscapes: PackConfig


class ReportConfig(StrictModel):
    """How the report is headed."""

    title: str = Field(default="Task-informed GAN", min_length=1, description="of the page")


class RunConfig(StrictModel):
    """Everything about a run but the machine: `configs/runs/NAME.yaml`."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run directory is runs/NAME"
    )
    data: DataConfig = DataConfig()
    minicity: MiniCityConfig = MiniCityConfig()
    pack: PackConfigs
    classes: str = Field(min_length=1, description="class set: configs/classes/NAME.yaml")
    segmenter: SegmenterConfig
    gan: GanConfig
    selection_fraction: float = Field(
        default=0.1, ge=0.0, lt=1.0, description="share of the real train images held out"
    )
    finetune: FinetuneConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    training: TrainingConfig = TrainingConfig()
    stage_training: dict[StageName, TrainingConfig] = Field(
        default={}, description="keys of 'training' that differ for one stage"
    )
    sweep: list[dict[str, Any]] = Field(
        default=[],
        description="blocks of dotted key -> value or list of values: the product within a block, "
        "the union over blocks; a value that is itself a list stands in a list of lists",
    )

    @model_validator(mode="after")
    def _crops_fit(self) -> "RunConfig":
        synthia, cityscapes = self.pack.synthia, self.pack.cityscapes
        zoom = self.segmenter.scale[1]
        if cityscapes.height % 4 or cityscapes.width % 4:
            raise ValueError(
                f"pack.cityscapes: height {cityscapes.height} and width {cityscapes.width}: whole "
                "images are translated, and the generators halve twice; use multiples of 4"
            )
        sizes = [
            ("segmenter.crop", self.segmenter.crop, "pack.synthia", synthia, zoom),
            ("gan.crop", self.gan.crop, "pack.synthia", synthia, 1.0),
            ("gan.crop", self.gan.crop, "pack.cityscapes", cityscapes, 1.0),
        ]
        for key, crop, pack_key, pack, scale in sizes:
            if crop[0] > pack.height * scale or crop[1] > pack.width * scale:
                raise ValueError(
                    f"{key}: {crop} does not fit into the images of {pack_key} "
                    f"([{pack.height}, {pack.width}]); expected [height, width] of at most that"
                )
        return self

    def training_of(self, stage: str) -> TrainingConfig:
        """'training' with what 'stage_training' restates for `stage`."""
        for name, own in self.stage_training.items():
            if name == stage:
                update = {key: getattr(own, key) for key in own.model_fields_set}
                return self.training.model_copy(update=update)
        return self.training


@dataclass(frozen=True)
class Point:
    """One setting of the swept keys: the whole config there, and what differs from the base."""

    config: RunConfig
    changed: Mapping[str, Any]

    def changed_in(self, stages: tuple[str, ...]) -> dict[str, Any]:
        """The changed keys that belong to any of `stages`."""
        return {k: v for k, v in self.changed.items() if k.partition(".")[0] in stages}


@dataclass(frozen=True)
class Run:
    """A validated run: its base config and its points (at least one)."""

    config: RunConfig
    points: list[Point]


def config_path(name_or_path: str, folder: str) -> Path:
    """A file as given, or `configs/FOLDER/NAME.yaml` for a bare name. Raises `ConfigError`."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    return named_config(folder, name_or_path)


def load_run(path: Path, assignments: list[str], sweep: Path | None = None) -> Run:
    """Read a run config, apply `--set` and `--sweep`, expand the points. Raises `ConfigError`."""
    document = load_yaml(path)
    if sweep is not None:
        blocks = load_yaml(sweep)
        if set(blocks.tree) != {"sweep"}:
            raise ConfigError(f"{sweep}: expected the one key 'sweep', found {list(blocks.tree)}")
        set_key(document, ("sweep",), blocks.tree["sweep"], str(sweep))
    for assignment in assignments:
        set_override(document, assignment)
    return expand(document)


def expand(document: Document) -> Run:
    """Validate the base config and every point of its sweep. Raises `ConfigError`."""
    base = parse_model(RunConfig, document)
    _classes_called(base.classes)
    points: list[Point] = []
    for number, block in enumerate(base.sweep, 1):
        place = f"{document.place(('sweep', number - 1))}: sweep block {number}"
        for values in _product(block, place):
            point = _point(document, base, values, place)
            if point not in points:
                points.append(point)
    return Run(base, points or [Point(base, {})])


def _product(block: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    """Every combination of the values of a block. Raises `ConfigError` for keys that cannot be."""
    choices: list[list[Any]] = []
    for key, value in block.items():
        stage, dot, _ = key.partition(".")
        if stage not in SWEPT_STAGES or not dot:
            raise ConfigError(
                f"{place}: {key}: cannot be swept; expected a key of one of "
                f"{', '.join(SWEPT_STAGES)}, such as finetune.alpha"
            )
        values = value if isinstance(value, list) else [value]
        if not values or any(isinstance(item, dict) for item in values):
            raise ConfigError(f"{place}: {key}: expected a value or a list, found {value!r}")
        choices.append(values)
    return [dict(zip(block, values, strict=True)) for values in itertools.product(*choices)]


def _point(document: Document, base: RunConfig, values: Mapping[str, Any], place: str) -> Point:
    """The config at one point, and those of its values that differ from the base."""
    own = parse_document_copy(document)
    for key, value in values.items():
        set_key(own, tuple(key.split(".")), value, f"{place}, {key}={value}")
    config = parse_model(RunConfig, own)
    changed = {
        key: value_at(config, key) for key in values if value_at(config, key) != value_at(base, key)
    }
    return Point(config, changed)


def parse_document_copy(document: Document) -> Document:
    """A copy of `document` whose keys can be set without changing it; the sweep is left out."""
    tree = json.loads(json.dumps({k: v for k, v in document.tree.items() if k != "sweep"}))
    return Document(tree, document.source, dict(document.places))


def value_at(config: RunConfig, dotted: str) -> Any:
    """The validated value of a dotted key, such as `gan.generator.width`."""
    tree: Any = config.model_dump(include={dotted.partition(".")[0]})
    for part in dotted.split("."):
        tree = tree[part]
    return tree


def science_hash(
    stage: str, science: Mapping[str, Any], version: int, upstream: Mapping[str, str]
) -> str:
    """SHA-256 over all that decides what a stage makes; 64 hex digits.

    `science` is the dump of the stage's model, `version` its STAGE_VERSION, `upstream` maps each
    role to the hash of that input. A class set counts by its contents, a file of backbone weights
    by its bytes. Raises `ConfigError` where such a file is missing.
    """
    document = {
        "stage": stage,
        "science": {**science, **_by_content(science)},
        "classes": _class_contents(stage, science),
        "version": version,
        "upstream": dict(upstream),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _by_content(science: Mapping[str, Any]) -> dict[str, Any]:
    """The segmenter's entry with its weights file, where there is one, replaced by a digest."""
    segmenter = science.get("segmenter")
    if segmenter is None or segmenter["pretrained"] == "none":
        return {}
    path = Path(segmenter["pretrained"])
    if not path.is_file():
        raise ConfigError(
            f"segmenter.pretrained: no file {path}; expected 'none' or a file of backbone weights"
        )
    return {"segmenter": {**segmenter, "pretrained": _file_digest(path, _stamp(path))}}


def _class_contents(stage: str, science: Mapping[str, Any]) -> Any:
    """The class set's contents; a list, since class c is the c-th entry. None where not used."""
    if stage not in CLASS_STAGES:
        return None
    classes = _classes_called(science["classes"])
    contents: list[Any] = [[name, ids] for name, ids in classes.classes.items()]
    if stage in COLOUR_STAGES:
        contents.append(classes.colours)
    return contents


def _classes_called(name: str) -> ClassSet:
    """The class set `configs/classes/NAME.yaml`. Raises `ConfigError`."""
    path = named_config("classes", name)
    return _class_set(name, path, _stamp(path))


def _stamp(path: Path) -> tuple[int, int]:
    """Changes when a file does: a sweep hashes hundreds of nodes, but reads each file once."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache
def _class_set(name: str, path: Path, stamp: tuple[int, int]) -> ClassSet:
    return load_class_set(name)


@lru_cache
def _file_digest(path: Path, stamp: tuple[int, int]) -> str:
    return digest_of(path).digest
