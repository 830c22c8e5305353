"""The CycleGAN train step that serves both stages: alpha = 0 is plain CycleGAN.

Names: `to_synthetic` is the poster's G_S (real -> synthetic), `to_real` the reverse generator,
`judge_synthetic` D_S and `judge_real` the reverse discriminator.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data_prep.shards import PackedSplit
from tigan import checkpoint, distributed, losses, predict
from tigan.config import GanConfig, GanStage, StageJob, StageResult
from tigan.data import Batch, Stream, StreamBatch, train_and_selection
from tigan.loop import Fitted
from tigan.networks import Discriminator, FrozenSegmenter, Generator, ImagePool

GENERATORS = ("to_synthetic", "to_real")
DISCRIMINATORS = ("judge_synthetic", "judge_real")


@dataclass(frozen=True)
class Task:
    """The extended loss: f, alpha and gamma, and what (1 - alpha) scales besides the LSGAN term."""

    segmenter: FrozenSegmenter
    alpha: float
    gamma: float
    scales_all: bool = False


@dataclass(frozen=True)
class Translator:
    """Networks, optimizers and image pools of one CycleGAN."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    pools: dict[str, ImagePool]


def build(config: GanConfig, learning_rate: float) -> Translator:
    """A CycleGAN with fresh weights on this rank's device; one Adam per phase."""
    device = distributed.group().device
    modules: dict[str, nn.Module] = {
        **{name: Generator(config.generator).to(device) for name in GENERATORS},
        **{name: Discriminator(config.discriminator).to(device) for name in DISCRIMINATORS},
    }
    optimizers: dict[str, torch.optim.Optimizer] = {
        phase: torch.optim.Adam(
            [p for name in names for p in modules[name].parameters()],
            learning_rate,
            betas=(config.betas[0], config.betas[1]),
        )
        for phase, names in (("generators", GENERATORS), ("discriminators", DISCRIMINATORS))
    }
    pools = {name: ImagePool(config.pool_size) for name in DISCRIMINATORS}
    return Translator(modules, optimizers, pools)


def unlabelled_streams(
    science: GanStage, inputs: Mapping[str, Path], batch_size: int, seed: tuple[int, ...]
) -> dict[str, Stream]:
    """Streams 'real' (train without the selection split) and 'synthetic', without labels."""
    real, synthetic = (PackedSplit(inputs[role], "train") for role in ("real", "synthetic"))
    train, _ = train_and_selection(real, science.selection_fraction)
    crop = (science.gan.crop[0], science.gan.crop[1])
    return {
        name: Stream(split, indices, batch_size, (*seed, number), crop, science.gan.flip)
        for number, (name, split, indices) in enumerate(
            [("real", real, train), ("synthetic", synthetic, np.arange(len(synthetic)))]
        )
    }


def linear_decay(base: float, decay_from: int, total: int, images: int) -> float:
    """CycleGAN's learning rate: constant, then linear to 0 at `total` images."""
    left = (total - images) / max(1, total - decay_from)
    return base * min(1.0, max(0.0, left))


def step(
    translator: Translator,
    config: GanConfig,
    task: Task | None,
    batch: Batch,
    detailed: bool,
    *,
    train_discriminators: bool = True,
) -> dict[str, float]:
    """One update of both generators, then of both discriminators.

    `batch` holds 'synthetic' and at least one of 'real' (unlabelled) and 'labelled'. Labelled
    images get the extended loss, unlabelled ones the plain one, and the loss of the batch is the
    mean over its real images. Returns the raw terms where `detailed`.
    """
    parts = [batch[name] for name in ("real", "labelled") if name in batch]
    inputs = _Inputs(
        torch.cat([_signed(part) for part in parts]),
        _signed(batch["synthetic"]),
        batch["labelled"].labels if "labelled" in batch else None,
        [key for part in batch.values() for key in part.keys],
    )
    values, fakes = _generator_phase(translator, config, task, inputs, detailed)
    if train_discriminators:
        values |= _discriminator_phase(translator, config, inputs, fakes)
    return {name: float(value) for name, value in values.items()} if detailed else {}


@dataclass(frozen=True)
class _Inputs:
    """One step's images in [-1, 1] on the device, labels of the LAST real ones, all keys."""

    real: Tensor
    synthetic: Tensor
    labels: Tensor | None
    keys: list[str]


def _signed(part: StreamBatch) -> Tensor:
    """u8 images -> float in [-1, 1] on this rank's device."""
    return part.images.to(distributed.group().device, non_blocking=True).float() / 127.5 - 1


def _generator_phase(
    translator: Translator, config: GanConfig, task: Task | None, inputs: _Inputs, detailed: bool
) -> tuple[dict[str, Tensor | float], tuple[Tensor, Tensor]]:
    """Update the generators; the raw terms and the generated (synthetic, real) images.

    The gradient norms are of the terms as they enter the loss, taken at G(I).
    """
    nets = translator.modules
    for name in DISCRIMINATORS:
        nets[name].requires_grad_(False)  # gradients through D, none for D
    weights = _image_weights(task, inputs)
    with _autocast(config):
        fakes = nets["to_synthetic"](inputs.real), nets["to_real"](inputs.synthetic)
        terms = _cyclegan_terms(nets, config, inputs, fakes)
        means = {name: losses.weighted_mean(x, weights.get(name)) for name, x in terms.items()}
        loss = _cyclegan_loss(config, means)
        if task is not None and task.alpha > 0 and inputs.labels is not None:
            terms["cross_entropy"] = _task_term(task, fakes[0], inputs.labels)
            # The mean over all real images: only the labelled ones have this term.
            share = len(inputs.labels) / len(inputs.real)
            task_loss = terms["cross_entropy"] * (task.alpha * task.gamma * share)
            loss = loss + task_loss
    losses.check_finite(terms, inputs.keys)
    values: dict[str, Tensor | float] = {name: x.detach().mean() for name, x in terms.items()}
    if detailed:
        values["gradient_lsgan"] = losses.gradient_norm(means["lsgan_synthetic"], fakes[0])
        if "cross_entropy" in terms:
            values["gradient_task"] = losses.gradient_norm(task_loss, fakes[0])
    _update(translator, "generators", GENERATORS, loss, inputs.keys)
    return values, (fakes[0].detach(), fakes[1].detach())


