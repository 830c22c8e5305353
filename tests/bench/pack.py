"""Images per second of packing, beside the limit: decoding the same PNG files and nothing else.

    python tests/bench/pack.py [--root CITYSCAPES]        (make bench-pack)

`data_prep.pack` runs as a command, on one rank and on two. A rate is taken from the difference of a
long pack and a short one, so that the start of interpreter and MPI, which is printed apart, is not
in it; all that grows with the images is: listing, decoding, resizing, digests, writing, fsync,
reading back. The limit is cv2.imread of image and label in one process with one thread. All run in
turn; figures are medians over the rounds. Sources are in the page cache.

The rendered PNG are smaller than photographs of the same size, and so faster to decode: with
--root, photographs in the Cityscapes layout are used instead, packed at half their size.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import cv2

from data_prep.minicity import render_cityscapes, render_synthia
from pipeline.profiles import find_mpiexec

ROOT = Path(__file__).resolve().parents[2]
RENDERED = 12  # different images; the data sets that are packed are links to them
SHORT, LONG = 2, 10  # shards


@dataclass(frozen=True)
class Layout:
    """One data set to pack: pairs of image and label files."""

    title: str
    kind: str
    pairs: list[tuple[Path, Path]]
    size: tuple[int, int]  # packed height and width


def decode(layout: Layout, seconds: float) -> float:
    """Images per second of decoding alone."""
    done, start = 0, time.perf_counter()
    for pair in cycle(layout.pairs):
        for path in pair:
            cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        done += 1
        if time.perf_counter() - start > seconds:
            break
    return done / (time.perf_counter() - start)


def link(layout: Layout, root: Path, images: int) -> None:
    """A data set of so many images, which are links to the files of the layout."""

    def place(path: Path, target: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def place_cityscapes(split: str, number: int, pair: tuple[Path, Path]) -> None:
        for kind, target in zip(("leftImg8bit", "gtFine_labelIds"), pair, strict=True):
            name = f"{split}city_{number:06d}_000019_{kind}.png"
            place(root / kind.split("_")[0] / split / f"{split}city" / name, target)

    for number, pair in enumerate(islice(cycle(layout.pairs), images)):
        if layout.kind == "synthia":
            place(root / "RGB" / f"{number:07d}.png", pair[0])
            place(root / "GT" / "LABELS" / f"{number:07d}.png", pair[1])
        else:
            place_cityscapes("train", number, pair)
    if layout.kind == "cityscapes":
        place_cityscapes("val", 0, layout.pairs[-1])


def pack_seconds(layout: Layout, root: Path, per_shard: int, ranks: int) -> float:
    """Wall time of one pack as a command. Raises RuntimeError with what it said if it failed."""
    out_dir = root.with_name(f"{root.name}-packed")
    sizes = ("--height", layout.size[0], "--width", layout.size[1], "--images-per-shard", per_shard)
    command = [sys.executable, "-m", "data_prep.pack", layout.kind, root, out_dir, *sizes]
    if ranks > 1:
        command = [find_mpiexec(), "-n", ranks, *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    ended = subprocess.run(
        [*map(str, command), "--subset"], env=environment, capture_output=True, text=True
    )
    elapsed = time.perf_counter() - start
    shutil.rmtree(out_dir, ignore_errors=True)
    if ended.returncode:
        raise RuntimeError(f"packing failed:\n{ended.stdout}{ended.stderr}")
    return elapsed


def measure(layout: Layout, work: Path, rounds: int) -> None:
    """Print one line per figure of a layout."""
    decode(layout, 1)  # into the page cache
    per_shard = max(1, round(decode(layout, 2)))  # so that the long pack takes 10 s and more
    short, long = work / f"{layout.kind}-short", work / f"{layout.kind}-long"
    link(layout, short, SHORT * per_shard)
    link(layout, long, LONG * per_shard)
    all_ranks = (1, 2) if find_mpiexec() else (1,)
    limits: list[float] = []
    rates: dict[int, list[float]] = {ranks: [] for ranks in all_ranks}
    starts: dict[int, list[float]] = {ranks: [] for ranks in all_ranks}
    seconds: dict[int, list[float]] = {ranks: [] for ranks in all_ranks}
    for _ in range(rounds):
        limits.append(decode(layout, 5))
        for ranks in all_ranks:
            brief, whole = (pack_seconds(layout, r, per_shard, ranks) for r in (short, long))
            rate = (LONG - SHORT) * per_shard / (whole - brief)
            rates[ranks].append(rate)
            starts[ranks].append(brief - SHORT * per_shard / rate)
            seconds[ranks].append(whole)
    limit = statistics.median(limits)
    print(f"\n{layout.title}, {LONG * per_shard} images, {rounds} rounds")
    print(f"  decoding alone, one process     {limit:8.1f} images/s")
    for ranks in all_ranks:
        print(
            f"  packing on {ranks} rank(s)            {statistics.median(rates[ranks]):8.1f} "
            f"images/s without start-up ({statistics.median(starts[ranks]):.1f} s of "
            f"{statistics.median(seconds[ranks]):.1f} s)"
        )
    print_targets({ranks: statistics.median(rates[ranks]) for ranks in all_ranks}, limit)


def print_targets(rates: dict[int, float], limit: float) -> None:
    """The two ratios beside their targets."""
    ratio = rates[1] / limit
    print(f"  1 rank >= 0.8 x decoding alone: {ratio:.2f} {'met' if ratio >= 0.8 else 'MISSED'}")
    if 2 not in rates:
        print("  2 ranks: not run: no mpiexec beside this Python or on PATH")
        return
    ratio = rates[2] / rates[1]
    print(f"  2 ranks >= 1.8 x 1 rank: {ratio:.2f} {'met' if ratio >= 1.8 else 'MISSED'}")


def cityscapes_pairs(root: Path) -> list[tuple[Path, Path]]:
    """The train images of a folder in the Cityscapes layout, with their labels."""
    pairs = []
    for path in sorted((root / "leftImg8bit/train").glob("*/*_leftImg8bit.png")):
        name = path.name.replace("_leftImg8bit", "_gtFine_labelIds")
        pairs.append((path, root / "gtFine/train" / path.parent.name / name))
    return pairs


def rendered_synthia(work: Path) -> Layout:
    """Synthia's size, not resized."""
    root = work / "synthia"
    render_synthia(root, images=RENDERED, seed=0, height=760, width=1280, processes=2)
    images = sorted((root / "RAND_CITYSCAPES/RGB").glob("*.png"))
    pairs = [(path, root / "RAND_CITYSCAPES/GT/LABELS" / path.name) for path in images]
    return Layout("Synthia, 1280 x 760, rendered", "synthia", pairs, (760, 1280))


