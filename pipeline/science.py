"""What each stage's frozen `science` document is: the models of the data stages, and the table."""

from typing import Literal

from pydantic import Field

from data_prep.config import PackConfig, StrictModel
from tigan.config import (
    AdaptSegNetStage,
    EvaluateStage,
    FinetuneSegmenterStage,
    FinetuneStage,
    GanStage,
    OracleStage,
    ReportStage,
    SegmenterStage,
)


class RenderSynthiaStage(StrictModel):
    """What decides MiniCity's Synthia-style images."""

    seed: int
    height: int = Field(description="rows, pixels")
    width: int = Field(description="columns, pixels")
    images: int


class RenderCityscapesStage(StrictModel):
    """What decides MiniCity's Cityscapes-style images."""

    seed: int
    height: int = Field(description="rows, pixels")
    width: int = Field(description="columns, pixels")
    train_images: int
    val_images: int


class PackStage(StrictModel):
    """What decides a packed data set, besides the data."""

    kind: Literal["synthia", "cityscapes"] = Field(description="layout of the data")
    pack: PackConfig


SCIENCE: dict[str, type[StrictModel]] = {
    "render_synthia": RenderSynthiaStage,
    "render_cityscapes": RenderCityscapesStage,
    "pack_synthia": PackStage,
    "pack_cityscapes": PackStage,
    "segmenter": SegmenterStage,
    "gan": GanStage,
    "finetune": FinetuneStage,
    "finetune_segmenter": FinetuneSegmenterStage,
    "adaptsegnet": AdaptSegNetStage,
    "oracle": OracleStage,
    "evaluate": EvaluateStage,
    "report": ReportStage,
}
