"""Histograms of images and label maps: what a packed split says of itself, exact integers."""

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from data_prep.index import SplitStatistics

Counts = npt.NDArray[np.int64]
# cv2 counts in float32, which is exact up to 2^24.
_MOST_PIXELS = 1 << 24


def histogram(image: npt.NDArray[np.generic], channel: int = 0, values: int = 256) -> Counts:
    """Pixels of each value 0..values-1 of one channel of [H, W] or [H, W, C]: int64 [values].

    8 or 16 bits.
    """
    rows = max(1, _MOST_PIXELS // image.shape[1])
    total = np.zeros(values, np.int64)
    for start in range(0, len(image), rows):
        part = np.ascontiguousarray(image[start : start + rows])
        counted = cv2.calcHist([part], [channel], None, [values], [0, values])
        total += counted.reshape(-1).astype(np.int64)
    return total


def image_histogram(image: npt.NDArray[np.uint8]) -> Counts:
    """Histogram of each channel of uint8 [H, W, 3]: int64 [3, 256]."""
    return np.stack([histogram(image, channel) for channel in range(3)])


@dataclass
class Totals:
    """Sums of histograms over samples."""

    image: Counts = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    labels: Counts = field(default_factory=lambda: np.zeros(256, np.int64))

    def add(self, image: Counts, labels: Counts) -> None:
        """Add histograms [3, 256] and [256]."""
        self.image += image
        self.labels += labels

    def statistics(self) -> SplitStatistics:
        """Pixels per label id; mean and deviation (over N) of each channel, values in 0..1."""
        pixels = {str(label): int(count) for label, count in enumerate(self.labels) if count}
        mean, std = self._mean_and_std()
        return SplitStatistics(label_pixels=pixels, channel_mean=mean, channel_std=std)

    def _mean_and_std(self) -> tuple[list[float], list[float]]:
        values = np.arange(256, dtype=np.int64)
        pixels = int(self.image[0].sum())
        means, stds = [], []
        for counts in self.image:
            total, squares = int((counts * values).sum()), int((counts * values**2).sum())
            means.append(total / pixels / 255)
            # In integers up to the root: no cancellation, the same bits on every machine.
            stds.append(math.sqrt(pixels * squares - total * total) / pixels / 255)
        return means, stds
