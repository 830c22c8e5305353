"""Stage 'adaptsegnet': f adapted to real images by its outputs, unpaired and without labels.

Tsai et al., CVPR 2018 (arXiv 1802.10349), single level: the cross-entropy on synthetic images, and
a discriminator D of softmax outputs that f has to take real images' outputs for synthetic ones'.
"""

import itertools
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.config import ClassSet, load_class_set
from data_prep.shards import PackedSplit
from tigan import distributed, losses, segmentation
from tigan.config import (
    AdaptSegNetConfig,
    AdaptSegNetStage,
    SegmenterConfig,
    StageJob,
    StageResult,
)
from tigan.data import Batch, StepBatches, Stream, class_table, train_and_selection
from tigan.loop import Training, fit, seed_generators
from tigan.networks import Segmenter

_SEED_STREAM = 5
_POLY_POWER = 0.9  # Tsai
_SYNTHETIC, _REAL = 0.0, 1.0  # D's targets
_LEAST = 32  # pixels: D halves five times


def run(job: StageJob) -> StageResult:
    """Adapt f; write its weights."""
    science: AdaptSegNetStage = job.science
    training = build(science, job)
    return segmentation.write(training, science.model_dump(), job, fit(training, job))


class OutputDiscriminator(nn.Module):
    """D: softmax outputs [n, classes, H, W] -> raw logits [n, 1, H // 32, W // 32], as in Tsai.

    No normalisation. Maps smaller than 32 pixels are first padded with zeros.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        widths = [classes, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, stride=2, padding=1))

    def forward(self, outputs: Tensor) -> Tensor:
        down, right = (max(0, _LEAST - length) for length in outputs.shape[-2:])
        return self.net(F.pad(outputs, (0, right, 0, down)))


@dataclass(frozen=True)
class _Nets:
    """f and D with their optimizers; `rate_ratio` is D's learning rate over f's."""

    segmenter: Segmenter
    judge: OutputDiscriminator
    segmenter_optimizer: torch.optim.Optimizer
    judge_optimizer: torch.optim.Optimizer
    rate_ratio: float


def build(science: AdaptSegNetStage, job: StageJob) -> Training:
    """f of the segmenter stage, a new D, their optimizers, both domains' streams, the step.

    Raises ValueError where f was trained on another number of classes.
    """
    adapt, classes = science.adaptsegnet, load_class_set(science.classes)
    segmenter, config = segmentation.load(
        job,
        classes,
        images=adapt.images,
        batch_size=adapt.batch_size,
        learning_rate=adapt.learning_rate,
        poly_power=_POLY_POWER,
    )
    seed = (adapt.seed, _SEED_STREAM)
    seed_generators(*seed)
    nets = _nets(adapt, config, segmenter, len(classes.classes))
    return Training(
        modules={"segmenter": nets.segmenter, "judge": nets.judge},
        optimizers={"segmenter": nets.segmenter_optimizer, "judge": nets.judge_optimizer},
        batches=StepBatches(_streams(science, config, classes, job, seed)),
        step=partial(_step, nets, adapt.lambda_adversarial, config.precision),
        learning_rate=partial(segmentation.learning_rate, config),
        images=config.images,
        batch_size=config.batch_size,
        seed=seed,
        measure=segmentation.selection_curve(
            segmenter, None, science.selection_fraction, job, classes
        ),
    )


def _nets(
    adapt: AdaptSegNetConfig, config: SegmenterConfig, segmenter: Segmenter, classes: int
) -> _Nets:
    judge = OutputDiscriminator(classes, adapt.discriminator_width).to(distributed.group().device)
    return _Nets(
        segmenter,
        judge,
        segmentation.optimizer(config, segmenter),
        torch.optim.Adam(judge.parameters(), adapt.discriminator_learning_rate, betas=(0.9, 0.99)),
        adapt.discriminator_learning_rate / adapt.learning_rate,
    )


def _streams(
    science: AdaptSegNetStage,
    config: SegmenterConfig,
    classes: ClassSet,
    job: StageJob,
    seed: tuple[int, ...],
) -> dict[str, Stream]:
    """All synthetic images with labels; the real ones, less the selection split, without.

    Both are augmented alike: D could tell them apart by a zoom of only one. At lambda_adversarial
    = 0 nothing real is shown to f, whose BatchNorm would learn from it: plain training.
    """
    split = PackedSplit(job.inputs["synthetic"], "train")
    table = class_table(split, classes)
    indices = np.arange(len(split))
    streams = {"synthetic": segmentation.stream(config, split, indices, (*seed, 0), table)}
    if science.adaptsegnet.lambda_adversarial > 0:
        split = PackedSplit(job.inputs["real"], "train")
        indices, _ = train_and_selection(split, science.selection_fraction)
        streams["real"] = segmentation.stream(config, split, indices, (*seed, 1), None)
    return streams


def _step(
    nets: _Nets, lambda_adversarial: float, precision: str, batch: Batch, detailed: bool
) -> dict[str, float]:
    """One update of f, then one of D on the same outputs, as in the paper's public code.

    Without 'real' in the batch f is trained on alone, and D is left as it is. Returns the raw
    terms where `detailed`.
    """
    keys = [key for part in batch.values() for key in part.keys]
    nets.segmenter.train()
    nets.segmenter_optimizer.zero_grad(set_to_none=True)
    logits = segmentation.logits(nets.segmenter, precision, batch["synthetic"])
    terms = {"cross_entropy": segmentation.cross_entropy(logits, batch["synthetic"])}
    losses.check_finite(terms, keys)
    terms["cross_entropy"].backward()  # one domain after the other: half the memory
    if "real" not in batch:
        segmentation.update(nets.segmenter_optimizer, nets.segmenter.parameters(), keys)
    else:
        synthetic = _outputs(logits.detach())
        nets.judge.requires_grad_(False)  # gradients through D, none for D
        real = _outputs(segmentation.logits(nets.segmenter, precision, batch["real"]))
        terms["adversarial"] = _judged(nets, precision, real, _SYNTHETIC)
        losses.check_finite(terms, keys)
        (lambda_adversarial * terms["adversarial"]).backward()
        segmentation.update(nets.segmenter_optimizer, nets.segmenter.parameters(), keys)
        terms["discriminator"] = _judge_phase(nets, precision, synthetic, real.detach(), keys)
    return {name: float(term.detach()) for name, term in terms.items()} if detailed else {}


def _outputs(logits: Tensor) -> Tensor:
    """What D is shown: class probabilities in float32, [n, classes, H, W]."""
    return logits.float().softmax(1)


def _judged(nets: _Nets, precision: str, outputs: Tensor, target: float) -> Tensor:
    """D's mean loss where `outputs` were of the domain `target`."""
    device = distributed.group().device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        return losses.domain_cross_entropy(nets.judge(outputs), target).mean()


def _judge_phase(
    nets: _Nets, precision: str, synthetic: Tensor, real: Tensor, keys: list[str]
) -> Tensor:
    """Update D on f's outputs of both domains; its loss."""
    nets.judge.requires_grad_(True)
    right = _judged(nets, precision, synthetic, _SYNTHETIC)
    wrong = _judged(nets, precision, real, _REAL)
    loss = 0.5 * (right + wrong)  # halved as in the public code
    losses.check_finite({"discriminator": loss}, keys)
    nets.judge_optimizer.zero_grad(set_to_none=True)
    loss.backward()
    # `fit` sets one rate, f's; D's decays alike, so it is a fixed multiple of it.
    rate = nets.segmenter_optimizer.param_groups[0]["lr"] * nets.rate_ratio
    for parameters in nets.judge_optimizer.param_groups:
        parameters["lr"] = rate
    segmentation.update(nets.judge_optimizer, nets.judge.parameters(), keys)
    return loss
