"""The readers that `read.py` compares, each run in a process of its own: `read_peers.py NAME WORK`.

Commands come as JSON lines on stdin, answers go as JSON lines to stdout. Every reader is at its
best practice for uncompressed pixels on a local disk. Where a library hands out views of mapped
memory, no copy is made of them: the first copy is the one into the batch. Where one library offers
several ways, the comment says which was the fastest on this data.
"""

import json
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

BATCH = 8
DRAWS = 4096  # the windows repeat after so many draws
SHARD_BYTES = 64 << 20
PAIR = tuple[Any, Any]  # image u8 [h, w, 3] and labels u8 [h, w], numpy or torch
Read = Callable[[int, slice, slice], PAIR]


@dataclass(frozen=True)
class Case:
    """What is read: windows of the images of one data set, which lies in `folder`."""

    folder: Path
    height: int
    width: int
    window: tuple[int, int]
    images: int

    def pixels(self) -> PAIR:
        """All decoded images u8 [n, H, W, 3] and labels u8 [n, H, W], memory-mapped."""
        images, labels = (
            np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in ("images", "labels")
        )
        return images.view(np.ndarray), labels.view(np.ndarray)  # indexing a memmap is slow

    def split(self, flat: Any) -> PAIR:
        """Image and labels, as views, from the bytes of both, one after the other."""
        values = np.frombuffer(flat, np.uint8)
        end = 3 * self.height * self.width
        image = values[:end].reshape(self.height, self.width, 3)
        return image, values[end:].reshape(self.height, self.width)


def cases(work: Path) -> dict[str, Case]:
    """Name -> what is read."""
    return {
        "crops": Case(work / "crops", 1024, 2048, (512, 512), 16),
        "full": Case(work / "full", 760, 1280, (760, 1280), 32),
    }


