"""Packing on several ranks: the same bytes from any number, errors that end all, and kills."""

import os
import pickle
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_data import contents, write_synthia, write_synthia_sizes

from data_prep.atomic import read_json
from data_prep.config import PackConfig
from data_prep.mpi import Alone, Tally
from data_prep.pack import pack
from data_prep.pack_lock import LOCK_NAME
from data_prep.processes import is_alive
from data_prep.samples import read_sample
from data_prep.shards import PackedSplit
from data_prep.sources import open_source
from data_prep.survey import PackJob

OPTIONS = ["--height=24", "--width=32", "--images-per-shard=3", "--val-images=3", "--subset"]
REPO_ROOT = Path(__file__).parent.parent
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
needs_mpiexec = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec (make setup installs mpich)")


class ThreadRank:
    """MPI between threads of this process: what mpi4py's communicator does for packing."""

    def __init__(self, rank: int, ranks: list["ThreadRank"], barrier: threading.Barrier) -> None:
        self.rank, self.ranks, self.barrier = rank, ranks, barrier
        self.mail: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.sent = b""
        self.aborted = False

    @property
    def size(self) -> int:
        return len(self.ranks)

    def _exchange(self, value: Any) -> list[Any]:
        self.sent = pickle.dumps(value)
        self.barrier.wait()
        everything = [pickle.loads(rank.sent) for rank in self.ranks]
        self.barrier.wait()
        return everything

    def bcast(self, value: Any, root: int = 0) -> Any:
        return self._exchange(value)[root]

    def gather(self, value: Any, root: int = 0) -> list[Any] | None:
        everything = self._exchange(value)
        return everything if self.rank == root else None

    def isend(self, value: Any, dest: int, tag: int = 0) -> Any:
        self.ranks[dest].mail.put(value)
        return SimpleNamespace(wait=lambda: None, test=lambda: (True, None))

    def iprobe(self, source: int = -1, tag: int = -1) -> bool:
        return not self.mail.empty()

    def recv(self, buf: Any = None, source: int = -1, tag: int = -1) -> Any:
        return self.mail.get_nowait()

    def Abort(self, errorcode: int = 0) -> None:
        self.aborted = True
        self.barrier.abort()
        sys.exit(errorcode)


