"""Private Slurm clusters, and a run directory whose data are packed already."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster
import pytest
from cluster import Cluster
from live_runs import SlurmRun, drive, write_local_profile


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs a Slurm."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


def _start(folder: Path, *, accounting: bool, min_job_age: int = 300) -> Iterator[Cluster]:
    reason = cluster.missing(accounting=accounting)
    if reason:
        assert not os.environ.get("TIGAN_TEST_NEEDS_SLURM"), f"no Slurm here: {reason}"
        pytest.skip(f"no Slurm here: {reason}")
    started = cluster.start(folder, accounting=accounting, min_job_age=min_job_age)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def accounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with accounting."""
    yield from _start(tmp_path_factory.mktemp("accounted"), accounting=True)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without accounting that forgets ended jobs at once."""
    yield from _start(tmp_path_factory.mktemp("plain"), accounting=False, min_job_age=2)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with both data sets packed, by --partition local. Only to be copied."""
    folder = tmp_path_factory.mktemp("packed")
    profile = write_local_profile(folder, ranks=1)
    for stage in ("pack_synthia", "pack_cityscapes"):
        drive(folder / "run", profile, "--stage", stage)
    return folder / "run"


@pytest.fixture
def new_run(packed: Path, tmp_path: Path) -> Iterator[Callable[..., SlurmRun]]:
    """Makes a run on a cluster in a fresh run directory with packed data.

    What it still has in the queue at the end of the test is cancelled.
    """
    made: list[SlurmRun] = []

    def make(on: Cluster, name: str = "run", **keys: object) -> SlurmRun:
        shutil.copytree(packed, tmp_path / name)
        made.append(SlurmRun(on, tmp_path / name, tmp_path / f"{len(made)}.yaml", keys))
        return made[-1]

    yield make
    for run in made:
        run.clear()
