"""Several ranks on the CPU (gloo): what must not depend on how the work is split."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_two_ranks_agree_with_one(
    tmp_path: Path, packed_synthia: Path, packed_cityscapes: Path
) -> None:
    shutil.copytree(packed_synthia, tmp_path / "synthia")
    shutil.copytree(packed_cityscapes, tmp_path / "cityscapes")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", str(TESTS / "rank_checks.py"), str(tmp_path)),
        ],
        env=os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "all rank checks passed" in result.stdout


@pytest.mark.slow
def test_group_ends_with_a_stop_that_all_ranks_agree_on() -> None:
    """NCCL warns of a group that is left, and may hang in it; its store has its own time-out."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "PYTHONPATH": f"{TESTS.parent}:{TESTS}",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "rank_ends.py")],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        out, err = rank.communicate(timeout=120)
        assert out.strip() == "stopped, group ended", err[-4000:]
