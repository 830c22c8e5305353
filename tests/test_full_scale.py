"""The published networks (DeepLabV3-ResNet101, 9-block generators), killed on two ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_data import write_cityscapes, write_synthia
from tiny_jobs import same_state

from data_prep.config import PackConfig
from data_prep.pack import PackJob, pack

TESTS = Path(__file__).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sets packed at 72 x 96."""
    folder = tmp_path_factory.mktemp("full_scale")
    size = (72, 96)
    write_synthia(folder / "raw_synthia", 8, size)
    cities = {"train": {"aachen": 8}, "val": {"bochum": 1}}
    write_cityscapes(folder / "raw_cityscapes", cities, size)
    config = PackConfig(height=72, width=96)
    synthia = config.model_copy(update={"val_images": 2})
    jobs = (("synthia", synthia), ("cityscapes", config))
    for kind, packing in jobs:
        raw = folder / f"raw_{kind}"
        pack(PackJob(kind, raw, folder / kind, packing, subset=True))
    return folder


def start(root: Path, stage: str, folder: Path) -> subprocess.Popen[str]:
    """Start a stage on two ranks, in a session of its own."""
    log = (root / f"{folder.name}.log").open("a")
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", str(TESTS / "rank_stage.py"), str(root), stage, str(folder)),
        ],
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )


def run(root: Path, stage: str, folder: Path) -> None:
    process = start(root, stage, folder)
    assert process.wait(timeout=300) == 0, (root / f"{folder.name}.log").read_text()[-4000:]


def kill_after_first_checkpoint(root: Path, stage: str, folder: Path) -> None:
    """kill -9 of both ranks, as when a node is lost."""
    process = start(root, stage, folder)
    end = time.monotonic() + 300
    while not list((folder / "checkpoints").glob("*/manifest.json")):
        assert process.poll() is None and time.monotonic() < end, "no checkpoint was written"
        time.sleep(0.05)
    # The ranks are children of torchrun, in sessions of their own.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [*map(int, children), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert not list(folder.glob("*.pt")), "it had finished before it was killed"


@pytest.mark.parametrize("stage", ["segmenter", "finetune"])
def test_killed_and_resumed_is_straight(root: Path, stage: str) -> None:
    if stage == "finetune":
        run(root, "gan", root / "gan")
    straight, broken = root / stage, root / f"{stage}_broken"
    run(root, stage, straight)
    kill_after_first_checkpoint(root, stage, broken)
    run(root, stage, broken)
    (file,) = [path.name for path in straight.glob("*.pt")]
    a, b = (torch.load(folder / file, weights_only=True) for folder in (straight, broken))
    assert same_state(a, b)
