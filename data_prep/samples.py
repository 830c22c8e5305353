"""One sample on its way into a shard: read, resized to the packed size."""

from typing import NamedTuple

import cv2

from data_prep.config import PackConfig
from data_prep.labels import UInt8
from data_prep.listing import Item, SourceKind
from data_prep.sources import read_image, read_labels


class PackedSample(NamedTuple):
    """One sample as it is written."""

    image: UInt8  # [H, W, 3] RGB
    labels: UInt8  # [H, W] label ids of the source
    labels_full: UInt8 | None  # [h, w] at the original size; None outside 'val'


def resize_image(image: UInt8, height: int, width: int) -> UInt8:
    """RGB uint8 [h, w, 3] -> [height, width, 3]: area average to shrink, bicubic to enlarge."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=mode)  # type: ignore[return-value]


def resize_labels(labels: UInt8, height: int, width: int) -> UInt8:
    """Label ids uint8 [h, w] -> [height, width], each pixel the id under its centre.

    INTER_NEAREST_EXACT aligns pixel centres, as INTER_AREA does for the image. Plain
    INTER_NEAREST takes the upper left neighbour: labels shifted by up to half an output pixel.
    """
    if labels.shape == (height, width):
        return labels
    size = (width, height)
    return cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[return-value]


def read_sample(kind: SourceKind, item: Item, config: PackConfig, full: bool) -> PackedSample:
    """Read and resize one sample; `full` keeps the labels at their original size too."""
    image, labels = read_image(item.image_path), read_labels(kind, item.label_path)
    return PackedSample(
        resize_image(image, config.height, config.width),
        resize_labels(labels, config.height, config.width),
        labels if full else None,
    )
