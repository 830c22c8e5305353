"""Packing: resizing, restarts, damaged shards, and nothing of another packing overwritten."""

import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_data import ORIGINAL, PACKED, contents, write_png

from data_prep.config import PackConfig
from data_prep.index import ShardError, read_index
from data_prep.mpi import Alone, world
from data_prep.pack import main, pack
from data_prep.samples import resize_image, resize_labels
from data_prep.shards import PackedSplit
from data_prep.sources import open_source, read_image, read_labels
from data_prep.survey import PackJob

pytestmark = pytest.mark.usefixtures("_no_launcher")
CONFIG = PackConfig(height=PACKED[0], width=PACKED[1], images_per_shard=3, val_images=3)
OPTIONS = ["--height=24", "--width=32", "--images-per-shard=3", "--val-images=3"]


def job_of(root: Path, packed: Path, **changes: Any) -> PackJob:
    """What makes `packed_synthia` of `synthia_root`."""
    return PackJob("synthia", root, packed, CONFIG, **{"subset": True, **changes})


@pytest.mark.parametrize("kind", ["synthia", "cityscapes"])
def test_samples_are_the_resized_files(kind: str, request: pytest.FixtureRequest) -> None:
    source_root = request.getfixturevalue(f"{kind}_root")
    source = open_source(kind, source_root, val_images=3 if kind == "synthia" else 0)
    for name, items in source.splits.items():
        split = PackedSplit(request.getfixturevalue(f"packed_{kind}"), name)
        assert split.keys == [item.key for item in items] and split.source == kind
        for i, item in enumerate(items):
            image, labels = read_image(item.image_path), read_labels(kind, item.label_path)
            assert (split.image(i) == resize_image(image, *PACKED)).all()
            assert (split.labels(i) == resize_labels(labels, *PACKED)).all()
            assert split.original_size(i) == ORIGINAL
            if name == "val":
                assert (split.labels_full(i) == labels).all()


