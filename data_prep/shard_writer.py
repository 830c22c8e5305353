"""Writes one shard: streamed, byte-for-byte reproducible, verified before it gets its name."""

import errno
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from data_prep.atomic import replacing
from data_prep.histograms import histogram, image_histogram
from data_prep.index import ShardEntry, ShardError, rest_digest, seal
from data_prep.samples import PackedSample
from data_prep.shard_file import (
    BAND_ROWS,
    OpenShard,
    band_digests,
    read_extents,
    verify_shard,
)

# A full file system, a full quota, a limit on the size of files.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Sink(io.FileIO):
    """A file that HDF5 writes to, which keeps the first error instead of raising it there.

    HDF5 crashes the process when it cannot write what it still has to on closing, and swallows
    what a signal raises in here.
    """

    error: BaseException | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, unless a write has failed before."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest) and self.error is None:
                rest = rest[super().write(rest) :]
        except BaseException as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the length, unless a write has failed before."""
        try:
            if self.error is None:
                return super().truncate(size)
        except BaseException as error:
            self.error = error
        return size or 0

    def check(self) -> None:
        """Raise the error that was kept."""
        if self.error is not None:
            raise self.error


def write_shard(
    path: Path,
    recipe: dict[str, Any],
    keys: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    samples: Iterable[PackedSample],
) -> tuple[ShardEntry, OpenShard]:
    """Write one shard atomically; it gets its name only after it was read back and verified.

    `recipe` is `shard_recipe(...)`; `sizes` are the original [height, width] of each sample.
    `samples` is streamed: one sample is in memory at a time. The same input gives the same bytes.
    Raises `ShardError` where there is no space left; complete shards stay as they are.
    """
    try:
        with replacing(path) as temporary:
            _write_file(temporary, recipe, keys, sizes, samples)
            digest = seal(temporary)
            shard = verify_shard(temporary, recipe, keys, sizes)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise ShardError(
            f"{path}: {error.strerror} while it was being written; make room (or choose another "
            "directory) and run `python -m data_prep.pack` again; complete shards are kept"
        ) from None
    return shard_entry(path, keys, digest), shard


def shard_entry(path: Path, keys: Sequence[str], digest: str) -> ShardEntry:
    """What the index records of a good shard; `digest` is that of the whole file."""
    pixels = read_extents(path)
    return ShardEntry(
        file=path.name,
        bytes=path.stat().st_size,
        xxh3_64=digest,
        rest_xxh3_64=rest_digest(path, pixels),
        pixels=pixels,
        keys=list(keys),
    )


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    """A contiguous dataset whose place is fixed now: the layout never depends on write order."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # a time of creation would change the bytes
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    space = h5py.h5s.create_simple(shape)
    return h5py.Dataset(h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=creation))


def _write_file(
    path: Path,
    recipe: dict[str, Any],
    keys: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    samples: Iterable[PackedSample],
) -> None:
    """Stream `samples` into a new HDF5 file."""
    count, height, width = len(keys), recipe["pack"]["height"], recipe["pack"]["width"]
    bands, full = -(-height // BAND_ROWS), recipe["split"] == "val"
    encoded = [key.encode() for key in keys]
    # A fixed libver fixes the file's layout; v108 has checksums over the metadata, and none of
    # the 'open for write' marks that a killed writer leaves behind from v110 on.
    with _Sink(path, "w+") as sink, h5py.File(sink, "w", libver=("v108", "v108")) as file:
        file.attrs["recipe"] = json.dumps(recipe, sort_keys=True)
        key_type = h5py.string_dtype("utf-8", max(map(len, encoded)))
        _create(file, "keys", (count,), key_type)[...] = np.array(encoded, key_type)
        _create(file, "sizes", (count, 2), "<i8")[...] = np.array(sizes, np.int64)
        images = _create(file, "images", (count, height, width, 3), "u1")
        labels = _create(file, "labels", (count, height, width), "u1")
        image_digests = _create(file, "image_digests", (count, bands), "<u8")
        label_digests = _create(file, "label_digests", (count, bands), "<u8")
        image_histograms = _create(file, "image_histograms", (count, 3, 256), "<u4")
        label_histograms = _create(file, "label_histograms", (count, 256), "<u4")
        if full:
            offsets = np.concatenate([[0], np.cumsum([h * w for h, w in sizes])]).astype(np.uint64)
            _create(file, "labels_full_offsets", (count + 1,), "<u8")[...] = offsets
            labels_full = _create(file, "labels_full", (int(offsets[-1]),), "u1")
            full_digests = _create(file, "labels_full_digests", (count,), "<u8")
        for row, sample in enumerate(samples):
            images[row], labels[row] = sample.image, sample.labels
            sink.check()
            image_digests[row] = band_digests(np.ascontiguousarray(sample.image))
            label_digests[row] = band_digests(np.ascontiguousarray(sample.labels))
            image_histograms[row] = image_histogram(sample.image)
            label_histograms[row] = histogram(sample.labels)
            if full:
                assert sample.labels_full is not None, "samples of 'val' need full-size labels"
                flat = np.ascontiguousarray(sample.labels_full).reshape(-1)
                labels_full[int(offsets[row]) : int(offsets[row + 1])] = flat
                full_digests[row] = np.uint64(xxhash.xxh3_64_intdigest(flat.data))
        file.close()
        sink.check()
