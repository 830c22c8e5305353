"""Tiny data sets in both layouts, and their packed forms; tests only read them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Before torch and OpenBLAS start their threads: tests run beside each other, and beside a user's
# work, on few cores. Child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from tiny_data import PACKED, write_cityscapes, write_synthia

from data_prep.config import PackConfig
from data_prep.pack import pack
from data_prep.survey import PackJob


@pytest.fixture(scope="session")
def synthia_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 images in the Synthia layout, 36 x 48 pixels."""
    return write_synthia(tmp_path_factory.mktemp("synthia"), 10)


@pytest.fixture(scope="session")
def cityscapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 train images of 2 cities and 4 val images in the Cityscapes layout, 36 x 48 pixels."""
    cities = {"train": {"aachen": 4, "bochum": 3}, "val": {"frankfurt": 4}}
    return write_cityscapes(tmp_path_factory.mktemp("cityscapes"), cities)


@pytest.fixture(scope="session")
def packed_synthia(tmp_path_factory: pytest.TempPathFactory, synthia_root: Path) -> Path:
    """`synthia_root` packed at 24 x 32: 7 train images in 3 shards, 3 val images in 1."""
    packed = tmp_path_factory.mktemp("packed") / "synthia"
    config = PackConfig(height=PACKED[0], width=PACKED[1], images_per_shard=3, val_images=3)
    pack(PackJob("synthia", synthia_root, packed, config, subset=True))
    return packed


@pytest.fixture(scope="session")
def packed_cityscapes(tmp_path_factory: pytest.TempPathFactory, cityscapes_root: Path) -> Path:
    """`cityscapes_root` packed at 24 x 32: 7 train images in 3 shards, 4 val images in 2."""
    packed = tmp_path_factory.mktemp("packed") / "cityscapes"
    config = PackConfig(height=PACKED[0], width=PACKED[1], images_per_shard=3)
    pack(PackJob("cityscapes", cityscapes_root, packed, config, subset=True))
    return packed


@pytest.fixture(scope="session")
def run_dir(
    tmp_path_factory: pytest.TempPathFactory, packed_synthia: Path, packed_cityscapes: Path
) -> Path:
    """A finished run on these data; tests only read it."""
    from tiny_run import tiny_run  # torch: most tests do without

    return tiny_run(tmp_path_factory.getbasetemp(), packed_synthia, packed_cityscapes)


@pytest.fixture
def torch_as_before() -> Iterator[None]:
    """For tests of commands, whose session makes torch deterministic for the whole process."""
    yield
    import torch

    torch.use_deterministic_algorithms(False)


@pytest.fixture
def synthia_copy(tmp_path: Path, synthia_root: Path) -> Path:
    """A copy of `synthia_root` that a test may damage."""
    return Path(shutil.copytree(synthia_root, tmp_path / "synthia"))


@pytest.fixture
def cityscapes_copy(tmp_path: Path, cityscapes_root: Path) -> Path:
    """A copy of `cityscapes_root` that a test may damage."""
    return Path(shutil.copytree(cityscapes_root, tmp_path / "cityscapes"))


@pytest.fixture
def packed_copy(tmp_path: Path, packed_synthia: Path) -> Path:
    """A copy of `packed_synthia` that a test may damage."""
    return Path(shutil.copytree(packed_synthia, tmp_path / "packed"))


@pytest.fixture
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """As outside any Slurm or MPI job, which the tests may run in."""
    for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Spare the disk: what a power cut leaves behind cannot be tested here, and it is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