class Draws:
    """Draw number -> window, and image for readers with random access; the same for everyone."""

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(0)
        (height, width), size = case.window, (DRAWS,)
        tops = rng.integers(0, case.height - height + 1, size).tolist()
        lefts = rng.integers(0, case.width - width + 1, size).tolist()
        self._windows = [
            (slice(top, top + height), slice(left, left + width))
            for top, left in zip(tops, lefts, strict=True)
        ]
        epochs = [rng.permutation(case.images) for _ in range(DRAWS // case.images)]
        self._images = np.concatenate(epochs).tolist()

    def window(self, draw: int) -> tuple[slice, slice]:
        """Rows and columns of a draw."""
        return self._windows[draw % DRAWS]

    def image(self, draw: int) -> int:
        """Number of the image of a draw: every epoch is a new permutation."""
        return int(self._images[draw % len(self._images)])


class Drawn(Dataset[PAIR]):
    """Item n = draw n of a reader with random access, which is opened in the worker."""

    def __init__(self, case: Case, open_reader: Callable[[Case], Read]) -> None:
        self._case, self._open, self._draws = case, open_reader, Draws(case)
        self._read: Read | None = None

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, draw: int) -> PAIR:
        if self._read is None:
            self._read = self._open(self._case)
        return self._read(self._draws.image(draw), *self._draws.window(draw))


def random_access(open_reader: Callable[[Case], Read]) -> Callable[[Case, int], Iterable[Any]]:
    """A loader of batches from a function that opens a case."""
    return lambda case, workers: DataLoader(
        Drawn(case, open_reader), batch_size=BATCH, num_workers=workers
    )


def open_ours(case: Case) -> Read:
    """The packed shards, digests on."""
    from data_prep.shards import PackedSplit

    split = PackedSplit(case.folder / "ours", "train")
    return lambda i, rows, cols: (
        split.image(i, rows, cols, copy=False),
        split.labels(i, rows, cols, copy=False),
    )


def open_memmap(case: Case) -> Read:
    """The decoded arrays, mapped: nothing but pixels."""
    images, labels = case.pixels()
    return lambda i, rows, cols: (images[i, rows, cols], labels[i, rows, cols])


def open_png(case: Case) -> Read:
    """The folder of PNG files through torchvision, then the window."""
    from torchvision.datasets import Cityscapes

    files = Cityscapes(str(case.folder / "source"), split="train", target_type="semantic")
    order = sorted(range(len(files)), key=lambda i: Path(files.images[i]).name)

    def read(i: int, rows: slice, cols: slice) -> PAIR:
        image, labels = (np.asarray(picture) for picture in files[order[i]])
        return image[rows, cols], labels[rows, cols]

    return read


def build_lmdb(case: Case) -> None:
    """One record per sample: the bytes of image and labels."""
    import lmdb

    images, labels = case.pixels()
    space = 2 * (images.nbytes + labels.nbytes)
    with lmdb.open(str(case.folder / "lmdb"), map_size=space) as database:
        for i in range(case.images):
            with database.begin(write=True) as transaction:
                transaction.put(b"%07d" % i, images[i].tobytes() + labels[i].tobytes())


def open_lmdb(case: Case) -> Read:
    """One read transaction for the life of the worker, so that its buffers stay valid."""
    import lmdb

    database = lmdb.open(
        str(case.folder / "lmdb"), readonly=True, lock=False, readahead=False, meminit=False
    )
    transaction = database.begin(buffers=True)

    def read(i: int, rows: slice, cols: slice) -> PAIR:
        image, labels = case.split(transaction.get(b"%07d" % i))
        return image[rows, cols], labels[rows, cols]

    return read


def build_mds(case: Case) -> None:
    """Columns of raw arrays of fixed shape: no header, no encoding."""
    from streaming import MDSWriter

    images, labels = case.pixels()
    shape = f"{case.height},{case.width}"
    columns = {"image": f"ndarray:uint8:{shape},3", "labels": f"ndarray:uint8:{shape}"}
    with MDSWriter(out=str(case.folder / "mds"), columns=columns, size_limit=SHARD_BYTES) as writer:
        for i in range(case.images):
            writer.write({"image": images[i], "labels": labels[i]})


def open_mds(case: Case) -> Read:
    """Streaming's data set for a local disk: as fast per sample as its StreamingDataset."""
    from streaming import LocalDataset

    samples = LocalDataset(str(case.folder / "mds"))

    def read(i: int, rows: slice, cols: slice) -> PAIR:
        sample = samples[i]
        return sample["image"][rows, cols], sample["labels"][rows, cols]

    return read


def build_litdata(case: Case) -> None:
    """Chunks of tensors, which are read as views of the mapped chunk."""
    from litdata.streaming import Cache

    images, labels = case.pixels()
    cache = Cache(str(case.folder / "litdata"), chunk_bytes=SHARD_BYTES)
    for i in range(case.images):
        cache[i] = {"image": torch.tensor(images[i]), "labels": torch.tensor(labels[i])}
    cache.done()
    cache.merge()


def open_litdata(case: Case) -> Read:
    """By index: faster here than its StreamingDataLoader."""
    from litdata import StreamingDataset

    samples = StreamingDataset(str(case.folder / "litdata"))

    def read(i: int, rows: slice, cols: slice) -> PAIR:
        sample = samples[i]
        return sample["image"][rows, cols], sample["labels"][rows, cols]

    return read


def build_webdataset(case: Case) -> None:
    """Tar files of one member per sample: the bytes of image and labels."""
    import webdataset

    images, labels = case.pixels()
    pattern = str(case.folder / "webdataset" / "%04d.tar")
    Path(pattern).parent.mkdir(parents=True)
    with webdataset.ShardWriter(pattern, maxsize=SHARD_BYTES, verbose=0) as writer:
        for i in range(case.images):
            flat = images[i].tobytes() + labels[i].tobytes()
            writer.write({"__key__": f"{i:07d}", "pixels": flat})


class _NextWindow:
    """Cuts the windows of the draws of this worker out of whole samples, in their own order."""

    def __init__(self, case: Case) -> None:
        self._case, self._draws = case, Draws(case)
        self._mine: Iterator[int] | None = None

    def __call__(self, sample: dict[str, Any]) -> PAIR:
        if self._mine is None:
            worker = get_worker_info()
            self._mine = count(worker.id, worker.num_workers)
        rows, cols = self._draws.window(next(self._mine))
        image, labels = self._case.split(sample["pixels"])
        return image[rows, cols], labels[rows, cols]


def load_webdataset(case: Case, workers: int) -> Iterable[Any]:
    """Each worker reads its tar files from end to end, over and over."""
    import webdataset

    files = sorted(str(path) for path in (case.folder / "webdataset").glob("*.tar"))
    samples: IterableDataset[PAIR] = webdataset.WebDataset(files, shardshuffle=False)
    samples = samples.repeat().map(_NextWindow(case))
    return webdataset.WebLoader(samples, batch_size=BATCH, num_workers=workers)


def nothing(case: Case) -> None:
    """For readers of what `read.py` makes itself."""


@dataclass(frozen=True)
class Reader:
    """How a format is written (into `case.folder`/NAME) and how its batches are loaded."""

    title: str
    build: Callable[[Case], None]
    load: Callable[[Case, int], Iterable[Any]]


READERS = {
    "ours": Reader("our shards, digests on", nothing, random_access(open_ours)),
    "png": Reader("PNG, torchvision", nothing, random_access(open_png)),
    "webdataset": Reader("WebDataset", build_webdataset, load_webdataset),
    "mds": Reader("MosaicML Streaming", build_mds, random_access(open_mds)),
    "litdata": Reader("LitData", build_litdata, random_access(open_litdata)),
    "lmdb": Reader("LMDB", build_lmdb, random_access(open_lmdb)),
    "memmap": Reader("numpy memmap (the limit)", nothing, random_access(open_memmap)),
}


def check(case: Case, reader: Reader) -> None:
    """Raise ValueError unless the windows of two epochs are those of the draws, of every image."""
    images, labels = case.pixels()
    draws, seen, draw = Draws(case), set(), 0
    for batch in islice(reader.load(case, 1), 2 * case.images // BATCH):
        for image, label in zip(*(part.numpy() for part in batch), strict=True):
            rows, cols = draws.window(draw)
            same = [
                i
                for i in range(case.images)
                if np.array_equal(images[i, rows.start, cols], image[0])  # most differ here
                and np.array_equal(images[i, rows, cols], image)
                and np.array_equal(labels[i, rows, cols], label)
            ]
            if len(same) != 1:
                raise ValueError(f"draw {draw}: its pixels are those of {len(same)} images, not 1")
            seen.update(same)
            draw += 1
    if len(seen) != case.images:
        raise ValueError(f"found {len(seen)} different images, expected {case.images}")


def own_memory(pid: int) -> int:
    """RssAnon + RssShmem of a process in bytes: mapped files in the page cache do not count."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0  # it has just ended
    return sum(1024 * int(line.split()[1]) for line in lines if line[:5] in ("RssAn", "RssSh"))


def _consume(batches: Iterator[Any], most: int, seconds: float) -> int:
    """Take so many batches, or as many as come in so many seconds; returns how many."""
    end = time.perf_counter() + seconds
    for taken in range(most):
        if time.perf_counter() >= end:
            return taken
        next(batches)
    return most


def measure(case: Case, reader: Reader, workers: int, seconds: float) -> dict[str, float]:
    """Samples/s in the steady state, and the most memory that one worker had."""
    batches = iter(reader.load(case, workers))
    next(batches)
    pids = [child.pid for child in multiprocessing.active_children()]
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, *(own_memory(pid) for pid in pids if pid is not None))

    threading.Thread(target=watch, daemon=True).start()
    _consume(batches, workers * case.images // BATCH, seconds)  # an epoch of every worker
    start = time.perf_counter()
    samples = BATCH * _consume(batches, sys.maxsize, seconds)
    elapsed = time.perf_counter() - start
    done.set()
    return {"rate": samples / elapsed, "memory": peak}


def answer(name: str, work: Path, command: dict[str, Any]) -> dict[str, Any]:
    """Carry out one command of `read.py`."""
    case, reader = cases(work)[command["case"]], READERS[name]
    if command["do"] == "build":
        if not (case.folder / name).exists():
            reader.build(case)
        check(case, reader)
        return {}
    return dict(measure(case, reader, command["workers"], command["seconds"]))


def main() -> None:
    """Obey until stdin ends. What libraries print goes to stderr."""
    name, work = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*not writable.*")  # nobody writes to the views
    for line in sys.stdin:
        try:
            reply = answer(name, work, json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers)


if __name__ == "__main__":
    main()
