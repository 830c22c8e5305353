"""One packing per directory: who holds it, who may take it over, and what stays when it ends."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tiny_data import PACKED, contents

from data_prep.config import PackConfig
from data_prep.index import ShardError
from data_prep.pack import pack
from data_prep.pack_lock import LOCK_NAME, PackingElsewhereError, packing
from data_prep.processes import identity
from data_prep.survey import PackJob

pytestmark = pytest.mark.usefixtures("_no_launcher")
REPO_ROOT = Path(__file__).parent.parent


class Watch:
    """The clock of another host's lock: time passes only in `sleep`, and then something happens."""

    def __init__(self, happens: Callable[[float], None] = lambda now: None) -> None:
        self.now, self.happens = 0.0, happens

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.happens(self.now)


def write_lock(folder: Path, **changes: Any) -> Path:
    """The lock of another process."""
    folder.mkdir(exist_ok=True)
    path = folder / LOCK_NAME
    path.write_text(json.dumps({**identity(), "token": "theirs", **changes}))
    return path


def ended_process() -> dict[str, Any]:
    """The identity of a process of this host that has ended."""
    with subprocess.Popen(["sleep", "100"]) as process:
        ended = identity(process.pid)
        process.kill()
    return ended


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return tmp_path / "packed"


def test_a_second_packing_is_refused_and_disturbs_nothing(
    synthia_root: Path, packed_synthia: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.pack_lock._BEAT_S", 3600.0)  # so that the lock stays as it is
    second: list[subprocess.CompletedProcess[str]] = []
    command = [sys.executable, "-m", "data_prep.pack", "synthia", str(synthia_root), str(packed)]
    options = ["--height=24", "--width=32", "--images-per-shard=3", "--val-images=3", "--subset"]

    def progress(done: int, total: int) -> None:  # called while the directory is held
        before = contents(packed)
        second.append(
            subprocess.run([*command, *options], cwd=REPO_ROOT, capture_output=True, text=True)
        )
        assert contents(packed) == before and "train-00000.h5" in before

    config = PackConfig(height=PACKED[0], width=PACKED[1], images_per_shard=3, val_images=3)
    pack(PackJob("synthia", synthia_root, packed, config, subset=True, progress=progress))
    assert second[0].returncode == 1
    here = f"process {os.getpid()} on {identity()['host']}"
    assert f"error: {packed}: {here} is packing into it; wait for it or stop it" in second[0].stderr
    assert contents(packed) == contents(packed_synthia)


@pytest.mark.parametrize("how", ["ended", "its id belongs to another now", "damaged lock"])
def test_the_lock_of_a_dead_process_is_taken_over_at_once(
    packed: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("data_prep.pack_lock.time", None)  # nothing is waited for
    if how == "ended":
        path = write_lock(packed, **ended_process())
    else:
        path = write_lock(packed, process_start=1)
    if how == "damaged lock":
        path.write_text(path.read_text()[:-5])
    with packing(packed, pytest.fail):
        held = json.loads(path.read_text())
        assert held["pid"] == os.getpid() and held["token"] != "theirs"
        assert [p.name for p in packed.iterdir()] == [LOCK_NAME]
    assert not list(packed.iterdir())


def test_the_lock_of_a_living_process_holds(packed: Path) -> None:
    path = write_lock(packed)
    before = path.read_bytes()
    with pytest.raises(PackingElsewhereError, match=r"packing into it; .* or choose another"):
        packing(packed, pytest.fail).__enter__()
    assert contents(packed) == {LOCK_NAME: before}


def test_a_beating_lock_of_another_host_holds(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = write_lock(packed, host="elsewhere", pid=7), []

    def beat(now: float) -> None:
        if now >= 25:
            write_lock(packed, host="elsewhere", pid=7, beat=1)

    monkeypatch.setattr("data_prep.pack_lock.time", Watch(beat))
    with pytest.raises(PackingElsewhereError, match=r"process 7 on elsewhere is packing"):
        packing(packed, told.append).__enter__()
    assert told == [
        f"{path}: held by process 7 on elsewhere; waiting 60 s to see whether it is alive"
    ]
    assert json.loads(path.read_text())["beat"] == 1
    assert [p.name for p in packed.iterdir()] == [LOCK_NAME]


@pytest.mark.parametrize("ends", [False, True])
def test_a_silent_lock_of_another_host_is_taken_over(
    packed: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    path = write_lock(packed, host="elsewhere", pid=7)

    def end(now: float) -> None:
        if ends and now == 5:
            path.unlink()

    watch = Watch(end)
    monkeypatch.setattr("data_prep.pack_lock.time", watch)
    with packing(packed, lambda line: None):
        assert watch.now == (5 if ends else 60)
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not list(packed.iterdir())


def test_another_that_is_quicker_keeps_what_it_took(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lock(packed, host="elsewhere", pid=7)
    told: list[str] = []

    def taken(now: float) -> None:  # in the last moment of the watch, by a process of a third host
        if now == 30:
            write_lock(packed, host="third", pid=8, token="quicker")
        if now == 40:
            write_lock(packed, host="third", pid=8, token="quicker", beat=1)

    monkeypatch.setattr("data_prep.pack_lock.time", Watch(taken))
    with pytest.raises(PackingElsewhereError, match=r"process \d on (elsewhere|third) is"):
        packing(packed, told.append).__enter__()
    assert json.loads(path.read_text())["token"] == "quicker"
    assert [p.name for p in packed.iterdir()] == [LOCK_NAME]


def test_the_holder_shows_that_it_is_alive(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.pack_lock._BEAT_S", 0.005)
    path = packed / LOCK_NAME
    with packing(packed, pytest.fail):
        first = json.loads(path.read_text())
        seen = first
        while int(seen.get("beat", 0)) < 2:
            time.sleep(0.005)
            with suppress(ValueError):  # caught while it was rewritten
                seen = json.loads(path.read_text())
        assert seen == {**first, "beat": seen["beat"]}
    assert not list(packed.iterdir())


def test_a_lock_that_was_taken_over_is_left_alone(packed: Path) -> None:
    with packing(packed, pytest.fail):
        theirs = write_lock(packed, host="elsewhere").read_bytes()
    assert contents(packed) == {LOCK_NAME: theirs}


def test_a_packing_that_fails_gives_its_lock_back(synthia_root: Path, packed: Path) -> None:
    config = PackConfig(height=PACKED[0], width=PACKED[1])
    job = PackJob("synthia", synthia_root, packed, config, subset=True)
    (packed / ".train-00000.node.1.tmp.h5").mkdir(parents=True)  # nothing that can be unlinked
    with pytest.raises(ShardError, match=r"cannot be written to \(.*\); choose another") as caught:
        pack(job)
    assert caught.value and not (packed / LOCK_NAME).exists()


def test_leftovers_may_vanish_while_they_are_removed(
    synthia_root: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Such as the file of another packing that finds the lock held, and ends.
    listing = Path.glob

    def listed_and_gone(folder: Path, pattern: str) -> list[Path]:
        found = list(listing(folder, pattern))
        for path in found:
            path.unlink()
        return found

    packed.mkdir(exist_ok=True)
    (packed / ".train-00000.node.1.tmp.h5").write_bytes(b"half")
    config = PackConfig(height=PACKED[0], width=PACKED[1])
    job = PackJob("synthia", synthia_root, packed, config, subset=True)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", listed_and_gone)
        pack(job)
    assert sorted(contents(packed)) == ["index.json", "train-00000.h5"]


def test_a_directory_below_a_file_cannot_be_written_to(synthia_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    config = PackConfig(height=PACKED[0], width=PACKED[1])
    job = PackJob("synthia", synthia_root, tmp_path / "file" / "packed", config, subset=True)
    message = r"file/packed: cannot be written to \(Not a directory\); choose another directory, or"
    with pytest.raises(ShardError, match=message):
        pack(job)
    assert (tmp_path / "file").read_text() == "mine"
