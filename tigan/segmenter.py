"""Stage 'segmenter': f, trained from scratch on synthetic images only, then frozen for ever."""

from functools import partial

import numpy as np
import torch

from data_prep.config import ClassSet, load_class_set
from data_prep.shards import PackedSplit
from tigan import checkpoint, distributed, losses, predict, scores
from tigan.config import SegmenterConfig, SegmenterStage, StageJob, StageResult
from tigan.data import Batch, StepBatches, Stream, class_table
from tigan.loop import Training, fit, seed_generators
from tigan.networks import Segmenter

_SEED_STREAM = 1  # keeps this stage's random streams apart from other stages' with equal seeds


def run(job: StageJob) -> StageResult:
    """Train f on the train split of the synthetic data; write its weights."""
    science: SegmenterStage = job.science
    config, classes = science.segmenter, load_class_set(science.classes)
    training = build(config, classes, job)
    fitted = fit(training, job)
    if distributed.group().is_first:
        state = training.modules["segmenter"].state_dict()
        path = job.stage_dir / predict.SEGMENTER_WEIGHTS
        checkpoint.save_weights(path, fitted.token, science.model_dump(), {"segmenter": state})
    return StageResult([predict.SEGMENTER_WEIGHTS], fitted.figures)


def build(config: SegmenterConfig, classes: ClassSet, job: StageJob) -> Training:
    """f, its optimizer, data and step."""
    group = distributed.group()
    seed = (config.seed, _SEED_STREAM)
    seed_generators(*seed)
    split = PackedSplit(job.inputs["synthetic"], "train")
    segmenter = _new_segmenter(config, len(classes.classes), split).to(group.device)
    optimizer = _optimizer(config, segmenter)
    stream = Stream(
        split,
        np.arange(len(split)),
        config.batch_size,
        seed,
        (config.crop[0], config.crop[1]),
        config.flip,
        (config.scale[0], config.scale[1]),
        config.colour_jitter,
        class_table(split, classes),
    )
    return Training(
        modules={"segmenter": segmenter},
        optimizers={"segmenter": optimizer},
        batches=StepBatches({"synthetic": stream}),
        step=partial(_step, segmenter, optimizer, config.precision),
        learning_rate=partial(learning_rate, config),
        images=config.images,
        batch_size=config.batch_size,
        seed=seed,
        measure=partial(_val_miou, segmenter, job, classes),
    )


def _new_segmenter(config: SegmenterConfig, classes: int, split: PackedSplit) -> Segmenter:
    """f before training; it normalises as its backbone was trained, else by the data's own."""
    if config.pretrained != "none":
        return Segmenter(config, classes)
    std = [max(value, 1 / 255) for value in split.statistics.channel_std]  # 0: a constant channel
    return Segmenter(config, classes, split.statistics.channel_mean, std)


def _optimizer(config: SegmenterConfig, segmenter: Segmenter) -> torch.optim.Optimizer:
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


def _step(
    segmenter: Segmenter,
    optimizer: torch.optim.Optimizer,
    precision: str,
    batch: Batch,
    detailed: bool,
) -> dict[str, float]:
    """One update of f."""
    device = distributed.group().device
    part = batch["synthetic"]
    assert part.labels is not None
    segmenter.train()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        logits = segmenter(part.images.to(device, non_blocking=True).float() / 255)
    loss = losses.cross_entropy(logits, part.labels.to(device))
    losses.check_finite({"cross_entropy": loss}, part.keys)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    distributed.average_gradients(segmenter.parameters())
    losses.check_gradients(segmenter.parameters(), part.keys)
    optimizer.step()
    return {"cross_entropy": float(loss.detach())} if detailed else {}


def _val_miou(segmenter: Segmenter, job: StageJob, classes: ClassSet) -> dict[str, float]:
    """mIoU on some synthetic val images at the packed size: a curve, nothing is chosen by it."""
    split = PackedSplit(job.inputs["synthetic"], "val")
    segmenter.eval()
    confusion = predict.confusion(
        segmenter,
        split,
        predict.evenly(len(split), job.training.curve_images),
        class_table(split, classes),
        len(classes.classes),
    )
    return {"miou": scores.mean_iou(confusion)}
