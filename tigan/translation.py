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
from tigan import distributed, losses
from tigan.config import GanConfig, GanStage
from tigan.data import Batch, Stream, StreamBatch, train_and_selection
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
    real = torch.cat([_signed(part) for part in parts])
    synthetic = _signed(batch["synthetic"])
    labels = batch["labelled"].labels if "labelled" in batch else None
    keys = [key for part in batch.values() for key in part.keys]
    values, fakes = _generator_phase(
        translator, config, task, real, synthetic, labels, keys, detailed
    )
    if train_discriminators:
        values |= _discriminator_phase(translator, config, real, synthetic, fakes, keys)
    return {name: float(value) for name, value in values.items()} if detailed else {}


def _signed(part: StreamBatch) -> Tensor:
    """u8 images -> float in [-1, 1] on this rank's device."""
    return part.images.to(distributed.group().device).float() / 127.5 - 1


def _generator_phase(
    translator: Translator,
    config: GanConfig,
    task: Task | None,
    real: Tensor,
    synthetic: Tensor,
    labels: Tensor | None,
    keys: list[str],
    detailed: bool,
) -> tuple[dict[str, Tensor | float], tuple[Tensor, Tensor]]:
    """Update the generators; the raw terms and the generated (synthetic, real) images."""
    nets = translator.modules
    for name in DISCRIMINATORS:
        nets[name].requires_grad_(False)  # gradients through D, none for D
    plain, everything = _image_weights(task, len(real), 0 if labels is None else len(labels))
    with _autocast(config):
        fake_synthetic, fake_real = nets["to_synthetic"](real), nets["to_real"](synthetic)
        terms = {
            "lsgan_synthetic": losses.lsgan(nets["judge_synthetic"](fake_synthetic), 1.0, plain),
            "lsgan_real": losses.lsgan(nets["judge_real"](fake_real), 1.0),
            "cycle_real": losses.l1(nets["to_real"](fake_synthetic), real, everything),
            "cycle_synthetic": losses.l1(nets["to_synthetic"](fake_real), synthetic),
        }
        if config.lambda_identity > 0:
            terms["identity_real"] = losses.l1(nets["to_real"](real), real, everything)
            terms["identity_synthetic"] = losses.l1(nets["to_synthetic"](synthetic), synthetic)
        loss = _cyclegan_loss(config, terms)
        if task is not None and task.alpha > 0 and labels is not None:
            terms["cross_entropy"] = _task_term(task, fake_synthetic[-len(labels) :], labels)
            # The mean over all real images: only the labelled ones have this term.
            task_loss = terms["cross_entropy"] * (task.alpha * task.gamma * len(labels) / len(real))
            loss = loss + task_loss
    losses.check_finite(terms, keys)
    values: dict[str, Tensor | float] = {name: term.detach() for name, term in terms.items()}
    if detailed:
        values["gradient_lsgan"] = losses.gradient_norm(terms["lsgan_synthetic"], fake_synthetic)
        if "cross_entropy" in terms:
            values["gradient_task"] = losses.gradient_norm(task_loss, fake_synthetic)
    _update(translator, "generators", GENERATORS, loss)
    return values, (fake_synthetic.detach(), fake_real.detach())


def _image_weights(
    task: Task | None, images: int, labelled: int
) -> tuple[Tensor | None, Tensor | None]:
    """Weights [images] of the LSGAN term, and of the cycle and identity terms; None is all ones."""
    if task is None or task.alpha == 0 or labelled == 0:
        return None, None
    weights = torch.ones(images, device=distributed.group().device)
    weights[-labelled:] = 1 - task.alpha
    return weights, weights if task.scales_all else None


def _cyclegan_loss(config: GanConfig, terms: dict[str, Tensor]) -> Tensor:
    """CycleGAN's generator loss: adversarial + lambda (cycle + lambda_identity identity)."""
    loss = terms["lsgan_synthetic"] + terms["lsgan_real"]
    loss = loss + config.lambda_cycle * (terms["cycle_real"] + terms["cycle_synthetic"])
    if config.lambda_identity > 0:
        weight = config.lambda_cycle * config.lambda_identity
        loss = loss + weight * (terms["identity_real"] + terms["identity_synthetic"])
    return loss


def _task_term(task: Task, translated: Tensor, labels: Tensor) -> Tensor:
    """CE(f(G_S(I)), l), differentiable in G_S."""
    return losses.cross_entropy(task.segmenter(translated), labels.to(translated.device))


def _discriminator_phase(
    translator: Translator,
    config: GanConfig,
    real: Tensor,
    synthetic: Tensor,
    fakes: tuple[Tensor, Tensor],
    keys: list[str],
) -> dict[str, Tensor | float]:
    """Update the discriminators on real images and on the history of generated ones."""
    terms = {}
    loss = torch.zeros((), device=real.device)
    for name, genuine, fake in zip(DISCRIMINATORS, (synthetic, real), fakes, strict=True):
        judge = translator.modules[name].requires_grad_(True)
        generated = translator.pools[name].query(fake)
        with _autocast(config):
            # CycleGAN halves it: D learns more slowly than G.
            term = 0.5 * (losses.lsgan(judge(genuine), 1.0) + losses.lsgan(judge(generated), 0.0))
        terms[f"discriminator_{name.removeprefix('judge_')}"] = term
        loss = loss + term
    losses.check_finite(terms, keys)
    _update(translator, "discriminators", DISCRIMINATORS, loss)
    return {name: term.detach() for name, term in terms.items()}


def _update(translator: Translator, phase: str, names: Iterable[str], loss: Tensor) -> None:
    """Backward, average over ranks, one optimizer step."""
    optimizer = translator.optimizers[phase]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    distributed.average_gradients(
        p for name in names for p in translator.modules[name].parameters()
    )
    optimizer.step()


def _autocast(config: GanConfig) -> torch.autocast:
    device = distributed.group().device.type
    return torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16")
