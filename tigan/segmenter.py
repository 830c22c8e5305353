"""Stages 'segmenter' and 'oracle': a segmenter trained from scratch.

'segmenter' is f, trained on synthetic images only, then frozen for ever. 'oracle' is the same
training, from the same start, on the labelled real images: what f could reach with all labels.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from data_prep.config import ClassSet, load_class_set
from data_prep.shards import PackedSplit
from tigan import distributed, segmentation
from tigan.config import OracleStage, SegmenterConfig, SegmenterStage, StageJob, StageResult
from tigan.data import Indices, StepBatches, class_table, train_and_selection
from tigan.loop import Training, fit, seed_generators
from tigan.networks import Segmenter

_SEED_STREAM = 1  # keeps this stage's random streams apart from other stages' with equal seeds


def run(job: StageJob) -> StageResult:
    """Train a segmenter on the train split of the synthetic or the real data; write its weights.

    The oracle leaves out the selection split, on which its curve is measured; the other curve is
    measured on synthetic val images. Nothing is chosen by either.
    """
    science: SegmenterStage = job.science
    training = build(science, job)
    return segmentation.write(training, science.model_dump(), job, fit(training, job))


def build(science: SegmenterStage, job: StageJob) -> Training:
    """The segmenter, its optimizer, data and step."""
    config, classes = science.segmenter, load_class_set(science.classes)
    seed = (config.seed, _SEED_STREAM)
    seed_generators(*seed)
    images = _images(science, job)
    segmenter = _new_segmenter(config, len(classes.classes), images.split)
    segmenter = segmenter.to(distributed.group().device)
    optimizer = segmentation.optimizer(config, segmenter)
    table = class_table(images.split, classes)
    stream = segmentation.stream(config, images.split, images.indices, seed, table)
    return Training(
        modules={"segmenter": segmenter},
        optimizers={"segmenter": optimizer},
        batches=StepBatches({images.role: stream}),
        step=partial(segmentation.step, segmenter, optimizer, config.precision),
        learning_rate=partial(segmentation.learning_rate, config),
        images=config.images,
        batch_size=config.batch_size,
        seed=seed,
        measure=_curve(segmenter, science, job, classes),
    )


class _Images(NamedTuple):
    """What is trained on: the input's role, its train split, and which images of it."""

    role: str
    split: PackedSplit
    indices: Indices


def _images(science: SegmenterStage, job: StageJob) -> _Images:
    """All synthetic train images; for the oracle the real ones less the selection split."""
    if isinstance(science, OracleStage):
        split = PackedSplit(job.inputs["real"], "train")
        train, _ = train_and_selection(split, science.selection_fraction)
        return _Images("real", split, train)
    split = PackedSplit(job.inputs["synthetic"], "train")
    return _Images("synthetic", split, np.arange(len(split)))


def _new_segmenter(config: SegmenterConfig, classes: int, split: PackedSplit) -> Segmenter:
    """f before training; it normalises as its backbone was trained, else by the data's own."""
    if config.pretrained != "none":
        return Segmenter(config, classes)
    std = [max(value, 1 / 255) for value in split.statistics.channel_std]  # 0: a constant channel
    return Segmenter(config, classes, split.statistics.channel_mean, std)


def _curve(
    segmenter: Segmenter, science: SegmenterStage, job: StageJob, classes: ClassSet
) -> Callable[[], dict[str, float]] | None:
    """Measures the mIoU on images that are not trained on."""
    if isinstance(science, OracleStage):
        return segmentation.selection_curve(
            segmenter, None, science.selection_fraction, job, classes
        )

    def measure() -> dict[str, float]:
        """One curve point, on synthetic val images. A collective."""
        # Opened here: without a curve there need not be a val split.
        split = PackedSplit(job.inputs["synthetic"], "val")
        return segmentation.miou(segmenter, None, split, np.arange(len(split)), job, classes)

    return measure
