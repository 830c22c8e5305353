"""Losses as pure functions. Images are [n, 3, H, W] in [-1, 1]."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tigan import distributed

IGNORED = 255


def weighted_mean(per_image: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over images of `weights` * `per_image`, both [n]; plain mean without weights.

    Without weights nothing is multiplied, so that alpha = 0 is plain CycleGAN bit for bit.
    """
    return per_image.mean() if weights is None else (weights * per_image).mean()


def lsgan(logits: Tensor, target: float, weights: Tensor | None = None) -> Tensor:
    """Least-squares GAN loss (Mao et al. 2017): mean of (D - target)^2 over raw patch logits."""
    return weighted_mean((logits.float() - target).square().mean((1, 2, 3)), weights)


def l1(images: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean absolute difference (the cycle and identity terms of CycleGAN)."""
    return weighted_mean((images.float() - target).abs().mean((1, 2, 3)), weights)


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


def check_finite(values: dict[str, Tensor], keys: list[str]) -> None:
    """Raise FloatingPointError naming the terms and the batch's images where a loss is not finite.

    Low-variance crops gave NaN on exactly Synthia -> Cityscapes (CycleGAN issue 20). The check
    stands before the update, so the newest checkpoint is still good.
    """
    bad = [name for name, value in values.items() if not torch.isfinite(value).all()]
    if bad:
        raise FloatingPointError(
            f"loss not finite: {', '.join(bad)}; images of this rank's batch: {', '.join(keys)}. "
            "Look at these images and labels; the stage goes on from its newest checkpoint once "
            "they are mended, or with a lower learning_rate in a new configuration"
        )
