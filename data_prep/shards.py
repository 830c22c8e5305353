"""Reads a packed data set: one split, sample by sample, whole images or windows of them."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.index import ShardError, read_index, recipe_differences, shard_recipe
from data_prep.labels import UInt8
from data_prep.shard_file import (
    REPAIR,
    Flags,
    OpenShard,
    PixelName,
    check_outside_pixels,
    open_shard,
)

# Each open shard keeps one file descriptor; many systems allow a process 1024.
MOST_OPEN = 128


class PackedSplit:
    """One split of a packed data set, read by sample number 0..len-1.

    Creating it reads `index.json` only. A shard is opened when first needed, and the one not used
    for longest is closed when there are more than `MOST_OPEN`. What stays open is a memory map, no
    HDF5 state, so a reader can be used after a fork; a pickled one opens its shards anew.

    Attributes: `keys` (names of the samples, in order), `height` and `width` (of the packed
    images), `source` ('synthia' | 'cityscapes'), `fingerprint` (of the data that were packed),
    `statistics` (of the pixels). With `verify` the digest of a band of 64 rows is checked when the
    band is first read, and everything but pixels when a shard is opened.
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
        self.statistics = index.statistics[split]
        self.keys = [key for entry in self.entries for key in entry.keys]
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._checked: dict[int, dict[str, Flags]] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry the data.
        return {**self.__dict__, "_open": OrderedDict(), "_checked": {}}

    def _locate(self, i: int) -> tuple[OpenShard, int]:
        """The open shard and the row in it of sample `i`."""
        if not 0 <= i < len(self.keys):
            raise IndexError(f"sample {i} of {len(self.keys)} in {self.packed_dir}/{self.split}")
        number, row = divmod(i, self.recipe.pack.images_per_shard)
        shard = self._open.get(number)
        if shard is None:
            if len(self._open) >= MOST_OPEN:
                self._open.popitem(last=False)
            shard = self._open[number] = self._open_shard(number)
        self._open.move_to_end(number)
        return shard, row

    def _open_shard(self, number: int) -> OpenShard:
        entry = self.entries[number]
        path = self.packed_dir / entry.file
        if self.verify and number not in self._checked:
            check_outside_pixels(path, entry)
        shard = open_shard(path)
        expected = shard_recipe(self.recipe, self.split, number)
        if shard.recipe != expected or shard.keys != entry.keys:
            differences = recipe_differences(shard.recipe, expected) or "other samples"
            raise ShardError(
                f"{shard.path}: is not the shard that the index means: {differences}; {REPAIR}"
            )
        # What was compared stays so when the shard is closed and opened again.
        return replace(shard, checked=self._checked.setdefault(number, shard.checked))

    def _window(self, i: int, name: PixelName, rows: slice | None, cols: slice | None) -> UInt8:
        shard, row = self._locate(i)
        data = shard.images if name == "images" else shard.labels
        start, stop, step = (rows or slice(None)).indices(self.height)
        if step != 1:
            raise ValueError(f"rows: expected a slice of step 1, found {rows}")
        if self.verify:
            shard.check_rows(row, name, start, stop)
        return data[row, start:stop, cols or slice(None)]

    def image(
        self, i: int, rows: slice | None = None, cols: slice | None = None, *, copy: bool = True
    ) -> UInt8:
        """RGB uint8 [H, W, 3] of sample `i`, or the given window of it.

        Without `copy` a read-only view of the file's pages, for who copies anyway.
        Raises `ShardError`, naming shard and sample, where the data are damaged.
        """
        window = self._window(i, "images", rows, cols)
        return window.copy() if copy else window

    def labels(
        self, i: int, rows: slice | None = None, cols: slice | None = None, *, copy: bool = True
    ) -> UInt8:
        """Label ids of the source, uint8 [H, W], of sample `i` or a window; as `image`."""
        window = self._window(i, "labels", rows, cols)
        return window.copy() if copy else window

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
