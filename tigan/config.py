"""Stage models: every choice that changes what is learned, with its source. Torch-free.

'Published' means the poster or paper (arXiv 2208.08815); 'CycleGAN' means Zhu et al. 2017 and
its public code; all else is our own choice and says so. Sizes are [height, width] in pixels,
batch sizes are global (over all ranks), durations are counted in images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_prep.config import StrictModel

Method = Literal[
    "source_only",
    "cyclegan",
    "cyclegan_matched",
    "task_informed",
    "finetuned_segmenter",
    "both",
    "adaptsegnet",
    "oracle",
]
Size = Annotated[list[int], Field(min_length=2, max_length=2)]
Precision = Literal["fp32", "bf16"]
_PRECISION = (
    "autocast type of the forward pass; fp32 as PyTorch's defaults have it: GPUs from Ampere on "
    "compute convolutions in TF32"
)

Labels = Annotated[int, Field(ge=1)] | Literal["all"]


class SegmenterConfig(StrictModel):
    """f: trained from scratch on synthetic images only (published), then frozen for ever."""

    seed: int = Field(default=0, ge=0, description="weights, data order, augmentation, dropout")
    architecture: Literal["deeplabv3", "unet"] = Field(
        default="deeplabv3",
        description="published: deeplabv3; unet is for images too small for its stride of 8",
    )
    backbone: Literal["resnet101", "resnet50", "mobilenet_v3_large"] = Field(
        default="resnet101", description="of deeplabv3 only; published: resnet101"
    )
    width: int = Field(default=24, ge=4, description="of unet only: channels at full resolution")
    pretrained: str = Field(
        default="none",
        min_length=1,
        description="published: none (from scratch); else a file with backbone weights",
    )
    crop: Size = Field(description="training crop")
    scale: list[float] = Field(
        default=[1.0, 1.0], min_length=2, max_length=2, description="random zoom, [least, most]"
    )
    flip: bool = Field(default=True, description="random left-right flip")
    colour_jitter: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="random brightness, contrast and saturation by up to this share; 0 is off. "
        "It narrows the domain gap by itself, so it must be the same in every row of a table",
    )
    images: int = Field(ge=1, description="training length, in images seen")
    batch_size: int = Field(ge=2, description="global; 2 at least, for BatchNorm")
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="ours")
    learning_rate: float = Field(default=0.01, gt=0, description="ours; start of the poly decay")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="sgd momentum, adam's beta1")
    weight_decay: float = Field(default=5e-4, ge=0)
    poly_power: float = Field(default=0.9, ge=0, description="lr * (1 - images / total) ** power")
    precision: Precision = Field(default="fp32", description=_PRECISION)

    @model_validator(mode="after")
    def _consistent(self) -> "SegmenterConfig":
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale: expected 0 < least <= most, found {self.scale}")
        if self.architecture == "unet" and self.pretrained != "none":
            raise ValueError("pretrained: unet has no pretrained backbone; set pretrained: none")
        return self


class GeneratorConfig(StrictModel):
    """ResNet generator (Johnson et al. 2016, as in CycleGAN), with three options of ours."""

    width: int = Field(default=64, ge=4, description="channels at full resolution (CycleGAN: 64)")
    blocks: int = Field(default=9, ge=1, description="residual blocks (CycleGAN: 9, or 6 at 128)")
    upsample: Literal["transposed", "nearest"] = Field(
        default="transposed", description="CycleGAN: transposed; nearest avoids checkerboards"
    )
    start: Literal["random", "identity"] = Field(
        default="random",
        description="CycleGAN: random; identity gives tanh(atanh(x) + net(x)) with net near 0 at "
        "first, which a short training needs",
    )
    skip: bool = Field(
        default=False, description="full-resolution skip from the first to the last convolution"
    )


class DiscriminatorConfig(StrictModel):
    """PatchGAN (Isola et al. 2017): raw logits, one per patch."""

    width: int = Field(default=64, ge=4, description="channels of the first layer (CycleGAN: 64)")
    layers: int = Field(
        default=3, ge=1, le=5, description="strided layers; 3 sees 70 px (CycleGAN), 2 34, 1 16"
    )


class GanConfig(StrictModel):
    """CycleGAN real <-> synthetic, without labels (published); loss weights are CycleGAN's."""

    seed: int = Field(default=0, ge=0, description="weights, data order, augmentation, pools")
    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    crop: Size = Field(description="training crop")
    flip: bool = Field(default=True, description="random left-right flip")
    images: int = Field(ge=1, description="training length, in images of each domain")
    decay_from: int = Field(
        ge=0, description="images with constant lr; then linear to 0 (CycleGAN: half of all)"
    )
    batch_size: int = Field(default=1, ge=1, description="global, per domain (CycleGAN: 1)")
    learning_rate: float = Field(default=2e-4, gt=0, description="Adam (CycleGAN)")
    betas: list[float] = Field(default=[0.5, 0.999], min_length=2, max_length=2)
    lambda_cycle: float = Field(default=10.0, ge=0, description="L1 of both cycles (CycleGAN)")
    lambda_identity: float = Field(
        default=0.5, ge=0, description="L1 of the identity terms, times lambda_cycle (CycleGAN)"
    )
    pool_size: int = Field(
        default=50, ge=0, description="image history for the discriminators, per rank (CycleGAN)"
    )
    precision: Precision = Field(default="fp32", description=_PRECISION)

    @model_validator(mode="after")
    def _consistent(self) -> "GanConfig":
        if any(length % 4 for length in self.crop):
            raise ValueError(f"crop: {self.crop}: the generators halve twice; use multiples of 4")
        if self.decay_from > self.images:
            raise ValueError(
                f"decay_from: {self.decay_from} is past the end; expected at most gan.images "
                f"({self.images})"
            )
        return self


