"""What a packing will take is told before it starts, and refused where it does not fit."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_data import contents, write_cityscapes

from data_prep.config import PackConfig
from data_prep.estimate import Estimate, in_minutes, readable_size
from data_prep.pace import Pace
from data_prep.pack import main, pack
from data_prep.sources import check_headers
from data_prep.survey import PackJob, estimate, list_source_files, survey_directory

pytestmark = pytest.mark.usefixtures("_no_launcher")
REPO_ROOT = Path(__file__).parent.parent
OPTIONS = ["--height=24", "--width=32", "--images-per-shard=3", "--val-images=3", "--subset"]


def file_system(free: int, files: int, free_files: int) -> SimpleNamespace:
    """What `os.statvfs` gives, with blocks of one byte."""
    return SimpleNamespace(
        f_frsize=1,
        f_blocks=10**13,
        f_bfree=free,
        f_bavail=free,
        f_files=files,
        f_ffree=free_files,
        f_favail=free_files,
    )


def estimate_of(job: PackJob) -> Estimate:
    source, recipe = list_source_files(job)
    survey = survey_directory(job, source, recipe)
    sizes = {i: check_headers(job.kind, task.items)[0] for i, task in enumerate(survey.tasks)}
    return estimate(job, survey, sizes, 1)


def test_the_estimate_is_little_more_than_what_is_written(tmp_path: Path) -> None:
    cities = {"train": {"aachen": 5}, "val": {"frankfurt": 3}}
    root = write_cityscapes(tmp_path / "source", cities, (256, 512))
    config = PackConfig(height=192, width=384, images_per_shard=4)
    job = PackJob("cityscapes", root, tmp_path / "packed", config, subset=True)
    expected = estimate_of(job)
    assert (expected.images, expected.shards) == (8, 3)
    pack(job)
    sizes = {path.name: path.stat().st_size for path in job.out_dir.iterdir()}
    assert sum(sizes.values()) <= expected.bytes <= 1.1 * sum(sizes.values())
    # Of what is left only:
    (job.out_dir / "val-00000.h5").unlink()
    left = estimate_of(job)
    assert (left.images, left.shards) == (3, 1)
    assert sizes["val-00000.h5"] <= left.bytes <= 1.1 * sizes["val-00000.h5"]


def test_the_estimate_of_tiny_images_is_no_less(synthia_root: Path, packed_synthia: Path) -> None:
    config = PackConfig(height=24, width=32, images_per_shard=3, val_images=3)
    job = PackJob("synthia", synthia_root, packed_synthia.parent / "none", config, subset=True)
    written = sum(path.stat().st_size for path in packed_synthia.iterdir())
    assert written <= estimate_of(job).bytes


def test_what_a_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Estimate(images=9400, shards=147, bytes=19_760_000_000, ranks=24, seconds_each=0.054)
    where = Path("/no/such/place")
    monkeypatch.setattr(os, "statvfs", lambda path: file_system(3 * 10**12, 10**9, 5_000_000))
    assert found.describe(where) == (
        "to pack: 9,400 images into 147 shards, 19.8 GB of 3,000 GB free, 148 files of 5,000,000 "
        "free; about 21 s on 24 ranks (54 ms an image)"
    )
    monkeypatch.setattr(os, "statvfs", lambda path: file_system(3 * 10**12, 0, 0))
    alone = Estimate(images=9400, shards=147, bytes=19_760_000_000, ranks=1, seconds_each=0.054)
    assert alone.describe(where) == (
        "to pack: 9,400 images into 147 shards, 19.8 GB of 3,000 GB free; about 8 min on 1 rank "
        "(54 ms an image)"
    )
    # More ranks than shards are of no use.
    assert Estimate(10, 2, 0, 8, 3.0).seconds == 15.0
    nothing = Estimate(images=0, shards=0, bytes=0, ranks=1, seconds_each=0.0)
    assert nothing.describe(where) == (
        "nothing to pack: all shards are in /no/such/place; they are verified"
    )


def test_units() -> None:
    assert [in_minutes(s) for s in (0.2, 99, 100, 5999, 6000, 36000)] == [
        "0 s",
        "99 s",
        "2 min",
        "100 min",
        "1.7 h",
        "10.0 h",
    ]
    assert [readable_size(b) for b in (10**7, 99 * 10**9, 10**13)] == [
        "10 MB",
        "99.0 GB",
        "10,000 GB",
    ]


def test_a_dry_run_writes_nothing(
    synthia_root: Path, packed_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, changed = contents(packed_copy), packed_copy.stat().st_mtime_ns
    around = tmp_path.stat().st_mtime_ns
    options = [*OPTIONS, "--dry-run"]
    for folder, told in ((tmp_path / "new", "to pack: 10 images"), (packed_copy, "nothing to")):
        assert main(["synthia", str(synthia_root), str(folder), *options]) == 0
        out, err = capsys.readouterr()
        assert told in out and "images done" not in out and not err
    # Not even a lock, for a moment.
    assert tmp_path.stat().st_mtime_ns == around and packed_copy.stat().st_mtime_ns == changed
    assert contents(packed_copy) == before
    assert main(["synthia", str(synthia_root / "no"), str(tmp_path / "new"), *options]) == 1


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
@pytest.mark.parametrize("lacks", ["bytes", "files"])
def test_without_space_nothing_is_begun(
    synthia_root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lacks: str,
    dry_run: list[str],
) -> None:
    free, files = (5000, 10**6) if lacks == "bytes" else (10**12, 4)
    packed = tmp_path / "new" / "packed"
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: file_system(free, 10**7, files))
        assert main(["synthia", str(synthia_root), str(packed), *OPTIONS, *dry_run]) == 1
    message = capsys.readouterr().err
    needed = "MB needed, 0 MB free" if lacks == "bytes" else "5 files needed, 4 free"
    assert f"error: {packed}: not enough space for 10 images in 4 shards: " in message
    assert message.count("needed") == 1 and needed in message
    assert "make room, choose another directory, or pack at a lower" in message
    assert not packed.parent.exists()


def test_a_disk_that_fills_up_in_mid_write(
    synthia_root: Path, packed_synthia: Path, tmp_path: Path
) -> None:
    # A limit on the size of files that the train shards keep, and the val shard does not.
    packed, good = tmp_path / "packed", contents(packed_synthia)
    limit = len(good["train-00000.h5"]) + 1000
    assert limit < len(good["val-00000.h5"])
    code = (
        "import resource, signal, sys; from data_prep.pack import main\n"
        "sys.modules['mpi4py'] = None\n"  # MPI's shared memory is a file, too
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["synthia", str(synthia_root), str(packed), *OPTIONS]
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True)
    assert (
        f"error: {packed / 'val-00000.h5'}: File too large while it was being written; make room "
        "(or choose another directory) and run" in result.stderr
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert contents(packed) == {name: good[name] for name in good if name.startswith("train")}
    assert main(arguments) == 0
    assert contents(packed) == good


def test_progress_as_lines_of_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("data_prep.pace.time", clock)
    lines: list[str] = []
    pace = Pace(lines.append)
    for clock.now in range(1, 10):
        pace(10 * clock.now, 2000)
    assert not lines
    clock.now = 10
    pace(100, 2000)
    assert lines == ["100 of 2,000 images, 10.0 images/s, about 3 min left"]
    for clock.now in range(11, 81):  # twice as fast: the first minute no longer counts
        pace(100 + 20 * (clock.now - 10), 2000)
    assert len(lines) == 8
    assert lines[-1] == "1,500 of 2,000 images, 20.0 images/s, about 25 s left"
    clock.now = 85
    pace(2000, 2000)
    assert lines[8:] == ["2,000 images done in 85 s"]
