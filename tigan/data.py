"""Endless, seeded streams of packed images, and the loader that turns them into step batches.

The sample at a position of a stream, its window, flip and jitter are pure functions of
(seed, position); the batch of a step is a pure function of the images seen. So a loader has no
state to save, resume is exact, and the order does not depend on ranks or workers.
"""

import faulthandler
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_prep.config import ClassSet
from data_prep.labels import class_shares, lookup_table
from data_prep.listing import city_of
from data_prep.shards import PackedSplit
from tigan import augment, distributed, preemption

Indices = NDArray[np.int64]
Batch = dict[str, "StreamBatch"]
# Splits the generators of a position (augmentation) from those of an epoch (order).
_ORDER, _AUGMENT = 0, 1


class StreamBatch(NamedTuple):
    """images u8 [n, 3, H, W]; labels u8 [n, H, W] class indices, 255 ignored (absent: None)."""

    images: Tensor
    labels: Tensor | None
    keys: list[str]


@dataclass(frozen=True)
class Stream:
    """An endless shuffled order over some images of a packed split, one global batch per step."""

    split: PackedSplit
    indices: Indices
    batch_size: int
    seed: tuple[int, ...]
    crop: tuple[int, int]
    flip: bool
    zoom: tuple[float, float] = (1.0, 1.0)
    jitter: float = 0.0
    table: NDArray[np.uint8] | None = field(default=None, repr=False)

    def index_at(self, position: int) -> int:
        """The image at `position`: every epoch is a new permutation of all indices."""
        epoch, offset = divmod(position, len(self.indices))
        return int(self.indices[_order(self.seed, epoch, len(self.indices))[offset]])

    def sample(self, position: int) -> tuple[augment.Image, augment.Image | None, str]:
        """Image u8 [h, w, 3], labels u8 [h, w] or None, and key, augmented; read-only."""
        index = self.index_at(position)
        rng = np.random.default_rng([*self.seed, _AUGMENT, position])
        size = (self.split.height, self.split.width)
        rows, columns = augment.crop_window(rng, size, self.crop, self.zoom)
        window = self.split.image(index, rows, columns, copy=False)
        image = augment.resize_image(window, self.crop)
        labels = None
        if self.table is not None:
            ids = self.split.labels(index, rows, columns, copy=False)
            labels = self.table[augment.resize_labels(ids, self.crop)]
        if self.flip and rng.random() < 0.5:
            image = image[:, ::-1]
            labels = None if labels is None else labels[:, ::-1]
        if self.jitter > 0:
            image = augment.colour_jitter(rng, image, self.jitter)
        return image, labels, self.split.keys[index]

    def batch(self, step: int, rank: int, world_size: int) -> StreamBatch:
        """This rank's part of the global batch of `step`."""
        each = self.batch_size // world_size
        first = step * self.batch_size + rank * each
        images = torch.empty((each, 3, *self.crop), dtype=torch.uint8)
        labels = None if self.table is None else torch.empty((each, *self.crop), dtype=torch.uint8)
        keys = []
        for place, position in enumerate(range(first, first + each)):
            image, classes, key = self.sample(position)
            # Ten times as fast as assigning image.transpose(2, 0, 1).
            cv2.split(np.ascontiguousarray(image), list(images[place].numpy()))
            if labels is not None and classes is not None:
                labels[place].numpy()[:] = classes
            keys.append(key)
        return StreamBatch(images, labels, keys)


@lru_cache(maxsize=8)  # a few streams, at the border of two epochs
def _order(seed: tuple[int, ...], epoch: int, count: int) -> Indices:
    """The permutation of 0..count-1 of an epoch."""
    return np.random.default_rng([*seed, _ORDER, epoch]).permutation(count)


