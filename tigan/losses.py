"""Losses as pure functions. Images are [n, 3, H, W] in [-1, 1]."""

from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_prep.labels import IGNORED
from tigan import distributed


def lsgan(logits: Tensor, target: float) -> Tensor:
    """Least-squares GAN loss (Mao et al. 2017) of every image [n]: (D - target)^2 on raw logits."""
    return (logits.float() - target).square().mean((1, 2, 3))


def domain_cross_entropy(logits: Tensor, target: float) -> Tensor:
    """Binary cross-entropy of every image [n], on raw logits [n, 1, h, w] (Tsai et al. 2018)."""
    targets = torch.full_like(logits, target, dtype=torch.float32)
    per_patch = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return per_patch.mean((1, 2, 3))


def l1(images: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of every image [n] (CycleGAN's cycle and identity terms)."""
    return (images.float() - target).abs().mean((1, 2, 3))


def weighted_mean(per_image: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over images of `weights` * `per_image`, both [n]; plain mean without weights.

    Without weights nothing is multiplied, so that alpha = 0 is plain CycleGAN bit for bit.
    """
    return per_image.mean() if weights is None else (weights * per_image).mean()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in float32 over the valid pixels of ALL ranks; 255 is ignored.

    logits [n, C, H, W], labels u8 [n, H, W]. Normalised such that the average of the ranks'
    gradients is the gradient of the mean over all valid pixels. Without any valid pixel it is
    0 with zero gradients, where torch's mean would be NaN.
    """
    valid = (labels != IGNORED).sum()
    everywhere = distributed.all_sum(valid).clamp(min=1)
    loss = F.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORED, reduction="sum")
    return loss * (distributed.group().world_size / everywhere)


def gradient_norm(loss: Tensor, images: Tensor) -> float:
    """L2 norm of d loss / d images over this rank's batch; the graph is kept."""
    (grad,) = torch.autograd.grad(loss, images, retain_graph=True)
    return float(grad.float().norm())


def check_finite(terms: dict[str, Tensor], keys: list[str]) -> None:
    """Raise FloatingPointError naming the terms and the batch's images where a loss is not finite.

    Low-variance crops gave NaN on exactly Synthia -> Cityscapes (CycleGAN issue 20). The check
    stands before the update, so the newest checkpoint is still good.
    """
    if not torch.stack([term.detach().mean() for term in terms.values()]).isfinite().all():
        bad = [name for name, term in terms.items() if not term.isfinite().all()]
        _refuse(f"loss not finite: {', '.join(bad)}", keys)


def check_gradients(parameters: Iterable[nn.Parameter], keys: list[str]) -> None:
    """Raise FloatingPointError where a gradient is not finite, though the loss was.

    Comes after the averaging over ranks, so that all ranks stop at the same step, and before the
    update, so that no checkpoint ever holds such weights.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not torch.stack(torch._foreach_norm(grads)).isfinite().all():
        _refuse("gradient not finite", keys)


def _refuse(what: str, keys: list[str]) -> NoReturn:
    raise FloatingPointError(
        f"{what}; images of this rank's batch: {', '.join(keys)}. Look at these images and labels; "
        "the stage goes on from its newest checkpoint once they are mended, or begins anew with a "
        "lower learning_rate"
    )
