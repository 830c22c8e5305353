"""Packing: resizing, restarts, the same bytes from any number of ranks, and errors that end all."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_data import ORIGINAL, PACKED, write_png

from data_prep.config import PackConfig
from data_prep.index import ShardError, read_index
from data_prep.mpi import world
from data_prep.pack import main, pack, resize_image, resize_labels
from data_prep.shards import PackedSplit
from data_prep.sources import SourceError, open_source, read_image, read_labels

CONFIG = PackConfig(height=PACKED[0], width=PACKED[1], images_per_shard=3, val_images=3)
OPTIONS = ["--height=24", "--width=32", "--images-per-shard=3", "--val-images=3"]
REPO_ROOT = Path(__file__).parent.parent
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
needs_mpiexec = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec (make setup installs mpich)")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    """Run `command` outside any Slurm or MPI job that the tests may run in."""
    prefixes = ("SLURM", "PMI", "OMPI", "HYDI")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    return subprocess.run(
        command, env={**clean, **env}, cwd=REPO_ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.fixture(autouse=True)
def _outside_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path: Path, synthia_root: Path) -> Path:
    """A copy of the Synthia-style data set that a test may damage."""
    return Path(shutil.copytree(synthia_root, tmp_path / "source"))


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
    pack("synthia", synthia_root, tmp_path / "a", CONFIG)
    before = {path.name: path.stat() for path in (tmp_path / "a").iterdir()}
    first = contents(tmp_path / "a")
    assert sorted(first) == ["index.json", *(f"train-0000{i}.h5" for i in range(3)), "val-00000.h5"]
    pack("synthia", synthia_root, tmp_path / "a", CONFIG)
    pack("synthia", synthia_root / "RAND_CITYSCAPES", tmp_path / "b", CONFIG)
    assert contents(tmp_path / "b") == first
    for path in (tmp_path / "a").iterdir():
        assert path.stat().st_ino == before[path.name].st_ino
        assert path.stat().st_mtime_ns == before[path.name].st_mtime_ns


def test_a_killed_run_goes_on_where_it_was(
    synthia_root: Path, packed_synthia: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from data_prep.config import PackConfig; from data_prep.pack import pack\n"
        f"config = PackConfig.model_validate({CONFIG.model_dump()})\n"
        "def kill(name, done, total): done == 2 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "pack('synthia', Path(sys.argv[1]), Path(sys.argv[2]), config, progress=kill)\n"
    )
    result = run([sys.executable, "-c", code, str(synthia_root), str(packed)])
    assert result.returncode == -signal.SIGKILL, result.stderr
    # What a writer that was killed in the middle of a shard leaves behind:
    part = (packed / "train-00000.h5").read_bytes()[:999]
    (packed / ".train-00002.123.tmp.h5").write_bytes(part)
    (packed / ".index.123.tmp.json").write_bytes(b"{")
    inodes = {path.name: path.stat().st_ino for path in packed.glob("train*")}
    assert sorted(inodes) == ["train-00000.h5", "train-00001.h5"]
    with pytest.raises(ShardError, match="packing has not finished"):
        PackedSplit(packed, "train")
    seen: list[tuple[str, int, int]] = []
    pack("synthia", synthia_root, packed, CONFIG, progress=lambda *a: seen.append(a))
    assert seen[-1] == ("val-00000.h5", 4, 4)
    assert contents(packed) == contents(packed_synthia)
    assert {name: (packed / name).stat().st_ino for name in inodes} == inodes


def test_repair_of_a_damaged_shard(
    synthia_root: Path, packed_synthia: Path, tmp_path: Path
) -> None:
    packed = Path(shutil.copytree(packed_synthia, tmp_path / "packed"))
    path = packed / "train-00001.h5"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ShardError, match=r"train-00001.h5: does not match its digest .*delete"):
        pack("synthia", synthia_root, packed, CONFIG)
    path.unlink()
    pack("synthia", synthia_root, packed, CONFIG)
    assert contents(packed) == contents(packed_synthia)


def test_a_damaged_shard_of_an_unfinished_run_is_found(
    synthia_root: Path, packed_synthia: Path, tmp_path: Path
) -> None:
    packed = Path(shutil.copytree(packed_synthia, tmp_path / "packed"))
    (packed / "index.json").unlink()
    path = packed / "val-00000.h5"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ShardError, match=r"val-00000.h5: .*; delete the file and run"):
        pack("synthia", synthia_root, packed, CONFIG)


def test_another_packing_is_never_overwritten(root: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    pack("synthia", root, packed, CONFIG)
    before = contents(packed)
    other = CONFIG.model_copy(update={"height": 16})
    message = r"packed otherwise: pack.height: found 24, expected 16; choose another directory"
    with pytest.raises(ShardError, match=message):
        pack("synthia", root, packed, other)
    for folder in ("RGB", "GT/LABELS"):
        (root / "RAND_CITYSCAPES" / folder / "0000009.png").unlink()
    with pytest.raises(ShardError, match="packed otherwise: fingerprint: found '"):
        pack("synthia", root, packed, CONFIG)
    assert contents(packed) == before
    (packed / "index.json").unlink()  # an unfinished one is not overwritten either
    with pytest.raises(ShardError, match=r"train-00000.h5: was packed otherwise: fingerprint"):
        pack("synthia", root, packed, CONFIG)


def test_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["synthia", str(root), str(tmp_path / "packed"), *OPTIONS]
    assert main(arguments) == 0
    assert read_index(tmp_path / "packed").recipe.pack == CONFIG
    assert "val-00000.h5 (4 of 4 shards of this rank)" in capsys.readouterr().out
    assert main([*arguments, "--height=1"]) == 2
    assert "height" in capsys.readouterr().err
    assert main(["synthia", str(tmp_path / "no"), *arguments[2:]]) == 1
    assert "no: no such directory" in capsys.readouterr().err


def test_size_mismatch_names_the_pair(root: Path, tmp_path: Path) -> None:
    write_png(root / "RAND_CITYSCAPES/RGB/0000001.png", np.zeros((30, 40, 3), np.uint8))
    with pytest.raises(SourceError, match=r"1 of 3 pairs .*0000001.png 40x30 but .* 48x36"):
        pack("synthia", root, tmp_path / "packed", CONFIG)
    assert not list((tmp_path / "packed").iterdir())


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "PMI_SIZE"])
def test_ranks_that_do_not_know_each_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "4")
    with pytest.raises(RuntimeError, match=rf"{name}=4 (ranks )?were started"):
        world()


def test_without_an_mpi_library_one_process_packs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # what an ImportError looks like
    comm = world()
    assert (comm.rank, comm.size, comm.bcast(3), comm.gather(4)) == (0, 1, 3, [4])
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(RuntimeError, match=r"mpi4py cannot be used .* SLURM_NTASKS=2"):
        world()


@needs_mpiexec
def test_two_ranks_write_the_same_bytes(
    synthia_root: Path, packed_synthia: Path, tmp_path: Path
) -> None:
    command = [str(MPIEXEC), "-n", "2", sys.executable, "-m", "data_prep.pack", "synthia"]
    result = run([*command, str(synthia_root), str(tmp_path / "packed"), *OPTIONS])
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("2 shards of this rank") == 4  # both ranks had two shards
    assert contents(tmp_path / "packed") == contents(packed_synthia)


@needs_mpiexec
def test_an_error_on_one_rank_ends_all(root: Path, tmp_path: Path) -> None:
    # Item 0000005 is in train-00001, which rank 1 packs; rank 0 goes on to the gather.
    label = root / "RAND_CITYSCAPES/GT/LABELS/0000005.png"
    label.write_bytes(label.read_bytes()[:-30])
    command = [str(MPIEXEC), "-n", "2", sys.executable, "-m", "data_prep.pack", "synthia"]
    result = run([*command, str(root), str(tmp_path / "packed"), *OPTIONS])
    assert result.returncode != 0
    assert "error (rank 1): " in result.stderr and "0000005.png: damaged PNG" in result.stderr
    assert not (tmp_path / "packed" / "index.json").exists()
    assert not (tmp_path / "packed" / "train-00001.h5").exists()
