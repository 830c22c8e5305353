"""Scores from ONE confusion matrix over a whole set, as Cityscapes' own scorer does."""

import torch
from torch import Tensor


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Pixel counts int64 [classes, classes]: rows ground truth, columns prediction.

    labels and predictions hold class indices of any equal shape; ground truth outside of
    0..classes-1 (255, ignored) is left out. Predictions must lie in 0..classes-1.
    """
    labels, predictions = labels.flatten().long(), predictions.flatten().long()
    valid = labels < classes
    cells = labels[valid] * classes + predictions[valid]
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def class_iou(confusion: Tensor) -> list[float | None]:
    """Intersection over union of each class, in [0, 1]; None where a class does not occur.

    None means neither in the ground truth nor predicted: 0 / 0, left out of the mean.
    """
    hits = confusion.diag().double()
    union = confusion.sum(0).double() + confusion.sum(1).double() - hits
    return [
        float(hit / all_) if all_ > 0 else None
        for hit, all_ in zip(hits.tolist(), union.tolist(), strict=True)
    ]


def mean_iou(confusion: Tensor) -> float:
    """Mean of the class IoUs that are defined; 0 for an empty matrix."""
    defined = [iou for iou in class_iou(confusion) if iou is not None]
    return sum(defined) / len(defined) if defined else 0.0
