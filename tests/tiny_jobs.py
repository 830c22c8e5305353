"""Stage jobs small enough for unit tests, on the packed data of conftest.py."""

from pathlib import Path
from typing import Any

import torch

from tigan.config import (
    AdaptSegNetStage,
    EvaluateStage,
    FinetuneSegmenterStage,
    FinetuneStage,
    GanStage,
    OracleStage,
    SegmenterStage,
    StageJob,
    TrainingConfig,
)
from tigan.data import StreamBatch

SEGMENTER: dict[str, Any] = {
    "architecture": "unet",
    "width": 4,
    "crop": [16, 24],
    "scale": [0.8, 1.5],
    "colour_jitter": 0.2,
    "images": 24,
    "batch_size": 4,
    "optimizer": "adam",
    "learning_rate": 2e-3,
}
GAN: dict[str, Any] = {
    "crop": [16, 24],
    "images": 12,
    "decay_from": 6,
    "batch_size": 2,
    "pool_size": 3,  # full after two steps, so that a resumed run depends on it
    "generator": {"width": 4, "blocks": 1},
    "discriminator": {"width": 4, "layers": 1},
}
FINETUNE: dict[str, Any] = {
    "labels": 3,
    "alpha": 0.5,
    "images": 8,
    "decay_from": 4,
    "batch_size": 2,
    "labelled_per_step": 2,
}
FINETUNE_SEGMENTER: dict[str, Any] = {"images": 12, "batch_size": 2, "learning_rate": 1e-3}
ADAPTSEGNET: dict[str, Any] = {
    "images": 12,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "discriminator_learning_rate": 4e-3,
    "discriminator_width": 4,
    "lambda_adversarial": 0.1,
}


def job(
    folder: Path,
    science: SegmenterStage
    | GanStage
    | FinetuneStage
    | FinetuneSegmenterStage
    | AdaptSegNetStage
    | EvaluateStage,
    inputs: dict[str, Path],
    **training: int,
) -> StageJob:
    """A job in `folder` that checkpoints and logs often."""
    folder.mkdir(parents=True, exist_ok=True)
    launch = {"checkpoint_images": 4, "log_images": 4, "curve_points": 2, "curve_images": 2}
    return StageJob(folder, science, TrainingConfig(**(launch | training)), inputs)


def segmenter_science(**changes: Any) -> SegmenterStage:
    return SegmenterStage.model_validate(
        {"segmenter": SEGMENTER | changes, "classes": "cityscapes19"}
    )


def gan_science(**changes: Any) -> GanStage:
    return GanStage.model_validate({"gan": GAN | changes, "selection_fraction": 0.3})


def finetune_science(**changes: Any) -> FinetuneStage:
    return FinetuneStage.model_validate(
        {
            "gan": GAN,
            "selection_fraction": 0.3,
            "finetune": FINETUNE | changes,
            "classes": "cityscapes19",
        }
    )


def oracle_science(**changes: Any) -> OracleStage:
    return OracleStage.model_validate(
        {
            "segmenter": SEGMENTER | changes,
            "selection_fraction": 0.3,
            "classes": "cityscapes19",
        }
    )


def finetune_segmenter_science(**changes: Any) -> FinetuneSegmenterStage:
    """`changes` are of the stage's own keys; labels and selection split are those of `finetune`."""
    return FinetuneSegmenterStage.model_validate(
        {
            "finetune_segmenter": FINETUNE_SEGMENTER,
            "seed": 0,
            "draw": 0,
            "labels": FINETUNE["labels"],
            "selection_fraction": 0.3,
            "classes": "cityscapes19",
        }
        | changes
    )


def adaptsegnet_science(*, selection_fraction: float = 0.3, **changes: Any) -> AdaptSegNetStage:
    return AdaptSegNetStage.model_validate(
        {
            "adaptsegnet": ADAPTSEGNET | changes,
            "selection_fraction": selection_fraction,
            "classes": "cityscapes19",
        }
    )


def batch(images: int, *, seed: int, labelled: bool = False) -> StreamBatch:
    """Random pixels 16 x 24, and labels of 19 classes with some ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, 16, 24), generator=generator).byte()
    labels = torch.randint(0, 22, (images, 16, 24), generator=generator).byte()
    labels[labels > 18] = 255
    return StreamBatch(pixels, labels if labelled else None, [f"{seed}_{i}" for i in range(images)])


def same_state(a: Any, b: Any) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same_state(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
