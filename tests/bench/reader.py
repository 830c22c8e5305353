"""Samples per second of the packed reader beside torchvision.datasets.Cityscapes, in one run.

Both give an image and its labels at 512 x 1024, one process, files in the page cache. torchvision
decodes 1024 x 2048 PNG and resizes, which is what a user without packing does in every epoch.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from torchvision.datasets import Cityscapes

from data_prep.config import PackConfig
from data_prep.minicity import render_cityscapes
from data_prep.pack import pack
from data_prep.shards import PackedSplit

IMAGES = 12
SIZE = (512, 1024)


def samples_per_second(read: Callable[[int], object], seconds: float = 3.0) -> float:
    """Rate of `read` over all images, after one round that fills the page cache."""
    for i in range(IMAGES):
        read(i)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        read(count % IMAGES)
        count += 1
    return count / (time.perf_counter() - start)


def main() -> None:
    """Render, pack, measure, print."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, packed = Path(folder, "cityscapes"), Path(folder, "packed")
        render_cityscapes(
            root, train_images=IMAGES, val_images=1, seed=0, height=1024, width=2048, processes=2
        )
        # torchvision insists on a file of polygons beside every image.
        for labels in root.rglob("*_gtFine_labelIds.png"):
            labels.with_name(labels.name.replace("labelIds.png", "polygons.json")).write_text("{}")
        pack("cityscapes", root, packed, PackConfig(height=SIZE[0], width=SIZE[1]))
        ours = PackedSplit(packed, "train")
        theirs = Cityscapes(str(root), split="train", target_type="semantic")

        def peer(i: int) -> object:
            image, labels = (np.asarray(picture) for picture in theirs[i])
            return (
                cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_AREA),
                cv2.resize(labels, SIZE[::-1], interpolation=cv2.INTER_NEAREST_EXACT),
            )

        mine = samples_per_second(lambda i: (ours.image(i), ours.labels(i)))
        other = samples_per_second(peer)
    print(f"packed reader, digests checked: {mine:8.1f} samples/s")
    print(f"torchvision.datasets.Cityscapes: {other:7.1f} samples/s")
    print(f"ratio: {mine / other:.1f}")


if __name__ == "__main__":
    main()
