"""A run's configuration: what is to be learned, at which points, and how this machine runs it."""

import copy
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from data_prep.config import (
    ConfigError,
    Document,
    MiniCityConfig,
    PackConfig,
    StrictModel,
    load_yaml,
    named_config,
    parse_model,
    set_key,
    set_override,
)
from pipeline.hashing import classes_called
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


class DataConfig(StrictModel):
    """Where the images lie. Launch, not science: moving the data retrains nothing."""

    synthia_root: str | None = Field(
        default=None, min_length=1, description="folder in Synthia's layout, or 'minicity'"
    )
    cityscapes_root: str | None = Field(
        default=None, min_length=1, description="folder in Cityscapes' layout, or 'minicity'"
    )
    subset: bool = Field(
        default=False,
        description="whether other numbers of images than those of the published data sets are "
        "meant; without it they are refused, since a download may have been cut short",
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
        if cityscapes.height % 4 or cityscapes.width % 4:
            raise ValueError(
                f"pack.cityscapes: height {cityscapes.height} and width {cityscapes.width}: whole "
                "images are translated, and the generators halve twice; use multiples of 4"
            )
        sizes = [
            ("gan.crop", self.gan.crop, "pack.synthia", synthia),
            ("gan.crop", self.gan.crop, "pack.cityscapes", cityscapes),
        ]
        for key, crop, pack_key, pack in sizes:
            if crop[0] > pack.height or crop[1] > pack.width:
                raise ValueError(
                    f"{key}: {crop} does not fit into the images of {pack_key} "
                    f"([{pack.height}, {pack.width}]); expected [height, width] of at most that"
                )
        return self

    @model_validator(mode="after")
    def _zoom_fits(self) -> "RunConfig":
        """A window of crop / zoom is cut out: the least zoom takes the largest."""
        pack, crop, least = self.pack.synthia, self.segmenter.crop, self.segmenter.scale[0]
        needed = max(crop[0] / pack.height, crop[1] / pack.width)
        if least < needed - 1e-9:
            raise ValueError(
                f"segmenter.scale: at the least zoom, {least}, segmenter.crop {crop} needs more "
                f"than the images of pack.synthia ([{pack.height}, {pack.width}]); expected a "
                f"least zoom of {needed:.4g} or more, or a smaller segmenter.crop"
            )
        return self

    @model_validator(mode="after")
    def _val_is_held_out(self) -> "RunConfig":
        if self.pack.synthia.val_images < 1:
            raise ValueError(
                f"pack.synthia.val_images: {self.pack.synthia.val_images}: the synthetic images "
                "are scored on their own val split; expected 1 or more"
            )
        if self.pack.cityscapes.val_images:
            raise ValueError(
                "pack.cityscapes.val_images: Cityscapes' layout has a val split; expected 0"
            )
        return self

    @model_validator(mode="after")
    def _minicity_is_large_enough(self) -> "RunConfig":
        """What would only be found after rendering, or after all the training before finetune."""
        rendered, held_out = self.minicity.synthia_images, self.pack.synthia.val_images
        if self.data.synthia_root == MINICITY and rendered <= held_out:
            raise ValueError(
                f"minicity.synthia_images: {rendered} leaves nothing to train on beside "
                f"pack.synthia.val_images ({held_out})"
            )
        left = int(self.minicity.train_images * (1 - self.selection_fraction))
        if self.data.cityscapes_root == MINICITY and self.finetune.labels > left:
            raise ValueError(
                f"finetune.labels: {self.finetune.labels} asked for, but about {left} train images "
                "are left beside the selection split (minicity.train_images, selection_fraction)"
            )
        return self

    def training_of(self, stage: StageName) -> TrainingConfig:
        """'training' with what 'stage_training' restates for `stage`."""
        own = self.stage_training.get(stage)
        if own is None:
            return self.training
        return self.training.model_copy(update=own.model_dump(include=own.model_fields_set))


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
    run = expand(document)
    for assignment in assignments:
        _refuse_if_swept(assignment, run.config.sweep)
    return run


def _refuse_if_swept(assignment: str, sweep: list[dict[str, Any]]) -> None:
    """Raise `ConfigError` where one `--set` gives a key that the sweep sets at its points."""
    given = Document({}, "--set")
    set_override(given, assignment)
    for key in (key for block in sweep for key in block):
        if _holds(given.tree, key):
            values = [value for block in sweep if key in block for value in _values(block[key])]
            shown = ", ".join(str(value) for value in dict.fromkeys(map(str, values)))
            raise ConfigError(
                f"--set {assignment}: {key} is swept: the run config's sweep sets it to {shown}; "
                "give the values you want in a file of your own with --sweep FILE, or leave the "
                "sweep out with --set 'sweep=[]' (the single base point)"
            )


def _holds(tree: Any, dotted: str) -> bool:
    """Whether nested mappings hold a dotted key."""
    for part in dotted.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def expand(document: Document) -> Run:
    """Validate the base config and every point of its sweep. Raises `ConfigError`."""
    base = parse_model(RunConfig, document)
    classes_called(base.classes)
    points: dict[str, Point] = {}  # by what differs from the base: blocks may overlap
    for number, block in enumerate(base.sweep, 1):
        place = f"{document.place(('sweep', number - 1))}: sweep block {number}"
        for values in _product(block, place):
            point = _point(document, base, values, place)
            points.setdefault(json.dumps(point.changed, sort_keys=True), point)
    return Run(base, list(points.values()) or [Point(base, {})])


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
        values = _values(value)
        if not values or any(isinstance(item, dict) for item in values):
            raise ConfigError(f"{place}: {key}: expected a value or a list, found {value!r}")
        choices.append(values)
    return [dict(zip(block, values, strict=True)) for values in itertools.product(*choices)]


def _values(value: Any) -> list[Any]:
    """The values of a swept key: one that is no list stands for itself."""
    return value if isinstance(value, list) else [value]


def _point(document: Document, base: RunConfig, values: Mapping[str, Any], place: str) -> Point:
    """The config at one point, and those of its values that differ from the base."""
    own = _without_sweep(document)
    for key, value in values.items():
        set_key(own, tuple(key.split(".")), value, f"{place}, {key}={value}")
    config = parse_model(RunConfig, own)
    changed = {
        key: value_at(config, key) for key in values if value_at(config, key) != value_at(base, key)
    }
    return Point(config, changed)


def _without_sweep(document: Document) -> Document:
    """A copy of `document` without its sweep; keys set in it do not change `document`."""
    tree = copy.deepcopy({k: v for k, v in document.tree.items() if k != "sweep"})
    return Document(tree, document.source, dict(document.places))


def value_at(config: RunConfig, dotted: str) -> Any:
    """The validated value of a dotted key, such as `gan.generator.width`."""
    tree: Any = config.model_dump(include={dotted.partition(".")[0]})
    for part in dotted.split("."):
        tree = tree[part]
    return tree
