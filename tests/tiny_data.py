"""Writes tiny data sets in both layouts, and packed sets; the fixtures in conftest.py use it."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data_prep.config import PackConfig
from data_prep.histograms import Totals
from data_prep.index import (
    FORMAT_VERSION,
    PackedIndex,
    Recipe,
    shard_name,
    shard_recipe,
    write_index,
)
from data_prep.samples import PackedSample
from data_prep.shard_writer import write_shard
from data_prep.shards import PackedSplit

# Original size of the tiny images, and the size they are packed at: [height, width].
ORIGINAL = (36, 48)
PACKED = (24, 32)
SYNTHIA_IDS = [0, 1, 2, 3, 4, 6, 8, 10, 22]
CITYSCAPES_IDS = [0, 23, 11, 7, 8, 21, 26, 24, 1]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones too; {} where there is no such folder."""
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a file in place; a second call restores it."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


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
    return write_synthia_sizes(root, [size] * count)


def write_synthia_sizes(root: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """Write an image of each of `sizes` in the layout of SYNTHIA-RAND-CITYSCAPES."""
    base = root / "RAND_CITYSCAPES"
    for i, size in enumerate(sizes):
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


def make_samples(
    seed: int, height: int, width: int, sizes: Sequence[tuple[int, int]]
) -> list[PackedSample]:
    """Samples of noise at height x width, of images whose original sizes are `sizes`."""
    rng = np.random.default_rng(seed)
    shapes = [((height, width, 3), (height, width), size) for size in sizes]
    return [
        PackedSample(*(rng.integers(0, 256, shape, dtype=np.uint8) for shape in one))
        for one in shapes
    ]


def write_split(
    folder: Path,
    samples: list[PackedSample],
    per_shard: int,
    keys: list[str],
    claimed_per_shard: int | None = None,
) -> PackedSplit:
    """Write a packed set of one split, 'val', and open it; `claimed_per_shard` makes it wrong."""
    height, width = samples[0].labels.shape
    claimed = claimed_per_shard or per_shard
    config = PackConfig(height=height, width=width, images_per_shard=claimed)
    recipe = Recipe(source="synthia", fingerprint="f", opencv="5", pack=config)
    entries, totals = [], Totals()
    for number, start in enumerate(range(0, len(samples), per_shard)):
        part = samples[start : start + per_shard]
        entry, shard = write_shard(
            folder / shard_name("val", number),
            shard_recipe(recipe, "val", number),
            keys[start : start + per_shard],
            [sample.labels_full.shape for sample in part],
            iter(part),
        )
        entries.append(entry)
        for image, labels in zip(shard.image_histograms, shard.label_histograms, strict=True):
            totals.add(image.astype(np.int64), labels.astype(np.int64))
    index = PackedIndex(
        format_version=FORMAT_VERSION,
        recipe=recipe,
        splits={"val": entries},
        statistics={"val": totals.statistics()},
    )
    write_index(folder, index)
    return PackedSplit(folder, "val")


def read_sum(split: PackedSplit) -> int:
    """Something to compute from a sample, for child processes."""
    return int(split.image(4).sum())
