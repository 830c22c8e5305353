"""Finished networks at work: loading, translating, predicting, one confusion matrix per split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data_prep.config import ClassSet
from data_prep.shards import PackedSplit
from tigan import checkpoint, distributed, scores
from tigan.config import GeneratorConfig, SegmenterConfig
from tigan.data import Indices
from tigan.networks import FrozenSegmenter, Generator, Segmenter

SEGMENTER_WEIGHTS = "segmenter.pt"  # of a segmenter stage
TRANSLATOR_WEIGHTS = "translator.pt"  # of a gan or finetune stage: all four networks

# images [1, 3, H, W] in [0, 1] -> logits [1, classes, H, W]
Predictor = Callable[[Tensor], Tensor]


def evenly(count: int, wanted: int) -> Indices:
    """Up to `wanted` indices spread evenly over 0..count-1."""
    return np.linspace(0, count - 1, min(count, wanted)).astype(np.int64)


def image_tensor(image: NDArray[np.uint8]) -> Tensor:
    """u8 [H, W, 3] -> float [1, 3, H, W] in [0, 1], on this rank's device."""
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return tensor[None].to(distributed.group().device).float() / 255


@torch.no_grad()
def classes_at(predictor: Predictor, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Class indices int64 [H, W] at `size`: the LOGITS are upsampled, then the argmax is taken."""
    logits = predictor(image).float()
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits.argmax(1)[0]


def confusions(
    predictor: Predictor,
    split: PackedSplit,
    indices: Indices,
    table: NDArray[np.uint8],
    classes: int,
    *,
    full_size: bool = False,
) -> Tensor:
    """The confusion matrix of each of `indices`, int64 [n, classes, classes]. A collective.

    The ranks take every n-th image, so none is counted twice (DistributedSampler pads) and none
    is dropped. `full_size` scores against the labels as they came, else at the packed size.
    """
    group = distributed.group()
    found = torch.zeros(len(indices), classes, classes, dtype=torch.int64, device=group.device)
    for place in range(group.rank, len(indices), group.world_size):
        index = int(indices[place])
        ids = split.labels_full(index) if full_size else split.labels(index)
        labels = torch.from_numpy(table[ids]).to(group.device)
        image = image_tensor(split.image(index))
        predicted = classes_at(predictor, image, (labels.shape[0], labels.shape[1]))
        found[place] = scores.confusion_matrix(labels, predicted, classes)
    return distributed.all_sum(found).cpu()


def load_segmenter(stage_dir: Path, classes: ClassSet) -> FrozenSegmenter:
    """f of a finished segmenter stage, frozen.

    Raises ValueError where it was trained on another number of classes.
    """
    config, states = checkpoint.load_weights(stage_dir / SEGMENTER_WEIGHTS)
    # Its weights come from the file: a file with backbone weights need not exist any more.
    settings = SegmenterConfig.model_validate(config["segmenter"] | {"pretrained": "none"})
    segmenter = Segmenter(settings, len(classes.classes))
    try:
        segmenter.load_state_dict(states["segmenter"])
    except RuntimeError as error:
        raise ValueError(
            f"{stage_dir / SEGMENTER_WEIGHTS}: trained on class set {config['classes']!r}, which "
            f"does not fit {classes.name!r}: {error}"
        ) from None
    return FrozenSegmenter(segmenter.to(distributed.group().device))


def load_generator(stage_dir: Path) -> tuple[dict[str, Any], Generator]:
    """G_S of a finished gan or finetune stage, with that stage's science config."""
    config, states = checkpoint.load_weights(stage_dir / TRANSLATOR_WEIGHTS)
    generator = Generator(GeneratorConfig.model_validate(config["gan"]["generator"]))
    generator.load_state_dict(states["to_synthetic"])
    return config, generator.to(distributed.group().device).eval().requires_grad_(False)


def translate(generator: Generator, image: Tensor, *, uint8: bool) -> Tensor:
    """G_S(image), both in [0, 1]; `uint8` rounds to the 256 steps of an image file."""
    translated = (generator(image * 2 - 1) + 1) / 2
    return (translated * 255).round() / 255 if uint8 else translated


def translated(segmenter: FrozenSegmenter, generator: Generator, *, uint8: bool) -> Predictor:
    """f on G_S(image)."""
    return lambda image: segmenter.logits(translate(generator, image, uint8=uint8))