def test_labels_are_resized_about_pixel_centres() -> None:
    columns = np.arange(9, dtype=np.uint8)[None].repeat(6, 0)
    # Output pixel x covers input 3x .. 3x+2: its centre is input pixel 3x + 1.
    assert resize_labels(columns, 2, 3).tolist() == [[1, 4, 7]] * 2
    assert resize_labels(columns[:, :3], 6, 6)[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert resize_labels(columns, 6, 9) is columns


def test_images_shrink_by_area_mean() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    mean = image.reshape(4, 2, 6, 2, 3).mean((1, 3))
    assert np.abs(resize_image(image, 4, 6) - mean).max() <= 0.5
    assert resize_image(image, 16, 24).shape == (16, 24, 3)


def test_packing_again_changes_nothing(synthia_root: Path, tmp_path: Path) -> None:
    pack(job_of(synthia_root, tmp_path / "a"))
    before = {path.name: path.stat() for path in (tmp_path / "a").iterdir()}
    first = contents(tmp_path / "a")
    assert sorted(first) == ["index.json", *(f"train-0000{i}.h5" for i in range(3)), "val-00000.h5"]
    told: list[str] = []
    pack(job_of(synthia_root, tmp_path / "a", tell=told.append))
    assert told[-1] == f"nothing to pack: all shards are in {tmp_path / 'a'}; they are verified"
    pack(job_of(synthia_root / "RAND_CITYSCAPES", tmp_path / "b"))
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == first
    for path in (tmp_path / "a").iterdir():
        assert path.stat().st_ino == before[path.name].st_ino
        assert path.stat().st_mtime_ns == before[path.name].st_mtime_ns


def test_a_killed_run_goes_on_where_it_was(
    synthia_root: Path, packed_synthia: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, rename = tmp_path / "packed", Path.replace

    def last_rename(path: Path, target: Path) -> Path:
        rename(path, target)
        if target.name == "train-00001.h5":
            os.kill(os.getpid(), signal.SIGKILL)
        return target

    def child() -> None:
        monkeypatch.setattr("data_prep.pack.world", Alone)  # MPI does not survive a fork
        monkeypatch.setattr(Path, "replace", last_rename)
        pack(job_of(synthia_root, packed))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (packed / ".packing.json").exists()
    # What a writer that was killed in the middle of a shard leaves behind:
    part = (packed / "train-00000.h5").read_bytes()[:999]
    (packed / ".train-00002.node.123.tmp.h5").write_bytes(part)
    (packed / ".index.node.123.tmp.json").write_bytes(b"{")
    inodes = {path.name: path.stat().st_ino for path in packed.glob("train*")}
    assert sorted(inodes) == ["train-00000.h5", "train-00001.h5"]
    with pytest.raises(ShardError, match="packing has not finished"):
        PackedSplit(packed, "train")
    seen: list[tuple[int, int]] = []
    told: list[str] = []
    pack(job_of(synthia_root, packed, progress=lambda *a: seen.append(a), tell=told.append))
    assert seen[-1] == (10, 10)
    assert "to pack: 4 images into 2 shards" in told[-1]
    assert contents(packed) == contents(packed_synthia)
    assert {name: (packed / name).stat().st_ino for name in inodes} == inodes


def test_repair_of_a_damaged_shard(
    synthia_root: Path, packed_copy: Path, packed_synthia: Path
) -> None:
    path = packed_copy / "train-00001.h5"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    damaged = contents(packed_copy)
    with pytest.raises(
        ShardError,
        match=r"train-00001.h5: its last 8 bytes are not the digest of those before: .*delete",
    ):
        pack(job_of(synthia_root, packed_copy))
    assert contents(packed_copy) == damaged
    path.unlink()
    pack(job_of(synthia_root, packed_copy))
    assert contents(packed_copy) == contents(packed_synthia)


def test_a_damaged_shard_of_an_unfinished_run_is_found(
    synthia_root: Path, packed_copy: Path
) -> None:
    (packed_copy / "index.json").unlink()
    path = packed_copy / "val-00000.h5"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ShardError, match=r"val-00000.h5: .*; delete the file and run"):
        pack(job_of(synthia_root, packed_copy))


def test_another_packing_is_never_overwritten(synthia_copy: Path, packed_copy: Path) -> None:
    before = contents(packed_copy)
    other = replace(
        job_of(synthia_copy, packed_copy), config=CONFIG.model_copy(update={"height": 16})
    )
    message = r"packed otherwise: pack.height: found 24, expected 16; choose another directory"
    with pytest.raises(ShardError, match=message):
        pack(other)
    write_png(synthia_copy / "RAND_CITYSCAPES/RGB/0000009.png", np.zeros((*ORIGINAL, 3), np.uint8))
    with pytest.raises(ShardError, match="packed otherwise: fingerprint: found '"):
        pack(job_of(synthia_copy, packed_copy))
    assert contents(packed_copy) == before
    (packed_copy / "index.json").unlink()  # an unfinished one is not overwritten either
    with pytest.raises(ShardError, match=r"train-00000.h5: was packed otherwise: fingerprint"):
        pack(job_of(synthia_copy, packed_copy))
    assert contents(packed_copy) == {k: v for k, v in before.items() if k != "index.json"}


def test_command_line(
    synthia_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["synthia", str(synthia_root), str(tmp_path / "packed"), *OPTIONS, "--subset"]
    assert main(arguments) == 0
    assert read_index(tmp_path / "packed").recipe.pack == CONFIG
    out, err = capsys.readouterr()
    warning, estimate, last = out.splitlines()
    assert "warning: " in warning and "10" in warning and "9,400" in warning and not err
    assert estimate.startswith("to pack: 10 images into 4 shards, 0 MB of ")
    assert last.startswith("10 images done in ")
    assert main([*arguments, "--height=1"]) == 2
    assert "height" in capsys.readouterr().err
    assert main(["synthia", str(tmp_path / "no"), *arguments[2:]]) == 1
    assert "no: no such directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "PMI_SIZE"])
def test_ranks_that_do_not_know_each_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "4")
    with pytest.raises(RuntimeError, match=rf"{name}=4 (ranks )?were started"):
        world()


def test_without_an_mpi_library_one_process_packs_alone(
    synthia_root: Path, packed_synthia: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # what an ImportError looks like
    comm = world()
    assert (comm.rank, comm.size, comm.bcast(3), comm.gather(4)) == (0, 1, 3, [4])
    pack(job_of(synthia_root, tmp_path / "packed"))
    assert contents(tmp_path / "packed") == contents(packed_synthia)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(RuntimeError, match=r"mpi4py cannot be used .* SLURM_NTASKS=2"):
        world()