class FinetuneConfig(StrictModel):
    """G_S finetuned with L = (1 - alpha) LSGAN + alpha gamma CE(f(G_S(I)), l) (published)."""

    seed: int = Field(default=0, ge=0, description="data order, augmentation, pools")
    draw: int = Field(default=0, ge=0, description="seed of the permutation that picks the labels")
    labels: Labels = Field(
        description="labelled real images, nested over sizes: 14 are the first of the 29; 'all' "
        "is all train images but the selection split"
    )
    alpha: float = Field(
        ge=0.0, le=1.0, description="weight of the task loss; 0 is plain CycleGAN, bit for bit"
    )
    gamma: float = Field(default=10.0, gt=0, description="scale of the cross-entropy")
    images: int = Field(ge=1, description="length, in unlabelled images of each domain")
    decay_from: int = Field(ge=0, description="images with constant lr; then linear to 0")
    batch_size: int = Field(default=1, ge=1, description="global; unlabelled images per domain")
    labelled_per_step: int = Field(default=1, ge=1, description="global; labelled images per step")
    learning_rate: float = Field(default=2e-4, gt=0, description="Adam, started anew")
    alpha_scales: Literal["adversarial", "all"] = Field(
        default="adversarial",
        description="what (1 - alpha) scales on labelled images: the formula's LSGAN term only, or "
        "their cycle and identity terms too",
    )
    unlabelled: bool = Field(
        default=True,
        description="unlabelled real images go through the same step with the plain loss; false "
        "finetunes on the labelled ones alone",
    )
    train_discriminators: bool = Field(default=True, description="discriminators train on")

    @model_validator(mode="after")
    def _consistent(self) -> "FinetuneConfig":
        if self.decay_from > self.images:
            raise ValueError(
                f"decay_from: {self.decay_from} is past the end; expected at most "
                f"finetune.images ({self.images})"
            )
        return self


class FinetuneSegmenterConfig(StrictModel):
    """f itself trained on with the labels: what one would do without the method (a baseline).

    All choices are ours. Labels, draw and seed are those of `finetune`, so that the rows pair.
    """

    images: int = Field(ge=1, description="training length, in images seen")
    batch_size: int = Field(default=8, ge=2, description="global; 2 at least, for BatchNorm")
    learning_rate: float = Field(
        gt=0, description="start of the poly decay; f's own optimizer, started anew"
    )


class AdaptSegNetConfig(StrictModel):
    """Output-space adaptation of f (Tsai et al., CVPR 2018), unpaired and without labels.

    f is trained on with the cross-entropy on synthetic images, and an adversarial term that makes
    its outputs on real images look to a discriminator like those on synthetic ones: their
    single-level variant. 'Tsai' marks the values of the paper and its public code.
    """

    seed: int = Field(default=0, ge=0, description="discriminator, data order, augmentation")
    images: int = Field(ge=1, description="training length, in images of each domain")
    batch_size: int = Field(
        default=2, ge=2, description="global, per domain (Tsai: 1); 2: BatchNorm"
    )
    learning_rate: float = Field(
        default=2.5e-4, gt=0, description="of f, its own optimizer, poly decay (Tsai: SGD, 2.5e-4)"
    )
    discriminator_learning_rate: float = Field(
        default=1e-4, gt=0, description="Adam, betas 0.9 and 0.99, the same decay (Tsai)"
    )
    discriminator_width: int = Field(default=64, ge=4, description="first layer's channels (Tsai)")
    lambda_adversarial: float = Field(
        default=1e-3, ge=0, description="weight of the adversarial term (Tsai, single level)"
    )


