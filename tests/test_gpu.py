"""The CUDA and NCCL path; needs a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_jobs import (
    adaptsegnet_science,
    finetune_science,
    finetune_segmenter_science,
    gan_science,
    job,
    oracle_science,
    segmenter_science,
)

from tigan import (
    adaptsegnet,
    distributed,
    evaluate,
    finetune,
    finetune_segmenter,
    gan,
    segmenter,
)
from tigan.config import EvaluateStage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
TESTS = Path(__file__).parent


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_all_stages_on_one_gpu(
    tmp_path: Path, packed_synthia: Path, packed_cityscapes: Path, precision: str
) -> None:
    roles = {"synthetic": packed_synthia, "real": packed_cityscapes}
    with distributed.session(threads=1) as group:
        assert group.device.type == "cuda"
        science = segmenter_science(precision=precision)
        segmenter.run(job(tmp_path / "segmenter", science, roles, num_workers=1))
        gan.run(job(tmp_path / "gan", gan_science(precision=precision), roles))
        roles |= {"segmenter": tmp_path / "segmenter", "gan": tmp_path / "gan"}
        finetune.run(job(tmp_path / "finetune", finetune_science(), roles))
        roles |= {"translator": tmp_path / "finetune"}
        segmenter.run(job(tmp_path / "oracle", oracle_science(precision=precision), roles))
        adaptsegnet.run(job(tmp_path / "adaptsegnet", adaptsegnet_science(), roles))
        finetune_segmenter.run(job(tmp_path / "both", finetune_segmenter_science(), roles))
        task = EvaluateStage(classes="cityscapes19", method="task_informed")
        result = evaluate.run(job(tmp_path / "evaluate", task, roles))
    assert all(0 <= float(value) <= 1 for value in result.figures.values())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_ranks_agree_over_nccl(
    tmp_path: Path, packed_synthia: Path, packed_cityscapes: Path
) -> None:
    (tmp_path / "synthia").symlink_to(packed_synthia)
    (tmp_path / "cityscapes").symlink_to(packed_cityscapes)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(TESTS / "rank_checks.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    subprocess.run(command, env=environment, check=True, timeout=300)
