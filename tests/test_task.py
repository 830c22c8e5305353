"""What each task of a job becomes: its stage, its rank, its log. The stage is a stand-in."""

import json
import pickle
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.config import REPO_ROOT
from pipeline import paths
from pipeline.stopping import SIGNALS
from pipeline.task import Task, main, rank_environment

# Stands in for the Python that the process becomes, and says what it became.
STAND_IN = """#!{python} -IS
import json, os, signal, sys
blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
print(json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ), "blocked": blocked}}), flush=True)
print("an error", file=sys.stderr)
sys.exit(5)
"""
CALL = """
import pickle, sys
sys.executable = sys.argv[1]
pickle.loads(bytes.fromhex(sys.argv[2]))()
print("came back")
"""


def write_record(run_dir: Path, units: list[list[str]], **keys: Any) -> Path:
    """The keys of a batch's record that its jobs read."""
    path = paths.batch(run_dir, "0004-gan-01234567")
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [name for unit in units for name in unit]
    record = {"units": units, "first_attempts": dict.fromkeys(names, 1), "shares_node": False}
    path.write_text(json.dumps(record | keys))
    return path


def stand_in(folder: Path) -> Path:
    path = folder / "stand_in"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    return path


def run_task(
    record: Path, rank: int, world_size: int, **variables: str
) -> subprocess.CompletedProcess[str]:
    """One task of a job, as submitit calls it."""
    environment = {
        "PYTHONPATH": str(REPO_ROOT),
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(world_size),
        "SLURM_LOCALID": str(rank % 4),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "12345",
    }
    run_dir = record.parent.parent
    pickled = pickle.dumps(Task(str(record))).hex()
    command = [sys.executable, "-c", CALL, str(stand_in(run_dir.parent)), pickled]
    environment |= variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")


def said(log: Path) -> dict[str, Any]:
    """What the stand-in printed into a log."""
    found: dict[str, Any] = json.loads(log.read_text().splitlines()[0])
    return found


def ranks_of(seen: dict[str, Any]) -> tuple[str, str, str]:
    return seen["env"]["RANK"], seen["env"]["WORLD_SIZE"], seen["env"]["LOCAL_RANK"]


def test_task_becomes_its_rank_of_the_stage(tmp_path: Path) -> None:
    run_dir = tmp_path / "a run's dir"
    record = write_record(run_dir, [["gan/gan.seed=1"]])
    result = run_task(record, 5, 8, OTHER="kept")
    assert (result.returncode, result.stdout, result.stderr) == (5, "", "")
    stage_dir = run_dir / "gan" / "gan.seed=1"
    seen = said(paths.rank_log(stage_dir, 1, 5))
    assert seen["argv"] == ["-m", "pipeline.stages", str(stage_dir)]
    assert ranks_of(seen) == ("5", "8", "1")
    assert seen["env"]["OTHER"] == "kept"
    # They wait until the stage has handlers of its own.
    assert seen["blocked"] == sorted(SIGNALS)
    assert signal.SIGUSR2 in seen["blocked"]


def test_first_rank_writes_the_attempts_log(tmp_path: Path) -> None:
    record = write_record(tmp_path / "r", [["gan"]], first_attempts={"gan": 3})
    log = paths.log(tmp_path / "r" / "gan", 5)
    assert run_task(record, 0, 2, SLURM_RESTART_COUNT="2").returncode == 5
    assert ranks_of(said(log)) == ("0", "2", "0")
    assert log.read_text().splitlines()[1] == "an error"
    assert list(log.parent.iterdir()) == [log]
    # Beside it, so that attempts are not counted by ranks.
    assert run_task(record, 1, 2, SLURM_RESTART_COUNT="2").returncode == 5
    assert len(list(log.parent.glob("attempt-*.log"))) == 1


def test_element_of_an_array_runs_its_own_unit(tmp_path: Path) -> None:
    record = write_record(tmp_path / "r", [["gan"], ["gan/gan.seed=1"], ["gan/gan.seed=2"]])
    assert run_task(record, 0, 1, SLURM_ARRAY_TASK_ID="2").returncode == 5
    assert not (tmp_path / "r" / "gan" / "gan.seed=1").exists()
    seen = said(paths.log(tmp_path / "r" / "gan" / "gan.seed=2", 1))
    assert ranks_of(seen) == ("0", "1", "0")


def test_points_that_share_a_node_are_one_rank_each(tmp_path: Path) -> None:
    record = write_record(
        tmp_path / "r", [["gan"], ["gan/gan.seed=1", "gan/gan.seed=2"]], shares_node=True
    )
    for rank in (0, 1):
        assert run_task(record, rank, 2, SLURM_ARRAY_TASK_ID="1").returncode == 5
        seen = said(paths.log(tmp_path / "r" / "gan" / f"gan.seed={rank + 1}", 1))
        # A rank of its own, but the device that Slurm counted for it.
        assert ranks_of(seen) == ("0", "1", str(rank))


def test_task_without_a_point_has_nothing_to_do(tmp_path: Path) -> None:
    record = write_record(tmp_path / "r", [["gan"]], shares_node=True)
    result = run_task(record, 1, 2)
    assert (result.returncode, result.stdout) == (0, "came back\n")
    assert not (tmp_path / "r" / "gan").exists()


def test_unresolvable_first_node_ends_the_task_and_says_so_in_its_log(tmp_path: Path) -> None:
    record = write_record(tmp_path / "r", [["gan"]])
    assert run_task(record, 0, 2, MASTER_ADDR="").returncode == 1
    text = paths.log(tmp_path / "r" / "gan", 1).read_text()
    assert text.startswith("error: gan (rank 0): MASTER_ADDR: the name ''")
    state = json.loads((tmp_path / "r" / "gan" / paths.STATE).read_text())
    assert state["state"] == "failed" and "MASTER_ADDR" in state["message"]
    assert not state["may_retry"]  # the profile is wrong; the same again would fail again


def test_ranks_find_each_other_by_what_the_job_set() -> None:
    given = {"SLURM_LOCALID": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "12345"}
    found = rank_environment(7, 8, given)
    assert found == given | {"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}
    assert "RANK" not in given


def test_unresolvable_host_is_told_before_ranks_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def no_such_host(host: str, port: str) -> None:
        asked.append((host, port))
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    given = {"MASTER_ADDR": "jwb0001i", "MASTER_PORT": "12345"}
    with pytest.raises(ValueError, match=r"'jwb0001i'.*not known.*host_suffix.*JUWELS: i"):
        rank_environment(0, 2, given)
    assert asked == [("jwb0001i", "12345")]
    # A single rank waits for nobody.
    assert rank_environment(0, 1, given)["LOCAL_RANK"] == "0"
    assert len(asked) == 1


def test_stage_by_hand_needs_a_directory_and_srun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    assert main(["gan"]) == 2
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert main([]) == main(["gan", "finetune"]) == 2
    assert capsys.readouterr().err.splitlines()[0].startswith("usage, under srun: ")
