"""The shard format and its reader; `data_prep.shard_writer` writes it.

A shard is one HDF5 file of contiguous, uncompressed datasets (n samples of H x W pixels):
    images         uint8  [n, H, W, 3]   RGB
    labels         uint8  [n, H, W]      the source's own label ids
    keys           utf-8  [n]            fixed length, padded with zero bytes
    sizes          int64  [n, 2]         height, width of the original images
    image_digests  uint64 [n, bands]     xxh3_64 of every band of 64 rows; label_digests the same
In shards of the split 'val', for scoring at full size:
    labels_full          uint8  [sum of h * w]  label ids, one flattened map after the other
    labels_full_offsets  uint64 [n + 1]         where each begins
    labels_full_digests  uint64 [n]
The root attribute `recipe` (JSON) says what the shard was made from. Contiguous data can be
memory-mapped at `dset.id.get_offset()`: standard HDF5 for every other tool, while we read without
HDF5's lock and touch only the pages that are needed. Contiguous data has no checksum of HDF5's
own, hence the digests.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from data_prep.index import (
    ShardError,
    read_index,
    recipe_differences,
    shard_recipe,
)
from data_prep.labels import UInt8

BAND_ROWS = 64
UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]
REPAIR = "delete the file and run `python -m data_prep.pack` again; complete shards are kept"


def band_digests(array: UInt8) -> UInt64:
    """xxh3_64 of every 64 rows of a C-contiguous array: uint64 [ceil(rows / 64)]."""
    bands = [array[row : row + BAND_ROWS] for row in range(0, len(array), BAND_ROWS)]
    return np.array([xxhash.xxh3_64_intdigest(band.data) for band in bands], np.uint64)


@dataclass(frozen=True)
class OpenShard:
    """A shard's small arrays, and its large ones memory-mapped read-only; holds no HDF5 handle."""

    path: Path
    recipe: dict[str, Any]
    keys: list[str]
    sizes: Int64
    images: UInt8
    labels: UInt8
    image_digests: UInt64
    label_digests: UInt64
    labels_full: UInt8 | None = None
    labels_full_offsets: UInt64 | None = None
    labels_full_digests: UInt64 | None = None

    def damaged(self, row: int, what: str) -> ShardError:
        """The error for a sample whose data does not match its digest."""
        return ShardError(
            f"{self.path}: sample {self.keys[row]!r}: {what} not match the stored digest: the "
            f"shard is damaged; {REPAIR}"
        )

    def check_rows(self, row: int, name: str, start: int, stop: int) -> None:
        """Check the bands of `images` or `labels` that hold rows start..stop-1."""
        data, digests = (
            (self.images, self.image_digests)
            if name == "images"
            else (self.labels, self.label_digests)
        )
        for band in range(start // BAND_ROWS, -(-stop // BAND_ROWS)):
            first, last = band * BAND_ROWS, min((band + 1) * BAND_ROWS, data.shape[1])
            if xxhash.xxh3_64_intdigest(data[row, first:last].data) != digests[row, band]:
                raise self.damaged(row, f"rows {first}..{last - 1} of {name} do")

    def full_labels(self, row: int, verify: bool) -> UInt8:
        """The label ids of a 'val' sample at its original size: uint8 [h, w], a view."""
        assert self.labels_full is not None, f"{self.path} holds no full-size labels"
        assert self.labels_full_offsets is not None and self.labels_full_digests is not None
        begin, end = (int(offset) for offset in self.labels_full_offsets[row : row + 2])
        height, width = (int(length) for length in self.sizes[row])
        flat = self.labels_full[begin:end]
        if flat.size != height * width or (
            verify and xxhash.xxh3_64_intdigest(flat.data) != self.labels_full_digests[row]
        ):
            raise self.damaged(row, "the full-size labels do")
        return flat.reshape(height, width)


def _map(path: Path, dataset: h5py.Dataset) -> UInt8:
    """A contiguous uint8 dataset as a read-only memory map."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.dtype != np.uint8:
        raise ValueError(f"dataset {dataset.name!r} is not contiguous uint8")
    mapped = np.memmap(path, np.uint8, "r", offset=offset, shape=dataset.shape)
    return mapped.view(np.ndarray)  # indexing a memmap object itself is slow


def open_shard(path: Path) -> OpenShard:
    """Open one shard. Raises `ShardError` where it is missing or cannot be read as a shard."""
    try:
        # Shards never change under their name, so no lock (GPFS and Lustre may have none).
        with h5py.File(path, "r", locking=False) as file:
            full = "labels_full" in file
            shard = OpenShard(
                path=path,
                recipe=dict(json.loads(file.attrs["recipe"])),
                keys=[key.decode() for key in file["keys"][...]],
                sizes=file["sizes"][...],
                images=_map(path, file["images"]),
                labels=_map(path, file["labels"]),
                image_digests=file["image_digests"][...],
                label_digests=file["label_digests"][...],
                labels_full=_map(path, file["labels_full"]) if full else None,
                labels_full_offsets=file["labels_full_offsets"][...] if full else None,
                labels_full_digests=file["labels_full_digests"][...] if full else None,
            )
    except FileNotFoundError:
        raise ShardError(
            f"{path}: not there, though the index names it; run `python -m data_prep.pack` again, "
            "which packs missing shards only"
        ) from None
    except Exception as error:  # damaged metadata makes h5py raise nearly anything
        raise ShardError(f"{path}: cannot be read as a shard ({error}); {REPAIR}") from None
    _check_shapes(shard)
    return shard


def _check_shapes(shard: OpenShard) -> None:
    """Raise `ShardError` where the datasets do not fit each other."""
    count, height, width = shard.labels.shape if shard.labels.ndim == 3 else (0, 0, 0)
    bands = -(-height // BAND_ROWS)
    expected = {
        "images": (count, height, width, 3),
        "sizes": (count, 2),
        "image_digests": (count, bands),
        "label_digests": (count, bands),
    }
    full = shard.recipe.get("split") == "val"
    if full:
        expected |= {"labels_full_offsets": (count + 1,), "labels_full_digests": (count,)}
    shapes = {name: np.shape(vars(shard)[name]) for name in expected}
    if (
        shapes != expected
        or full == (shard.labels_full is None)
        or len(shard.keys) != count
        or not count
    ):
        raise ShardError(
            f"{shard.path}: its datasets do not fit each other: found {shapes}, expected "
            f"{expected}; {REPAIR}"
        )


def verify_shard(
    path: Path,
    recipe: dict[str, Any],
    keys: Sequence[str],
    sizes: Sequence[tuple[int, int]] | None = None,
) -> OpenShard:
    """Check everything in a shard: recipe, keys, original sizes (if given) and every digest.

    Raises `ShardError` with the first thing that is wrong. Returns the opened shard.
    """
    shard = open_shard(path)
    if shard.recipe != recipe:
        raise ShardError(
            f"{path}: was packed otherwise: {recipe_differences(shard.recipe, recipe)}; use "
            "another directory, or delete this one yourself if it is no longer wanted"
        )
    if shard.keys != list(keys) or (
        sizes is not None and shard.sizes.tolist() != [[*s] for s in sizes]
    ):
        raise ShardError(f"{path}: holds other samples than expected; {REPAIR}")
    height = shard.labels.shape[1]
    for row in range(len(keys)):
        shard.check_rows(row, "images", 0, height)
        shard.check_rows(row, "labels", 0, height)
        if recipe["split"] == "val":
            shard.full_labels(row, verify=True)
    return shard


class PackedSplit:
    """One split of a packed data set, read by sample number 0..len-1.

    Creating it reads `index.json` only. Shards are opened when first needed; what stays open is
    memory maps, without file descriptors or HDF5 state, so a reader can be used after a fork; a
    pickled one opens its shards anew.

    Attributes: `keys` (names of the samples, in order), `height` and `width` (of the packed
    images), `source` ('synthia' | 'cityscapes'), `fingerprint` (of the data that were packed).
    With `verify` every read checks the digests of the bands of 64 rows that it touches.
    Raises `ShardError` where packing has not finished or there is no such split.
    """

    def __init__(self, packed_dir: Path, split: str, *, verify: bool = True) -> None:
        index = read_index(packed_dir)
        if split not in index.splits:
            raise ShardError(
                f"{packed_dir}: has no split {split!r}; it has: {', '.join(index.splits)}"
                + (" (pack with val_images > 0 for one)" if split == "val" else "")
            )
        self.packed_dir, self.split, self.verify = packed_dir, split, verify
        self.recipe = index.recipe
        self.source = index.recipe.source
        self.fingerprint = index.recipe.fingerprint
        self.height, self.width = index.recipe.pack.height, index.recipe.pack.width
        self.entries = index.splits[split]
        self.keys = [key for entry in self.entries for key in entry.keys]
        self._open: dict[int, OpenShard] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a pickled memory map would carry the data

    def _locate(self, i: int) -> tuple[OpenShard, int]:
        """The open shard and the row in it of sample `i`."""
        if not 0 <= i < len(self.keys):
            raise IndexError(f"sample {i} of {len(self.keys)} in {self.packed_dir}/{self.split}")
        number, row = divmod(i, self.recipe.pack.images_per_shard)
        shard = self._open.get(number)
        if shard is None:
            shard = self._open[number] = self._open_shard(number)
        return shard, row

    def _open_shard(self, number: int) -> OpenShard:
        entry = self.entries[number]
        shard = open_shard(self.packed_dir / entry.file)
        expected = shard_recipe(self.recipe, self.split, number)
        if shard.recipe != expected or shard.keys != entry.keys:
            differences = recipe_differences(shard.recipe, expected) or "other samples"
            raise ShardError(
                f"{shard.path}: is not the shard that the index means: {differences}; {REPAIR}"
            )
        return shard

    def _window(self, i: int, name: str, rows: slice | None, cols: slice | None) -> UInt8:
        shard, row = self._locate(i)
        data = shard.images if name == "images" else shard.labels
        start, stop, step = (rows or slice(None)).indices(self.height)
        if step != 1:
            raise ValueError(f"rows: expected a slice of step 1, found {rows}")
        if self.verify:
            shard.check_rows(row, name, start, stop)
        return data[row, start:stop, cols or slice(None)].copy()

    def image(self, i: int, rows: slice | None = None, cols: slice | None = None) -> UInt8:
        """RGB uint8 [H, W, 3] of sample `i`, or the given window of it; an own copy.

        Raises `ShardError`, naming shard and sample, where the data are damaged.
        """
        return self._window(i, "images", rows, cols)

    def labels(self, i: int, rows: slice | None = None, cols: slice | None = None) -> UInt8:
        """Label ids of the source, uint8 [H, W], of sample `i` or a window; as `image`."""
        return self._window(i, "labels", rows, cols)

    def labels_full(self, i: int) -> UInt8:
        """Label ids of sample `i` at the original size, uint8 [h, w]; split 'val' only.

        Raises `ValueError` for other splits, `ShardError` where the data are damaged.
        """
        shard, row = self._locate(i)
        if shard.labels_full is None:
            raise ValueError(
                f"{self.packed_dir}/{self.split}: full-size labels are packed for 'val' only"
            )
        return shard.full_labels(row, self.verify).copy()

    def original_size(self, i: int) -> tuple[int, int]:
        """Height and width of sample `i` before packing, in pixels."""
        shard, row = self._locate(i)
        return int(shard.sizes[row, 0]), int(shard.sizes[row, 1])
