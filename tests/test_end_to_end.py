"""The real driver on two ranks: Ctrl-C in the middle, the same command again, the same weights."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local profile with two ranks per training stage."""
    profile = tmp_path_factory.mktemp("profile") / "two_ranks.yaml"
    stages = "{evaluate: {ranks: 1}, report: {ranks: 1}}"
    profile.write_text(
        f"kind: local\nrun: minicity\nparallel: 1\nranks: 2\nthreads: 1\nstages: {stages}\n"
    )
    return profile


def command(run_dir: Path, profile: Path, stage: str) -> list[str]:
    return [
        *(sys.executable, "pipeline/run.py", "--stage", stage, "--partition", str(profile)),
        *("--config", "tests/small_run.yaml", "--run-dir", str(run_dir)),
    ]


def run(run_dir: Path, profile: Path, stage: str) -> str:
    result = subprocess.run(
        command(run_dir, profile, stage), cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def interrupt_in(run_dir: Path, profile: Path, node: str) -> None:
    """Start everything, and Ctrl-C once `node` has a checkpoint."""
    with (run_dir.parent / "interrupted.log").open("w") as log:
        process = subprocess.Popen(
            command(run_dir, profile, "finetune"), cwd=ROOT, stdout=log, stderr=log
        )
        end = time.monotonic() + 300
        while not list((run_dir / node / "checkpoints").glob("*/manifest.json")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
    state = json.loads((run_dir / node / "state.json").read_text())
    assert state["state"] == "preempted"


def digests(run_dir: Path) -> dict[str, str]:
    """Of every finished stage that learns or prepares: the digest of its outputs."""
    return {
        str(path.parent.relative_to(run_dir)): json.loads(path.read_text())["output_digest"]
        for path in run_dir.rglob("done.json")
        if not path.is_relative_to(run_dir / "report") and "evaluate" not in path.parts
    }


def test_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path, two_ranks: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run(straight, two_ranks, "all")
    assert "nothing to do" in run(straight, two_ranks, "all")
    interrupt_in(broken, two_ranks, "gan")
    run(broken, two_ranks, "all")
    expected = digests(straight)
    assert {"gan", "finetune/finetune.alpha=0.0", "adaptsegnet"} <= expected.keys()
    assert digests(broken) == expected
    rows = json.loads((straight / "report" / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {
        "source_only",
        "cyclegan_matched",
        "task_informed",
        "both",
        "adaptsegnet",
    }
    page = (straight / "report" / "index.html").read_text(encoding="utf-8")
    assert "not finished" not in page and "data:image/png;base64," in page
