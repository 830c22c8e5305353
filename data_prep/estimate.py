"""What a packing will take, told before it starts: bytes, files, time; refused without space."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from data_prep.config import PackConfig
from data_prep.index import ShardError
from data_prep.shard_file import BAND_ROWS

# Bytes beside the pixels: of each sample two histograms, its size, key and line in the index; of
# each shard HDF5's metadata. Rounded up.
_PER_SAMPLE, _PER_SHARD = 4096 + 512, 16384
_DIGEST = 8


@dataclass(frozen=True)
class Estimate:
    """Of what is left to do; `seconds_each` is the measured time of one image on one rank."""

    images: int
    shards: int
    bytes: int
    ranks: int
    seconds_each: float

    @property
    def seconds(self) -> float:
        """Wall time, if all ranks are as fast as the one that was measured."""
        return self.images * self.seconds_each / max(1, min(self.ranks, self.shards))

    def describe(self, out_dir: Path) -> str:
        """One line for a user, before anything is written."""
        if not self.images:
            return f"nothing to pack: all shards are in {out_dir}; they are verified"
        free, files = free_space(out_dir)
        return (
            f"to pack: {counted(self.images, 'image')} into {counted(self.shards, 'shard')}, "
            f"{readable_size(self.bytes)} of {readable_size(free)} free"
            + (f", {self.shards + 1:,} files of {files:,} free" if files is not None else "")
            + f"; about {in_minutes(self.seconds)} on {counted(self.ranks, 'rank')}"
            + f" ({1000 * self.seconds_each:.0f} ms an image)"
        )


def counted(number: int, thing: str) -> str:
    """1 shard, 2,000 shards."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def readable_size(size: int) -> str:
    """Bytes in MB or GB (10^9), with a digit where it says something."""
    if size < 1e9:
        return f"{size / 1e6:,.0f} MB"
    return f"{size / 1e9:,.1f} GB" if size < 100e9 else f"{size / 1e9:,.0f} GB"


def in_minutes(seconds: float) -> str:
    """Seconds as the largest unit that fits: 42 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def shard_bytes(samples: int, config: PackConfig, full_pixels: int) -> int:
    """Size of a shard, slightly rounded up; `full_pixels` of its full-size labels."""
    bands = -(-config.height // BAND_ROWS)
    each = 4 * config.height * config.width + 2 * bands * _DIGEST + _PER_SAMPLE
    return samples * each + full_pixels + _PER_SHARD


def free_space(folder: Path) -> tuple[int, int | None]:
    """Free bytes, and free files where the file system counts them, at a folder that may not exist.

    A quota shows only where the file system reports it so (GPFS with filesetdf does).
    """
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder)
    return shutil.disk_usage(folder).free, status.f_favail if status.f_files else None


def require_space(out_dir: Path, estimate: Estimate) -> None:
    """Raise `ShardError` where what is left to pack does not fit."""
    free, files = free_space(out_dir)
    lacks = []
    if estimate.bytes > free:
        lacks.append(f"{readable_size(estimate.bytes)} needed, {readable_size(free)} free")
    if files is not None and estimate.shards + 1 > files:
        lacks.append(f"{estimate.shards + 1:,} files needed, {files:,} free")
    if lacks:
        raise ShardError(
            f"{out_dir}: not enough space for {counted(estimate.images, 'image')} in "
            f"{counted(estimate.shards, 'shard')}: {'; '.join(lacks)}; make room, choose another "
            "directory, or pack at a lower resolution; nothing was written"
        )
