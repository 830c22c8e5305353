"""Writes one shard: streamed, byte-for-byte reproducible, verified before it gets its name."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import xxhash

from data_prep.atomic import fsync_path, replacing
from data_prep.labels import UInt8
from data_prep.shards import BAND_ROWS, band_digests, verify_shard


class PackedSample(NamedTuple):
    """One sample as it is written."""

    image: UInt8  # [H, W, 3] RGB
    labels: UInt8  # [H, W] label ids of the source
    labels_full: UInt8 | None  # [h, w] at the original size; None outside 'val'


def write_shard(
    path: Path,
    recipe: dict[str, Any],
    keys: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    samples: Iterable[PackedSample],
) -> None:
    """Write one shard atomically; it gets its name only after it was read back and verified.

    `recipe` is `shard_recipe(...)`; `sizes` are the original [height, width] of each sample.
    `samples` is streamed: one sample is in memory at a time. The same input gives the same bytes.
    """
    with replacing(path) as temporary:
        _write_file(temporary, recipe, keys, sizes, samples)
        fsync_path(temporary)
        verify_shard(temporary, recipe, keys, sizes)


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
    with h5py.File(path, "w", libver=("v108", "v108"), locking=False) as file:
        file.attrs["recipe"] = json.dumps(recipe, sort_keys=True)
        key_type = h5py.string_dtype("utf-8", max(map(len, encoded)))
        _create(file, "keys", (count,), key_type)[...] = np.array(encoded, key_type)
        _create(file, "sizes", (count, 2), "<i8")[...] = np.array(sizes, np.int64)
        images = _create(file, "images", (count, height, width, 3), "u1")
        labels = _create(file, "labels", (count, height, width), "u1")
        image_digests = _create(file, "image_digests", (count, bands), "<u8")
        label_digests = _create(file, "label_digests", (count, bands), "<u8")
        if full:
            offsets = np.concatenate([[0], np.cumsum([h * w for h, w in sizes])]).astype(np.uint64)
            _create(file, "labels_full_offsets", (count + 1,), "<u8")[...] = offsets
            labels_full = _create(file, "labels_full", (int(offsets[-1]),), "u1")
            full_digests = _create(file, "labels_full_digests", (count,), "<u8")
        for row, sample in enumerate(samples):
            images[row], labels[row] = sample.image, sample.labels
            image_digests[row] = band_digests(np.ascontiguousarray(sample.image))
            label_digests[row] = band_digests(np.ascontiguousarray(sample.labels))
            if full:
                assert sample.labels_full is not None, "samples of 'val' need full-size labels"
                flat = np.ascontiguousarray(sample.labels_full).reshape(-1)
                labels_full[int(offsets[row]) : int(offsets[row + 1])] = flat
                full_digests[row] = np.uint64(xxhash.xxh3_64_intdigest(flat.data))
