"""A run's configuration: what is to be learned, at which points, and how this machine runs it."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from data_prep.config import (
    MiniCityConfig,
    PackConfig,
    StrictModel,
    named_config,
)
from tigan.config import (
    AdaptSegNetConfig,
    FinetuneConfig,
    FinetuneSegmenterConfig,
    GanConfig,
    Method,
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
    "finetune_segmenter",
    "adaptsegnet",
    "oracle",
    "evaluate",
    "report",
]
MINICITY = "minicity"
# Section of the run config -> the methods that cannot do without it.
_NEEDED_BY = {
    "finetune_segmenter": ("finetuned_segmenter", "both"),
    "adaptsegnet": ("adaptsegnet",),
}
_ON_REAL_IMAGES = ("finetuned_segmenter", "both", "adaptsegnet", "oracle")


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
    """How the report is headed, and how much it shows."""

    title: str = Field(default="Task-informed GAN", min_length=1, description="of the page")
    panels: int = Field(
        default=6, ge=0, description="val images shown: those of the best, median and worst gain"
    )


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
    finetune_segmenter: FinetuneSegmenterConfig | None = None
    adaptsegnet: AdaptSegNetConfig | None = None
    methods: list[Method] = Field(
        default=["source_only", "cyclegan", "cyclegan_matched", "task_informed"],
        min_length=1,
        description="the rows of the table; a point that is to have others sweeps this key",
    )
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
    def _methods_have_settings(self) -> "RunConfig":
        for section, methods in _NEEDED_BY.items():
            wanted = [method for method in self.methods if method in methods]
            if wanted and getattr(self, section) is None:
                raise ValueError(
                    f"{section}: not given, but methods lists {wanted[0]}; add the section, or "
                    "take the method out"
                )
        return self

    @model_validator(mode="after")
    def _real_images_fit(self) -> "RunConfig":
        """Some methods train f's kind of network on real images, with the crop and zoom of f."""
        users = [method for method in self.methods if method in _ON_REAL_IMAGES]
        real, crop, least = self.pack.cityscapes, self.segmenter.crop, self.segmenter.scale[0]
        needed = max(crop[0] / real.height, crop[1] / real.width)
        if users and least < needed - 1e-9:
            raise ValueError(
                f"methods: {users[0]} takes windows of segmenter.crop {crop} at zooms from {least} "
                f"out of the images of pack.cityscapes ([{real.height}, {real.width}]); expected "
                f"a least zoom (segmenter.scale) of {needed:.4g} or more, a smaller "
                "segmenter.crop, or that method taken out"
            )
        return self

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
        labels = self.finetune.labels
        if self.data.cityscapes_root == MINICITY and isinstance(labels, int) and labels > left:
            raise ValueError(
                f"finetune.labels: {labels} asked for, but about {left} train images "
                "are left beside the selection split (minicity.train_images, selection_fraction)"
            )
        return self

    def training_of(self, stage: StageName) -> TrainingConfig:
        """'training' with what 'stage_training' restates for `stage`."""
        own = self.stage_training.get(stage)
        if own is None:
            return self.training
        return self.training.model_copy(update=own.model_dump(include=own.model_fields_set))


def config_path(name_or_path: str, folder: str) -> Path:
    """A file as given, or `configs/FOLDER/NAME.yaml` for a bare name. Raises `ConfigError`."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    return named_config(folder, name_or_path)
