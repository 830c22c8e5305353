"""Stage 'finetune_segmenter': f itself trained on with the labels that the method is given.

A baseline: what one would do with a few labelled real images and no translator. With the input
'translator', f is trained on with what that makes of them: both at once.
"""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.config import load_class_set
from data_prep.shards import PackedSplit
from tigan import predict, preemption, segmentation
from tigan.config import FinetuneSegmenterStage, StageJob, StageResult
from tigan.data import Indices, StepBatches, class_table, labelled_images
from tigan.loop import Training, fit
from tigan.networks import Generator

_SEED_STREAM = 4


def run(job: StageJob) -> StageResult:
    """Train f on; write its weights."""
    science: FinetuneSegmenterStage = job.science
    training = build(science, job)
    return segmentation.write(training, science.model_dump(), job, fit(training, job))


def build(science: FinetuneSegmenterStage, job: StageJob) -> Training:
    """f of the segmenter stage, a fresh optimizer, the labelled stream, the step.

    f is augmented and updated as in its own training; only length, batch and learning rate differ.
    Raises ValueError where f was trained on another number of classes.
    """
    changes, classes = science.finetune_segmenter, load_class_set(science.classes)
    segmenter, config = segmentation.load(
        job,
        classes,
        images=changes.images,
        batch_size=changes.batch_size,
        learning_rate=changes.learning_rate,
    )
    optimizer = segmentation.optimizer(config, segmenter)
    split, generator = PackedSplit(job.inputs["real"], "train"), None
    labelled = labelled_images(split, science.selection_fraction, science.labels, science.draw)
    if "translator" in job.inputs:
        _, generator = predict.load_generator(job.inputs["translator"])
        split = TranslatedSplit(split, labelled, generator)
    seed = (science.seed, _SEED_STREAM)
    stream = segmentation.stream(config, split, labelled, seed, class_table(split, classes))
    return Training(
        modules={"segmenter": segmenter},
        optimizers={"segmenter": optimizer},
        batches=StepBatches({"labelled": stream}),
        step=partial(segmentation.step, segmenter, optimizer, config.precision),
        learning_rate=partial(segmentation.learning_rate, config),
        images=config.images,
        batch_size=config.batch_size,
        seed=seed,
        measure=segmentation.selection_curve(
            segmenter, generator, science.selection_fraction, job, classes
        ),
    )


class TranslatedSplit(PackedSplit):
    """A packed split, of which some images are there translated, and no others; labels as they are.

    Whole images are translated, as when f is scored: InstanceNorm would see other statistics in
    the crops. At once, since loader workers have no GPU, and could not share what each makes: this
    takes as long as an evaluation, and 3 bytes a pixel of every rank's memory (2,700 images of
    512 x 1024: 4.2 GB), which workers share with their rank. A collective, for the ranks agree
    before each image whether they were asked to stop: raises `preemption.Preempted`, and what was
    translated is lost.
    """

    def __init__(self, split: PackedSplit, indices: Indices, generator: Generator) -> None:
        super().__init__(split.packed_dir, split.split, verify=split.verify)
        self._translated: dict[int, NDArray[np.uint8]] = {}
        for i in indices.tolist():
            if preemption.agreed():
                raise preemption.Preempted
            self._translated[i] = _translated(generator, split.image(i))

    def image(
        self, i: int, rows: slice | None = None, cols: slice | None = None, *, copy: bool = True
    ) -> NDArray[np.uint8]:
        """RGB uint8 [H, W, 3] of sample `i`, translated, or a window of it; read-only uncopied.

        Raises KeyError for an image that was not to be translated.
        """
        window = self._translated[i][rows or slice(None), cols or slice(None)]
        return window.copy() if copy else window


@torch.no_grad()
def _translated(generator: Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """u8 [H, W, 3], as an image file would hold it."""
    pixels = predict.translate(generator, predict.image_tensor(image), uint8=True)[0] * 255
    result = pixels.round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
    result.flags.writeable = False
    return np.asarray(result)
