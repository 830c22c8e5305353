"""Training a segmenter: what the stages that make one share.

A SegmenterConfig says how: of f itself, or of f trained on with another length, batch size and
learning rate (`load`). Images for f are in [0, 1].
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_prep.config import ClassSet
from data_prep.shards import PackedSplit
from tigan import checkpoint, distributed, losses, predict, scores
from tigan.config import SegmenterConfig, StageJob, StageResult
from tigan.data import Batch, Indices, Stream, StreamBatch, class_table, train_and_selection
from tigan.loop import Fitted, Training
from tigan.networks import Generator, Segmenter


def load(job: StageJob, classes: ClassSet, **changes: Any) -> tuple[Segmenter, SegmenterConfig]:
    """f of the input 'segmenter', to be trained on, and its settings with some `changes`.

    Raises ValueError where it was trained on another number of classes.
    """
    segmenter = predict.load_segmenter(job.inputs["segmenter"], classes).segmenter
    # The backbone's file need not exist any more: its weights are those of f, trained on.
    settings = _recorded(job) | {"pretrained": "none"} | changes
    return segmenter.requires_grad_(True), SegmenterConfig.model_validate(settings)


def _recorded(job: StageJob) -> dict[str, Any]:
    """The settings that the file of the input 'segmenter' records."""
    config, _ = checkpoint.load_weights(job.inputs["segmenter"] / predict.SEGMENTER_WEIGHTS)
    return dict(config["segmenter"])


def optimizer(config: SegmenterConfig, segmenter: Segmenter) -> torch.optim.Optimizer:
    """The optimizer of all weights of f."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            segmenter.parameters(),
            config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
    return torch.optim.Adam(
        segmenter.parameters(),
        config.learning_rate,
        betas=(config.momentum, 0.999),
        weight_decay=config.weight_decay,
    )


def learning_rate(config: SegmenterConfig, images: int) -> float:
    """Poly decay; the base is clamped, since a negative one gives complex numbers."""
    return config.learning_rate * max(0.0, 1 - images / config.images) ** config.poly_power


def stream(
    config: SegmenterConfig,
    split: PackedSplit,
    indices: Indices,
    seed: tuple[int, ...],
    table: NDArray[np.uint8] | None,
) -> Stream:
    """`indices` of a split, augmented as f's training images are; with labels where a `table`."""
    return Stream(
        split,
        indices,
        config.batch_size,
        seed,
        (config.crop[0], config.crop[1]),
        config.flip,
        (config.scale[0], config.scale[1]),
        config.colour_jitter,
        table,
    )


def step(
    segmenter: Segmenter,
    optimizer: torch.optim.Optimizer,
    precision: str,
    batch: Batch,
    detailed: bool,
) -> dict[str, float]:
    """One update of f with the cross-entropy, on the labelled images of the only stream."""
    (part,) = batch.values()
    segmenter.train()
    loss = cross_entropy(logits(segmenter, precision, part), part)
    losses.check_finite({"cross_entropy": loss}, part.keys)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    update(optimizer, segmenter.parameters(), part.keys)
    return {"cross_entropy": float(loss.detach())} if detailed else {}


def logits(segmenter: Segmenter, precision: str, part: StreamBatch) -> Tensor:
    """f of u8 images, [n, classes, H, W], on this rank's device."""
    device = distributed.group().device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return segmenter(part.images.to(device, non_blocking=True).float() / 255)


def cross_entropy(logits: Tensor, part: StreamBatch) -> Tensor:
    """`losses.cross_entropy` with the labels of `part`."""
    assert part.labels is not None
    return losses.cross_entropy(logits, part.labels.to(logits.device))


def update(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], keys: list[str]
) -> None:
    """Average the gradients of `parameters` over ranks, check them, one optimizer step."""
    parameters = list(parameters)
    distributed.average_gradients(parameters)
    losses.check_gradients(parameters, keys)
    optimizer.step()


def miou(
    segmenter: Segmenter,
    generator: Generator | None,
    split: PackedSplit,
    indices: Indices,
    job: StageJob,
    classes: ClassSet,
) -> dict[str, float]:
    """A curve point: mIoU at the packed size on some of `indices`. A collective.

    With a `generator` of images that it translates, as 8-bit files would hold them.
    """

    def predictor(image: Tensor) -> Tensor:
        shown = image if generator is None else predict.translate(generator, image, uint8=True)
        return segmenter(shown)

    segmenter.eval()
    found = predict.confusions(
        predictor,
        split,
        indices[predict.evenly(len(indices), job.training.curve_images)],
        class_table(split, classes),
        len(classes.classes),
    )
    return {"miou": scores.mean_iou(found.sum(0))}


def selection_curve(
    segmenter: Segmenter,
    generator: Generator | None,
    fraction: float,
    job: StageJob,
    classes: ClassSet,
) -> Callable[[], dict[str, float]] | None:
    """Measures `miou` on the selection split of the real data; None where there is none."""
    split = PackedSplit(job.inputs["real"], "train")
    _, selection = train_and_selection(split, fraction)
    if len(selection) == 0:
        return None
    return partial(miou, segmenter, generator, split, selection, job, classes)


def write(
    training: Training, science: dict[str, Any], job: StageJob, fitted: Fitted
) -> StageResult:
    """Write the weights of f; what a stage that makes a segmenter results in.

    They describe themselves by `science`, which `load` and the scores read: where it has no key
    'segmenter', f was trained on, and its settings are those of the input 'segmenter'.
    """
    if distributed.group().is_first:
        if "segmenter" not in science:
            science = science | {"segmenter": _recorded(job)}
        states = {"segmenter": training.modules["segmenter"].state_dict()}
        path = job.stage_dir / predict.SEGMENTER_WEIGHTS
        checkpoint.save_weights(path, fitted.token, science, states)
    return StageResult([predict.SEGMENTER_WEIGHTS], fitted.figures)