class TrainingConfig(StrictModel):
    """Cadence and loading: changes nothing of what is learned, so it is never hashed."""

    checkpoint_images: int = Field(default=2000, ge=1, description="images between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=2, description="newest checkpoints kept")
    log_images: int = Field(default=100, ge=1, description="images between metrics lines")
    curve_points: int = Field(
        default=10, ge=0, description="mIoU measurements on held-out images during training"
    )
    curve_images: int = Field(default=32, ge=1, description="held-out images per measurement")
    num_workers: int = Field(default=0, ge=0, description="loader processes per rank; 0 is inline")


SELECTION_FRACTION = Field(
    default=0.1,
    ge=0.0,
    lt=1.0,
    description="last share of every city's train images, never trained on: the split on which "
    "choices are made",
)


class SegmenterStage(StrictModel):
    """What the stage 'segmenter' learns from."""

    segmenter: SegmenterConfig
    classes: str = Field(description="class set: configs/classes/NAME.yaml")


class GanStage(StrictModel):
    """What the stage 'gan' learns from."""

    gan: GanConfig
    selection_fraction: float = SELECTION_FRACTION


class FinetuneStage(GanStage):
    """What the stage 'finetune' learns from: the gan's settings hold where not restated."""

    finetune: FinetuneConfig
    classes: str = Field(description="class set: configs/classes/NAME.yaml")


class OracleStage(SegmenterStage):
    """A segmenter like f, trained on all labelled real images but the selection split."""

    selection_fraction: float = SELECTION_FRACTION


class FinetuneSegmenterStage(StrictModel):
    """What the stage 'finetune_segmenter' learns from."""

    finetune_segmenter: FinetuneSegmenterConfig
    seed: int = Field(ge=0, description="data order, augmentation")
    draw: int = Field(ge=0, description="seed of the permutation that picks the labels")
    labels: Labels
    selection_fraction: float = SELECTION_FRACTION
    classes: str = Field(description="class set: configs/classes/NAME.yaml")


class AdaptSegNetStage(StrictModel):
    """What the stage 'adaptsegnet' learns from."""

    adaptsegnet: AdaptSegNetConfig
    selection_fraction: float = SELECTION_FRACTION
    classes: str = Field(description="class set: configs/classes/NAME.yaml")


class EvaluateStage(StrictModel):
    """What the stage 'evaluate' scores, and what the row is called."""

    classes: str = Field(description="class set: configs/classes/NAME.yaml")
    method: Method
    selection_fraction: float = SELECTION_FRACTION


class ReportStage(StrictModel):
    """What the stage 'report' is about."""

    title: str = Field(default="Task-informed GAN", min_length=1, description="heading of the page")
    panels: int = Field(default=6, ge=0, description="val images shown as picture panels")
    classes: str = Field(description="class set: configs/classes/NAME.yaml")


@dataclass(frozen=True)
class StageJob:
    """What a stage's `run(job)` is given; it reads its inputs from disk and writes to `stage_dir`.

    `inputs` maps a role to the directory of a finished stage:
    segmenter: synthetic; gan: synthetic, real; finetune: synthetic, real, segmenter, gan;
    oracle: real; adaptsegnet: synthetic, real, segmenter; finetune_segmenter: real, segmenter and,
    where f is trained on translated images, translator; evaluate: synthetic, real, segmenter (the
    directory of any stage that makes one) and, where images are translated, translator (the
    directory of a gan or finetune stage); report: the name of every node of the graph, such as
    'gan' or 'evaluate/cyclegan', whether it is finished or not.
    """

    stage_dir: Path
    science: Any
    training: TrainingConfig
    inputs: Mapping[str, Path]


@dataclass(frozen=True)
class StageResult:
    """What a stage made: the files that count (relative to `stage_dir`), and figures to show."""

    outputs: list[str]
    figures: dict[str, float | int | str] = field(default_factory=dict)
