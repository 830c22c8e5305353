"""Images as files, as pixels and as what the networks are given."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data_prep import atomic

Pixels = NDArray[np.uint8]
# The generators halve twice, then pad by reflection, which needs 2 pixels: of the whole, 8.
_STRIDE, LEAST = 4, 8


def pixels(image: Tensor) -> Pixels:
    """[1, 3, H, W] in [0, 1] -> RGB uint8 [H, W, 3]."""
    rounded = (image[0] * 255).round().clamp(0, 255).byte().cpu()
    return np.ascontiguousarray(rounded.permute(1, 2, 0).numpy())


def png(picture: Pixels) -> bytes:
    """RGB uint8 [H, W, 3], or uint8 [H, W], as the bytes of a PNG file."""
    if picture.ndim == 3:
        picture = np.ascontiguousarray(picture[..., ::-1])
    return cv2.imencode(".png", picture)[1].tobytes()


def write_png(path: Path, picture: Pixels) -> None:
    """Write RGB uint8 [H, W, 3], or uint8 [H, W], atomically."""
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(png(picture))


def read_image(path: Path) -> Pixels:
    """RGB uint8 [H, W, 3] of an image file.

    Raises ValueError where it is none, or has more than OpenCV's 2^30 pixels, and OSError.
    """
    content = np.frombuffer(path.read_bytes(), np.uint8)
    try:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except cv2.error as error:
        raise ValueError(f"cannot be decoded: OpenCV refuses it ({error.err})") from None
    if image is None:
        raise ValueError("cannot be decoded: damaged, cut short, or not an image")
    return np.ascontiguousarray(image[..., ::-1], np.uint8)


def resized(image: Pixels, size: tuple[int, int]) -> Pixels:
    """An image at `size` = (height, width), made as packing does: by area, to enlarge bicubic."""
    if image.shape[:2] == size:
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size[::-1], interpolation=mode), np.uint8)


def padded(image: Tensor) -> Tensor:
    """[1, 3, H, W] with its lower and right border reflected, to multiples of 4 pixels."""
    down, right = (-length % _STRIDE for length in image.shape[-2:])
    return F.pad(image, (0, right, 0, down), mode="reflect")
