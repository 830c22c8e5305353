"""Several ranks on the CPU (gloo): what must not depend on how the work is split."""

import os
import shutil
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