class StepBatches(Dataset[Batch]):
    """Item s = this rank's batches of step s, one of each stream."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        for name, stream in streams.items():
            if len(stream.indices) == 0:
                raise ValueError(f"{name}: no images to train on in {stream.split.packed_dir}")
            distributed.share(stream.batch_size, f"images per step of '{name}'")
        self._streams = dict(streams)
        group = distributed.group()
        self._rank, self._world_size = group.rank, group.world_size

    def __getitem__(self, step: int) -> Batch:
        return {
            name: stream.batch(step, self._rank, self._world_size)
            for name, stream in self._streams.items()
        }


def load_from(batches: StepBatches, first_step: int, num_workers: int) -> Iterator[Batch]:
    """The batches of `first_step`, `first_step` + 1, ..., without end."""
    # OpenCV's pool of threads does not survive a fork: a worker that inherits one hangs for ever.
    cv2.setNumThreads(1)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=_CountFrom(first_step),
        num_workers=num_workers,
        pin_memory=distributed.group().device.type == "cuda",
        worker_init_fn=_start_worker,
        # Workers share the memory of their rank, and no server process stands in between, which a
        # signal to all processes of a step would end (Python 3.14's default).
        multiprocessing_context="fork" if num_workers else None,
        # iter(DataLoader) draws a seed: from here, not from the generator of the training.
        generator=torch.Generator(),
    )
    return iter(loader)


class _CountFrom(torch.utils.data.Sampler[int]):
    """first, first + 1, first + 2, ..."""

    def __init__(self, first: int) -> None:
        self._first = first

    def __iter__(self) -> Iterator[int]:
        step = self._first
        while True:
            yield step
            step += 1


def _start_worker(worker: int) -> None:
    faulthandler.enable()  # a read error under a memory map is a SIGBUS, which says nothing else
    # Slurm signals every process of a step; only the rank itself may act on it.
    preemption.ignore()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def class_table(split: PackedSplit, classes: ClassSet) -> NDArray[np.uint8]:
    """Label id -> class index, uint8 [256]: `lookup_table` for the labels of `split`.

    Raises ValueError where fewer than two classes occur: with a class set of other labels a
    training runs to its end without an error, and has learned nothing.
    """
    shares = class_shares(split.statistics.label_pixels, split.source, classes)
    found = [name for name, share in shares.items() if share > 0 and name in classes.classes]
    if len(found) < 2:
        raise ValueError(
            f"{split.packed_dir}, split {split.split!r}: of class set {classes.name!r} it holds "
            f"{' and '.join(found) or 'no class'} only, {100 * shares['ignored']:.1f} % of its "
            "pixels are of no class; set 'classes' to the class set of this data"
        )
    return lookup_table(classes, split.source)


def train_and_selection(split: PackedSplit, fraction: float) -> tuple[Indices, Indices]:
    """Indices to train on, and the selection split: the last `fraction` of every city's images.

    The end of a city and not a random draw: neighbouring frames are near-duplicates.
    """
    by_city: dict[str, list[int]] = {}
    for index, key in sorted(enumerate(split.keys), key=lambda item: item[1]):
        by_city.setdefault(city_of(key), []).append(index)
    train: list[int] = []
    selection: list[int] = []
    for members in by_city.values():
        kept = len(members) - int(len(members) * fraction)
        train += members[:kept]
        selection += members[kept:]
    return np.array(train, np.int64), np.array(selection, np.int64)


def label_count(train: Indices, labels: int | str) -> int:
    """How many labelled images `labels` means: a number, or 'all' of `train`.

    Raises ValueError for a number larger than `train`, what the selection split leaves.
    """
    if labels == "all":
        return len(train)
    if int(labels) > len(train):
        raise ValueError(
            f"finetune.labels: {labels} asked for, but only {len(train)} train images are left "
            "beside the selection split; lower finetune.labels or selection_fraction"
        )
    return int(labels)


def draw_labelled(train: Indices, labels: int, draw: int) -> Indices:
    """The first `labels` of a permutation of `train` seeded by `draw`: draws are nested."""
    return train[np.random.default_rng([draw, 14]).permutation(len(train))[:labels]]


def labelled_images(
    split: PackedSplit, selection_fraction: float, labels: int | str, draw: int
) -> Indices:
    """The images of a train split that are used with their labels. Raises ValueError."""
    train, _ = train_and_selection(split, selection_fraction)
    return draw_labelled(train, label_count(train, labels), draw)
