"""One shard, an HDF5 file: what is in it, how it is opened, and how damage is found.

FORMAT.md describes the format. Contiguous data can be memory-mapped at `dset.id.get_offset()`:
standard HDF5 for every other tool, while we read without HDF5's lock and touch only the pages that
are needed. Contiguous data has no checksum of HDF5's own, hence the digests.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from data_prep.index import FORMAT_VERSION, ShardEntry, ShardError, recipe_differences, rest_digest
from data_prep.labels import UInt8

BAND_ROWS = 64
# Datasets of pixels: everything else in a shard is small.
PIXELS = ("images", "labels", "labels_full")
PixelName = Literal["images", "labels"]
UInt32 = npt.NDArray[np.uint32]
UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
REPAIR = "delete the file and run `python -m data_prep.pack` again; complete shards are kept"


def band_digests(array: UInt8) -> UInt64:
    """xxh3_64 of every 64 rows of a C-contiguous array: uint64 [ceil(rows / 64)]."""
    bands = [array[row : row + BAND_ROWS] for row in range(0, len(array), BAND_ROWS)]
    return np.array([xxhash.xxh3_64_intdigest(band.data) for band in bands], np.uint64)


@dataclass(frozen=True)
class OpenShard:
    """A shard's small arrays, and its pixels memory-mapped read-only; holds no HDF5 handle.

    `checked` says which digests were compared already, so each is compared once.
    """

    path: Path
    recipe: dict[str, Any]
    keys: list[str]
    sizes: Int64
    images: UInt8
    labels: UInt8
    image_digests: UInt64
    label_digests: UInt64
    image_histograms: UInt32
    label_histograms: UInt32
    labels_full: UInt8 | None = None
    labels_full_offsets: UInt64 | None = None
    labels_full_digests: UInt64 | None = None
    checked: dict[str, Flags] = field(default_factory=dict)

    def damaged(self, row: int, what: str) -> ShardError:
        """The error for a sample whose data does not match its digest."""
        return ShardError(
            f"{self.path}: sample {self.keys[row]!r}: {what} not match the stored digest: the "
            f"shard is damaged; {REPAIR}"
        )

    def check_rows(self, row: int, name: PixelName, start: int, stop: int) -> None:
        """Check the bands that hold rows start..stop-1, those that were not checked before."""
        first, last = start // BAND_ROWS, -(-stop // BAND_ROWS)
        checked = self.checked[name][row]
        if checked[first:last].all():
            return
        data = self.images if name == "images" else self.labels
        digests = self.image_digests if name == "images" else self.label_digests
        for band in range(first, last):
            begin, end = band * BAND_ROWS, min((band + 1) * BAND_ROWS, data.shape[1])
            if xxhash.xxh3_64_intdigest(data[row, begin:end].data) != digests[row, band]:
                raise self.damaged(row, f"rows {begin}..{end - 1} of {name} do")
            checked[band] = True

    def full_labels(self, row: int, verify: bool) -> UInt8:
        """The label ids of a 'val' sample at its original size: uint8 [h, w], a view."""
        assert self.labels_full is not None, f"{self.path} holds no full-size labels"
        assert self.labels_full_offsets is not None and self.labels_full_digests is not None
        begin, end = (int(offset) for offset in self.labels_full_offsets[row : row + 2])
        height, width = (int(length) for length in self.sizes[row])
        flat, checked = self.labels_full[begin:end], self.checked["labels_full"]
        if flat.size != height * width or (
            verify
            and not checked[row]
            and xxhash.xxh3_64_intdigest(flat.data) != self.labels_full_digests[row]
        ):
            raise self.damaged(row, "the full-size labels do")
        checked[row] |= verify
        return flat.reshape(height, width)


def extents(file: h5py.File) -> dict[str, tuple[int, int]]:
    """Where the datasets of pixels lie in a shard: offset and bytes of each."""
    found = {}
    for name in PIXELS:
        if name in file:
            offset, dataset = file[name].id.get_offset(), file[name]
            if offset is None or dataset.dtype != np.uint8:
                raise ValueError(f"dataset {name!r} is not contiguous uint8")
            found[name] = (int(offset), int(dataset.size))
    return found


def read_extents(path: Path) -> dict[str, tuple[int, int]]:
    """`extents` of a shard that is known to be good."""
    with h5py.File(path, "r", locking=False) as file:
        return extents(file)


def open_shard(path: Path) -> OpenShard:
    """Open one shard. Raises `ShardError` where it is missing or cannot be read as a shard."""
    try:
        # Shards never change under their name, so no lock (GPFS and Lustre may have none).
        with h5py.File(path, "r", locking=False) as file:
            shard = _open(path, file)
    except FileNotFoundError:
        raise missing(path) from None
    except ShardError:
        raise
    except OSError as error:
        if error.errno is None:  # HDF5's own: what it found is no shard
            raise _unreadable(path, error) from None
        raise OSError(error.errno, error.strerror, str(path)) from None
    except Exception as error:  # damaged metadata makes h5py raise nearly anything
        raise _unreadable(path, error) from None
    _check_shapes(shard)
    return shard


def _unreadable(path: Path, error: Exception) -> ShardError:
    return ShardError(f"{path}: cannot be read as a shard ({error}); {REPAIR}")


def _open(path: Path, file: h5py.File) -> OpenShard:
    recipe = dict(json.loads(file.attrs["recipe"]))
    version = recipe.get("format_version")
    if version != FORMAT_VERSION:
        raise ShardError(
            f"{path}: format_version {version}, expected {FORMAT_VERSION}; pack the data set again "
            "into another directory with this version of the code"
        )
    # One map for the whole file: a map keeps a file descriptor.
    whole = np.memmap(path, np.uint8, "r").view(np.ndarray)  # indexing a memmap object is slow
    pixels = {
        name: whole[offset : offset + size].reshape(file[name].shape)
        for name, (offset, size) in extents(file).items()
    }
    small = {name: file[name][...] for name in file if name not in (*PIXELS, "keys")}
    keys = [key.decode() for key in file["keys"][...]]
    count, bands = small["image_digests"].shape
    checked = {name: np.zeros((count, bands), np.bool_) for name in ("images", "labels")}
    checked["labels_full"] = np.zeros(count, np.bool_)
    return OpenShard(path=path, recipe=recipe, keys=keys, checked=checked, **pixels, **small)


def missing(path: Path) -> ShardError:
    """The error for a shard that is in the index but not on disk."""
    return ShardError(
        f"{path}: not there, though the index names it; run `python -m data_prep.pack` again, "
        "which packs missing shards only"
    )


def _check_shapes(shard: OpenShard) -> None:
    """Raise `ShardError` where the datasets do not fit each other."""
    count, height, width = shard.labels.shape if shard.labels.ndim == 3 else (0, 0, 0)
    bands = -(-height // BAND_ROWS)
    expected = {
        "images": (count, height, width, 3),
        "sizes": (count, 2),
        "image_digests": (count, bands),
        "label_digests": (count, bands),
        "image_histograms": (count, 3, 256),
        "label_histograms": (count, 256),
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


def check_outside_pixels(path: Path, entry: ShardEntry) -> None:
    """Compare a shard's size, and its bytes outside the pixels, with the index.

    After this, HDF5 opens only metadata that are as they were written: some changed bytes in them
    alter nothing that a reader sees, others may crash the library. Raises `ShardError`.
    """
    try:
        size = path.stat().st_size
        intact = size == entry.bytes and rest_digest(path, entry.pixels) == entry.rest_xxh3_64
    except FileNotFoundError:
        raise missing(path) from None
    if not intact:
        found = (
            f"{size} bytes, expected {entry.bytes}"
            if size != entry.bytes
            else "bytes outside the pixels (HDF5's metadata, keys, digests) are not those that "
            "the index records"
        )
        raise ShardError(f"{path}: damaged, or another shard than expected: {found}; {REPAIR}")


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