def on_ranks(count: int, body: Callable[[ThreadRank], None]) -> list[ThreadRank]:
    """Run `body` on `count` ranks, each of which is the world's communicator to its thread."""
    ranks: list[ThreadRank] = []
    barrier, mine = threading.Barrier(count), threading.local()
    ranks += [ThreadRank(rank, ranks, barrier) for rank in range(count)]

    def run(rank: ThreadRank) -> None:
        mine.rank = rank
        with suppress(SystemExit):  # as a process that MPI ends
            body(rank)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.pack.world", lambda: mine.rank)
        threads = [threading.Thread(target=run, args=[rank]) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return ranks


def check_any_data_set(folder: Path, data: st.DataObject) -> None:
    """Pack a drawn data set on one rank and on several: the same bytes, which read as written."""
    side = st.integers(8, 40)
    sizes = data.draw(st.lists(st.tuples(side, side), min_size=1, max_size=6))
    config = PackConfig(
        height=data.draw(side),
        width=data.draw(side),
        images_per_shard=data.draw(st.integers(1, 4)),
        val_images=data.draw(st.integers(0, len(sizes) - 1)),
    )
    root = write_synthia_sizes(folder / "source", sizes)
    for ranks in (1, data.draw(st.integers(2, 3))):
        job = PackJob("synthia", root, folder / f"{min(ranks, 2)}", config, subset=True, tell=str)
        on_ranks(ranks, lambda rank, job=job: pack(job))
    assert contents(folder / "1") == contents(folder / "2")
    seen = {}
    for name, items in open_source("synthia", root, config.val_images).splits.items():
        split = PackedSplit(folder / "2", name)
        assert split.keys == [item.key for item in items]
        for i, item in enumerate(items):
            written = read_sample("synthia", item, config, full=True)
            seen[int(item.key)] = split.original_size(i)
            assert (split.image(i) == written.image).all()
            assert (split.labels(i) == written.labels).all()
            assert name == "train" or (split.labels_full(i) == written.labels_full).all()
    assert seen == dict(enumerate(sizes))
    shutil.rmtree(folder)


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_any_data_set_on_any_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    check_any_data_set(tmp_path_factory.mktemp("any"), data)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_many_data_sets_on_any_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    check_any_data_set(tmp_path_factory.mktemp("any"), data)


def test_what_rank_0_refuses_ends_all(
    synthia_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Header 0000006 is read by rank 1 of 3; rank 0 refuses, while the others wait for its word.
    path, packed = synthia_copy / "RAND_CITYSCAPES/RGB/0000006.png", tmp_path / "packed"
    path.write_bytes(path.read_bytes()[:-1])
    config = PackConfig(height=24, width=32, images_per_shard=2, val_images=3)
    job = PackJob("synthia", synthia_copy, packed, config, subset=True, tell=str)
    ranks = on_ranks(3, lambda rank: pack(job))
    assert ranks[0].aborted
    assert f"error (rank 0): {path}: damaged PNG file" in capsys.readouterr().err
    assert not contents(packed)


def test_the_counts_of_all_ranks_arrive() -> None:
    reports: list[tuple[int, int]] = []

    def count(rank: ThreadRank) -> None:
        tally = Tally(rank, 12, lambda *report: reports.append(report), every_s=0)
        for number in (1, 1, 2):
            tally.add(number)
        tally.finish()

    on_ranks(3, count)
    assert reports == sorted(reports) and {total for _, total in reports} == {12}
    assert reports.count((12, 12)) == 1  # a log shows the end once


def clean_environment(**more: str) -> dict[str, str]:
    """As outside any Slurm or MPI job, which the tests may run in."""
    prefixes = ("SLURM", "PMI", "OMPI", "HYDI")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    return {**clean, **more}


def command(ranks: int, root: Path, packed: Path, *options: str) -> list[str]:
    start = [str(MPIEXEC), "-n", str(ranks), sys.executable, "-m", "data_prep.pack", "synthia"]
    return [*start, str(root), str(packed), *options]


def run(ranks: int, root: Path, packed: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(ranks, root, packed, *options),
        env=clean_environment(),
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@needs_mpiexec
def test_three_ranks_write_the_same_bytes(
    synthia_root: Path, packed_synthia: Path, tmp_path: Path
) -> None:
    result = run(3, synthia_root, tmp_path / "packed", *OPTIONS)
    assert result.returncode == 0, result.stderr
    assert "10 images into 4 shards" in result.stdout and " on 3 ranks " in result.stdout
    assert result.stdout.splitlines()[-1].startswith("10 images done in ")
    assert contents(tmp_path / "packed") == contents(packed_synthia)


@needs_mpiexec
def test_an_error_on_one_rank_ends_all(
    synthia_copy: Path, packed_synthia: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Item 0000006 is in the last shard, which rank 1 packs; rank 0 goes on to the gather.
    label, packed = synthia_copy / "RAND_CITYSCAPES/GT/LABELS/0000006.png", tmp_path / "packed"
    good = label.read_bytes()
    label.write_bytes(good[:200] + bytes([good[200] ^ 1]) + good[201:])
    result = run(2, synthia_copy, packed, *OPTIONS)
    assert result.returncode != 0
    assert "error (rank 1): " in result.stderr and "0000006.png: damaged PNG" in result.stderr
    assert not (packed / "index.json").exists()
    assert not (packed / "val-00000.h5").exists()
    kept = (packed / "train-00001.h5").stat()
    while is_alive(read_json(packed / LOCK_NAME)):  # mpiexec does not wait for the ranks it kills
        time.sleep(0.01)
    label.write_bytes(good)
    monkeypatch.setattr("data_prep.pack.world", Alone)
    config = PackConfig(height=24, width=32, images_per_shard=3, val_images=3)
    pack(PackJob("synthia", synthia_copy, packed, config, subset=True))
    assert contents(packed) == contents(packed_synthia)
    assert (packed / "train-00001.h5").stat().st_ino == kept.st_ino


def kill_all(mark: str) -> None:
    """Kill every process that has `mark` in its environment: mpiexec, its proxy and the ranks."""
    while True:
        alive = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark.encode() in (process / "environ").read_bytes():
                    alive.append(int(process.name))
            except OSError:  # it has ended, or is another user's
                continue
        if not alive:
            return
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


@pytest.mark.slow
@needs_mpiexec
def test_kills_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    # 40 images, most of them links: what counts is the time that packing them takes.
    root = write_synthia(tmp_path / "source", 4, (512, 1024))
    for folder in ("RGB", "GT/LABELS"):
        for i in range(4, 40):
            path = root / "RAND_CITYSCAPES" / folder / f"{i:07d}.png"
            path.symlink_to(f"{i % 4:07d}.png")
    options = ["--height=256", "--width=512", "--images-per-shard=4", "--val-images=9", "--subset"]
    started = time.monotonic()
    assert run(2, root, tmp_path / "good", *options).returncode == 0
    duration, good = time.monotonic() - started, contents(tmp_path / "good")
    packed, rng, kills, mark = tmp_path / "packed", random.Random(4), 0, uuid.uuid4().hex
    while kills < 20:
        with subprocess.Popen(
            command(2, root, packed, *options),
            env=clean_environment(TEST_MARK=mark),
            cwd=REPO_ROOT,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                exit_code: int | None = process.wait(rng.uniform(0.2, 1) * duration)
            except subprocess.TimeoutExpired:
                exit_code = None
            kill_all(mark)
        if exit_code is None:
            kills += 1
        else:  # finished in between: begin anew
            assert exit_code == 0 and contents(packed) == good
            shutil.rmtree(packed)
    result = run(2, root, packed, *options)
    assert result.returncode == 0, result.stderr
    assert contents(packed) == good
