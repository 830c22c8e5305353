"""Stage 'finetune': G_S of a CycleGAN trained on with the loss of the frozen f on a few labels.

L = (1 - alpha) LSGAN + alpha gamma CE(f(G_S(I)), l) on labelled images (poster, arXiv 2208.08815).
"""

from collections.abc import Callable
from functools import partial
from typing import cast

from data_prep.config import ClassSet, load_class_set
from data_prep.shards import PackedSplit
from tigan import checkpoint, predict, scores, translation
from tigan.config import FinetuneConfig, FinetuneStage, StageJob, StageResult
from tigan.data import StepBatches, Stream, class_table, labelled_images, train_and_selection
from tigan.loop import Training, fit
from tigan.networks import FrozenSegmenter, Generator
from tigan.translation import Task, Translator

_SEED_STREAM = 3


def run(job: StageJob) -> StageResult:
    """Finetune the translator of the gan stage; write its weights."""
    science: FinetuneStage = job.science
    training = build(science, job)
    return translation.write(training.modules, science, job, fit(training, job))


def build(science: FinetuneStage, job: StageJob) -> Training:
    """Networks from the gan stage, a fresh optimizer, labelled and unlabelled streams, the step."""
    config, classes = science.finetune, load_class_set(science.classes)
    translator = translation.build(science.gan, config.learning_rate)
    _, states = checkpoint.load_weights(job.inputs["gan"] / predict.TRANSLATOR_WEIGHTS)
    for name, module in translator.modules.items():
        module.load_state_dict(states[name])
    segmenter = predict.load_segmenter(job.inputs["segmenter"], classes)
    task = Task(segmenter, config.alpha, config.gamma, config.alpha_scales == "all")
    seed = (config.seed, _SEED_STREAM)
    return Training(
        modules=translator.modules,
        optimizers=translator.optimizers,
        pools=translator.pools,
        batches=StepBatches(_streams(science, classes, job, seed)),
        step=partial(
            translation.step,
            translator,
            science.gan,
            task,
            train_discriminators=config.train_discriminators,
        ),
        learning_rate=partial(_learning_rate, config),
        images=config.images,
        batch_size=config.batch_size,
        seed=seed,
        measure=_selection_miou(translator, segmenter, science, classes, job),
    )


def _streams(
    science: FinetuneStage, classes: ClassSet, job: StageJob, seed: tuple[int, ...]
) -> dict[str, Stream]:
    """The unlabelled streams, and the labelled one with a sampler of its own."""
    config = science.finetune
    streams = translation.unlabelled_streams(science, job.inputs, config.batch_size, seed)
    if not config.unlabelled:
        del streams["real"]
    split = PackedSplit(job.inputs["real"], "train")
    streams["labelled"] = Stream(
        split,
        labelled_images(split, science.selection_fraction, config.labels, config.draw),
        config.labelled_per_step,
        (*seed, len(streams) + 1),
        (science.gan.crop[0], science.gan.crop[1]),
        science.gan.flip,
        table=class_table(split, classes),
    )
    return streams


def _learning_rate(config: FinetuneConfig, images: int) -> float:
    return translation.linear_decay(config.learning_rate, config.decay_from, config.images, images)


def _selection_miou(
    translator: Translator,
    segmenter: FrozenSegmenter,
    science: FinetuneStage,
    classes: ClassSet,
    job: StageJob,
) -> Callable[[], dict[str, float]] | None:
    """Measures the mIoU of f on translated images of the selection split, which nothing trains on.

    None where there is no selection split.
    """
    split = PackedSplit(job.inputs["real"], "train")
    _, selection = train_and_selection(split, science.selection_fraction)
    if len(selection) == 0:
        return None
    chosen = selection[predict.evenly(len(selection), job.training.curve_images)]
    generator = cast(Generator, translator.modules["to_synthetic"])

    def measure() -> dict[str, float]:
        """One curve point, at the packed size. A collective."""
        found = predict.confusions(
            predict.translated(segmenter, generator, uint8=False),
            split,
            chosen,
            class_table(split, classes),
            len(classes.classes),
        )
        return {"miou": scores.mean_iou(found.sum(0))}

    return measure
