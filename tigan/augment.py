"""Augmentation: pure functions of a random generator, numpy in and out."""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def crop_window(
    rng: Generator, size: tuple[int, int], crop: tuple[int, int], zoom: tuple[float, float]
) -> tuple[slice, slice]:
    """A random window of an image of `size` that becomes the crop once it is resized.

    A zoom of 2 takes a window half as large as the crop. The zoom is raised where the window
    would not fit into the image.
    """
    factor = float(np.exp(rng.uniform(*np.log(zoom))))
    factor = max(factor, crop[0] / size[0], crop[1] / size[1])
    height, width = (min(s, max(1, round(c / factor))) for s, c in zip(size, crop, strict=True))
    top = int(rng.integers(size[0] - height + 1))
    left = int(rng.integers(size[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)


def resize_image(image: Image, size: tuple[int, int]) -> Image:
    """Resize u8 [H, W, 3] to `size` = (height, width), by area when shrinking, else bilinear."""
    if image.shape[:2] == size:
        return image
    shrinks = image.shape[0] >= size[0] and image.shape[1] >= size[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size[::-1], interpolation=method), np.uint8)


def resize_labels(labels: Image, size: tuple[int, int]) -> Image:
    """Resize u8 [H, W] to `size`, by the nearest pixel centre: ids cannot be mixed."""
    if labels.shape == size:
        return labels
    return np.asarray(cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT))


def colour_jitter(rng: Generator, image: Image, strength: float) -> Image:
    """Brightness, contrast and saturation, each scaled by 1 +- up to `strength`."""
    brightness, contrast, saturation = 1 + strength * rng.uniform(-1, 1, 3).astype(np.float32)
    x = image.astype(np.float32) * brightness
    mean = (x @ _GREY).mean()
    x = mean + contrast * (x - mean)
    grey = (x @ _GREY)[..., None]
    return np.clip(np.rint(grey + saturation * (x - grey)), 0, 255).astype(np.uint8)
