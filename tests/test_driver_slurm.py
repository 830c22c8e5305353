"""The command line on a run that was submitted to Slurm, with Slurm's commands as stand-ins."""

import json
from pathlib import Path

import pytest
from pipeline_runs import RUN_CONFIG, tiny_run
from slurm_runs import Commands, slurm_plan, submitted

from data_prep.processes import identity
from pipeline import batches, driver, paths, run
from pipeline.batches import BatchRecord
from pipeline.frozen import write_run_record

SLURM = ("sbatch", "squeue", "scontrol", "scancel", "srun")
PARTITION = "PartitionName=booster MaxNodes=UNLIMITED MaxTime=1-00:00:00 TotalNodes=4"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands(tmp_path / "bin", monkeypatch)
    for name in SLURM:
        found.add(name)
    return found


@pytest.fixture
def records(tmp_path: Path) -> list[BatchRecord]:
    """Everything of a run was submitted."""
    base = tiny_run()
    found = submitted(slurm_plan(base, tmp_path / "r"))
    for record in found:
        batches.write_batch(tmp_path / "r", record)
    write_run_record(tmp_path / "r", base.config)
    return found


def line_of_queue(record: BatchRecord) -> str:
    """A line of `squeue --Format` in which the batch waits."""
    cells = [record.job, "PENDING", "Priority", "0", batches.comment(record.token), "tigan-x"]
    return "".join(f"{cell:<200}" for cell in cells)


def drive(tmp_path: Path, *arguments: str) -> int:
    return run.main([*arguments, "--run-dir", str(tmp_path / "r"), "--config", str(RUN_CONFIG)])


def test_status_is_read_from_the_disk_where_slurm_is_gone(
    tmp_path: Path,
    commands: Commands,
    records: list[BatchRecord],
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands.add("squeue", 'echo "Unable to contact slurm controller" >&2; exit 1')
    assert drive(tmp_path, "--status") == 0
    said = capsys.readouterr()
    assert "warning: squeue: Unable to contact" in said.err
    assert "segmenter" in said.out


def test_this_machine_keeps_off_a_run_that_waits_on_slurm(
    tmp_path: Path,
    commands: Commands,
    records: list[BatchRecord],
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands.add("squeue", says=line_of_queue(records[0]))
    assert drive(tmp_path, "--stage", "all") == 2
    assert f"Slurm has 1 jobs of this run, such as {records[0].job}" in capsys.readouterr().err


def test_refused_sbatch_says_what_becomes_of_the_rest(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.add("scontrol", says=PARTITION)
    commands.add("sbatch", 'echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1')
    assert drive(tmp_path, "--stage", "all", "--partition", "testcluster", "--set", "sweep=[]") == 2
    said = capsys.readouterr().err
    assert "sbatch refused render_synthia" in said and "QOSMaxSubmitJobPerUserLimit" in said
    assert "the same command submits the rest; --cancel cancels it" in said


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Following does not wait."""
    monkeypatch.setattr(driver, "_FOLLOW_SLURM_EVERY_S", 0.0)
    monkeypatch.setattr(driver, "_FOLLOW_EVERY_S", 0.0)


@pytest.mark.usefixtures("quick")
def test_following_outlives_a_controller_that_is_away(
    tmp_path: Path,
    commands: Commands,
    records: list[BatchRecord],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Away twice, then a job waits, then none is left: they ended without a result."""
    away = '[ "$(grep -c . "$0.calls")" -lt 3 ] && { echo "no controller" >&2; exit 1; }'
    waiting = (
        f"[ \"$(grep -c . \"$0.calls\")\" = 3 ] && printf '%s\\n' '{line_of_queue(records[0])}'"
    )
    commands.add("squeue", f"{away}\n{waiting}")
    assert drive(tmp_path, "--status", "--follow") == 1
    assert len(commands.calls("squeue")) == 4
    assert capsys.readouterr().err.count("no controller") == 2
    assert drive(tmp_path, "--status") == 0  # which only tells


@pytest.mark.usefixtures("quick")
def test_following_ends_where_the_controller_does_not_come_back(
    tmp_path: Path, commands: Commands, records: list[BatchRecord]
) -> None:
    commands.add("squeue", "exit 1")
    assert drive(tmp_path, "--status", "--follow") == 0
    assert len(commands.calls("squeue")) == driver._MOST_SILENT + 1


def test_cancel_reaches_the_jobs_of_a_driver_on_another_machine(
    tmp_path: Path,
    commands: Commands,
    records: list[BatchRecord],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It may be gone with its machine, and the jobs go on using node-hours."""
    lock = tmp_path / "r" / paths.LOCK
    lock.write_text(json.dumps({**identity(), "host": "login99", "token": "x"}))
    commands.add("squeue", says=line_of_queue(records[0]))
    assert drive(tmp_path, "--cancel") == 2
    assert commands.calls("scancel") == [f"--quiet {records[0].job}"]
    said = capsys.readouterr()
    assert "1 jobs cancelled" in said.out
    assert "login99" in said.err and f"delete {lock}" in said.err


def test_cancel_tells_of_all_jobs(
    tmp_path: Path,
    commands: Commands,
    records: list[BatchRecord],
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands.add("squeue", says="\n".join(map(line_of_queue, records[:3])))
    assert drive(tmp_path, "--cancel") == 0
    assert commands.calls("scancel") == [f"--quiet {' '.join(str(r.job) for r in records[:3])}"]
    assert "3 jobs cancelled" in capsys.readouterr().out