def _cyclegan_terms(
    nets: Mapping[str, nn.Module], config: GanConfig, inputs: _Inputs, fakes: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """CycleGAN's raw generator terms, each per image [n]."""
    fake_synthetic, fake_real = fakes
    real, synthetic = inputs.real, inputs.synthetic
    terms = {
        "lsgan_synthetic": losses.lsgan(nets["judge_synthetic"](fake_synthetic), 1.0),
        "lsgan_real": losses.lsgan(nets["judge_real"](fake_real), 1.0),
        "cycle_real": losses.l1(nets["to_real"](fake_synthetic), real),
        "cycle_synthetic": losses.l1(nets["to_synthetic"](fake_real), synthetic),
    }
    if config.lambda_identity > 0:
        terms["identity_real"] = losses.l1(nets["to_real"](real), real)
        terms["identity_synthetic"] = losses.l1(nets["to_synthetic"](synthetic), synthetic)
    return terms


def _image_weights(task: Task | None, inputs: _Inputs) -> dict[str, Tensor]:
    """Term -> weights [n] of the real images: (1 - alpha) for labelled ones; {} is all ones."""
    if task is None or task.alpha == 0 or inputs.labels is None:
        return {}
    weights = torch.ones(len(inputs.real), device=inputs.real.device)
    weights[-len(inputs.labels) :] = 1 - task.alpha
    scaled = ("lsgan_synthetic", "cycle_real", "identity_real")
    return dict.fromkeys(scaled if task.scales_all else scaled[:1], weights)


def _cyclegan_loss(config: GanConfig, means: dict[str, Tensor]) -> Tensor:
    """CycleGAN's generator loss: adversarial + lambda (cycle + lambda_identity identity)."""
    loss = means["lsgan_synthetic"] + means["lsgan_real"]
    loss = loss + config.lambda_cycle * (means["cycle_real"] + means["cycle_synthetic"])
    if config.lambda_identity > 0:
        weight = config.lambda_cycle * config.lambda_identity
        loss = loss + weight * (means["identity_real"] + means["identity_synthetic"])
    return loss


def _task_term(task: Task, translated: Tensor, labels: Tensor) -> Tensor:
    """CE(f(G_S(I)), l) on the labelled images, the last ones; differentiable in G_S."""
    logits = task.segmenter(translated[-len(labels) :])
    return losses.cross_entropy(logits, labels.to(translated.device, non_blocking=True))


def _discriminator_phase(
    translator: Translator, config: GanConfig, inputs: _Inputs, fakes: tuple[Tensor, Tensor]
) -> dict[str, Tensor | float]:
    """Update the discriminators on genuine images and on the history of generated ones."""
    terms = {}
    for name, genuine, fake in zip(
        DISCRIMINATORS, (inputs.synthetic, inputs.real), fakes, strict=True
    ):
        judge = translator.modules[name].requires_grad_(True)
        generated = translator.pools[name].query(fake)
        with _autocast(config):
            right, wrong = judge(genuine), judge(generated)
        # CycleGAN halves it: D learns more slowly than G.
        term = 0.5 * (losses.lsgan(right, 1.0).mean() + losses.lsgan(wrong, 0.0).mean())
        terms[f"discriminator_{name.removeprefix('judge_')}"] = term
    losses.check_finite(terms, inputs.keys)
    loss = torch.stack(list(terms.values())).sum()
    _update(translator, "discriminators", DISCRIMINATORS, loss, inputs.keys)
    return {name: term.detach() for name, term in terms.items()}


def _update(
    translator: Translator, phase: str, names: Iterable[str], loss: Tensor, keys: list[str]
) -> None:
    """Backward, average over ranks, one optimizer step."""
    optimizer = translator.optimizers[phase]
    parameters = [p for name in names for p in translator.modules[name].parameters()]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    distributed.average_gradients(parameters)
    losses.check_gradients(parameters, keys)
    optimizer.step()


def _autocast(config: GanConfig) -> torch.autocast:
    device = distributed.group().device.type
    return torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16")


def write(
    modules: Mapping[str, nn.Module], science: GanStage, job: StageJob, fitted: Fitted
) -> StageResult:
    """Write the weights of all four networks; what a gan or finetune stage results in."""
    if distributed.group().is_first:
        states = {name: module.state_dict() for name, module in modules.items()}
        path = job.stage_dir / predict.TRANSLATOR_WEIGHTS
        checkpoint.save_weights(path, fitted.token, science.model_dump(), states)
    return StageResult([predict.TRANSLATOR_WEIGHTS], fitted.figures)