def rendered_cityscapes(work: Path) -> Layout:
    """Cityscapes' size, packed at half of it."""
    root = work / "cityscapes"
    size = {"height": 1024, "width": 2048, "processes": 2}
    render_cityscapes(root, train_images=RENDERED, val_images=0, seed=0, **size)
    title = "Cityscapes, 2048 x 1024 to 1024 x 512, rendered"
    return Layout(title, "cityscapes", cityscapes_pairs(root), (512, 1024))


def photographs(root: Path) -> Layout:
    """A user's own photographs, packed at half their size. Raises ValueError without any."""
    pairs = cityscapes_pairs(root.resolve())
    if not pairs:
        raise ValueError(f"{root}: no leftImg8bit/train/CITY/*_leftImg8bit.png in it")
    height, width = cv2.imread(str(pairs[0][0])).shape[:2]
    half = (height // 2, width // 2)
    title = f"photographs, {width} x {height} to {half[1]} x {half[0]}"
    return Layout(title, "cityscapes", pairs, half)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="photographs in the Cityscapes layout")
    parser.add_argument("--work", type=Path, help="a folder to make temporary data in")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="tigan-bench-", dir=options.work) as name:
        work = Path(name)
        print("rendering", flush=True)
        measure(rendered_synthia(work), work, options.rounds)
        real = photographs(options.root) if options.root else rendered_cityscapes(work)
        measure(real, work, options.rounds)


if __name__ == "__main__":
    main()
