"""Stage 'gan': CycleGAN between real and synthetic images, without any label."""

from functools import partial

from tigan import translation
from tigan.config import GanConfig, GanStage, StageJob, StageResult
from tigan.data import StepBatches
from tigan.loop import Training, fit, seed_generators

_SEED_STREAM = 2


def run(job: StageJob) -> StageResult:
    """Train both generators and discriminators; write their weights."""
    science: GanStage = job.science
    training = build(science, job)
    return translation.write(training.modules, science, job, fit(training, job))


def build(science: GanStage, job: StageJob) -> Training:
    """Networks, optimizers, data and step of plain CycleGAN."""
    config = science.gan
    seed = (config.seed, _SEED_STREAM)
    seed_generators(*seed)
    translator = translation.build(config, config.learning_rate)
    return Training(
        modules=translator.modules,
        optimizers=translator.optimizers,
        pools=translator.pools,
        batches=StepBatches(
            translation.unlabelled_streams(science, job.inputs, config.batch_size, seed)
        ),
        step=partial(translation.step, translator, config, None),
        learning_rate=partial(_learning_rate, config),
        images=config.images,
        batch_size=config.batch_size,
        seed=seed,
    )


def _learning_rate(config: GanConfig, images: int) -> float:
    return translation.linear_decay(config.learning_rate, config.decay_from, config.images, images)
