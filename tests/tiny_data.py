"""Writes tiny data sets in both layouts with cv2; the fixtures in conftest.py use it."""

from pathlib import Path

import cv2
import numpy as np

# Original size of the tiny images, and the size they are packed at: [height, width].
ORIGINAL = (36, 48)
PACKED = (24, 32)
SYNTHIA_IDS = [0, 1, 2, 3, 4, 6, 8, 10, 22]
CITYSCAPES_IDS = [0, 23, 11, 7, 8, 21, 26, 24, 1]


def label_blocks(rng: np.random.Generator, ids: list[int], size: tuple[int, int]) -> np.ndarray:
    """A label map of blocks of 6 x 8 pixels, uint8 [H, W]."""
    coarse = rng.choice(ids, (-(-size[0] // 6), -(-size[1] // 8)))
    return np.kron(coarse, np.ones((6, 8), int))[: size[0], : size[1]].astype(np.uint8)


def paint(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """An image whose colour follows the label, with noise: uint8 [H, W, 3]."""
    palette = np.random.default_rng(7).integers(20, 235, (256, 3))
    noise = rng.integers(-20, 21, (*labels.shape, 3))
    return np.clip(palette[labels] + noise, 0, 255).astype(np.uint8)


def write_png(path: Path, array: np.ndarray) -> None:
    """Write RGB or single-channel pixels; cv2 wants BGR."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)


def write_synthia(root: Path, count: int, size: tuple[int, int] = ORIGINAL) -> Path:
    """Write `count` images in the layout of SYNTHIA-RAND-CITYSCAPES."""
    base = root / "RAND_CITYSCAPES"
    for i in range(count):
        rng = np.random.default_rng([1, i])
        labels = label_blocks(rng, SYNTHIA_IDS, size)
        instances = rng.integers(0, 60000, labels.shape)
        channels = np.stack([labels, instances, np.zeros_like(instances)], -1).astype(np.uint16)
        write_png(base / "RGB" / f"{i:07d}.png", paint(rng, labels))
        write_png(base / "GT" / "LABELS" / f"{i:07d}.png", channels)
    return root


def write_cityscapes(
    root: Path, cities: dict[str, dict[str, int]], size: tuple[int, int] = ORIGINAL
) -> Path:
    """Write images in the Cityscapes layout; `cities`: split -> city -> number of images."""
    number = 0
    for split, counts in cities.items():
        for city, count in counts.items():
            for i in range(count):
                rng = np.random.default_rng([2, number])
                number += 1
                labels = label_blocks(rng, CITYSCAPES_IDS, size)
                stem = f"{city}_{i:06d}_000019"
                image_dir, label_dir = (root / t / split / city for t in ("leftImg8bit", "gtFine"))
                write_png(image_dir / f"{stem}_leftImg8bit.png", paint(rng, labels))
                write_png(label_dir / f"{stem}_gtFine_labelIds.png", labels)
    return root
