"""What a scheduler, an operator and the hardware do to a running job; the weights stay the same."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster
from live_runs import SlurmRun, drive, kill, output_digests, rank_pids, write_local_profile

NewRun = Callable[..., SlurmRun]


@pytest.fixture(scope="module")
def undisturbed(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the gan of a run that nothing happened to, on 4 ranks."""
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(["cp", "-r", str(packed), str(folder / "run")], check=True)
    profile = write_local_profile(folder, ranks=4)
    drive(folder / "run", profile, "--stage", "gan")
    return output_digests(folder / "run")["gan"]


def test_three_time_limits(plain: Cluster, new_run: NewRun) -> None:
    """Saved before each limit, requeued, done in the end; no image lost."""
    run = new_run(plain, time_min=1, signal_delay_s=20)
    run.drive("--stage", "gan", "--set", "gan.images=2000", "gan.decay_from=1000")
    for rounds in (1, 2, 3):
        run.wait_until(
            lambda rounds=rounds: len(run.requeues("gan")) >= rounds,  # type: ignore[misc]
            f"round {rounds} has ended",
            timeout_s=180,
        )
    assert set(run.requeues("gan")) == {"stopped"}, run.batch_log("gan")
    steps = run.steps("gan")
    assert steps == sorted(set(steps)), "a step was done twice: images were lost"
    saved = run.checkpoints("gan")
    assert saved and saved[-1] >= steps[-1], (saved, steps[-1])
    plain.run("scancel", run.jobs()["gan"])


def test_killed_rank_ends_the_job_which_goes_on(
    plain: Cluster, new_run: NewRun, undisturbed: str
) -> None:
    run = new_run(plain)
    run.drive("--stage", "gan")
    run.wait_for_checkpoint("gan")
    pids = rank_pids(run.run_dir / "gan")
    assert len(pids) == 4
    kill(pids[2])
    run.wait_until(lambda: run.requeues("gan") == ["died"], "the job was requeued")
    run.finish()
    assert output_digests(run.run_dir)["gan"] == undisturbed


def test_lost_node(plain: Cluster, new_run: NewRun, undisturbed: str) -> None:
    """slurmd and its tasks vanish: Slurm says NODE_FAIL and requeues by itself."""
    run = new_run(plain)
    run.drive("--stage", "gan")
    run.wait_for_checkpoint("gan")
    shown = plain.run("scontrol", "--oneliner", "show", "job", run.jobs()["gan"])
    batch_host = re.search(r"BatchHost=(\S+)", shown)
    assert batch_host is not None
    plain.kill_node(batch_host.group(1))
    try:
        run.wait_until(lambda: "PENDING" in str(run.queue().values()), "requeued", timeout_s=180)
        run.finish()
    finally:
        plain.start_node(batch_host.group(1))
    assert output_digests(run.run_dir)["gan"] == undisturbed, run.describe()


def test_node_that_hangs_and_comes_back_leaves_the_next_start_alone(
    plain: Cluster, new_run: NewRun, undisturbed: str
) -> None:
    """Two starts of one job are alive: the first must neither write, nor requeue the second.

    Its srun may still end the second's step, which has the same id: a crash, and tried again.
    """
    run = new_run(plain, nodes=1, tasks_per_node=4)
    run.drive("--stage", "gan")
    run.wait_for_checkpoint("gan")
    shown = plain.run("scontrol", "--oneliner", "show", "job", run.jobs()["gan"])
    (host,) = re.findall(r"BatchHost=(\S+)", shown)
    plain.freeze_node(host)
    try:
        second = run.run_dir / "gan" / "logs" / "attempt-2.log"
        run.wait_until(second.exists, "started again elsewhere", timeout_s=180)
        plain.thaw_node(host, daemon=False)
        run.wait_until(lambda: "STARTED_AGAIN" in run.batch_log("gan"), "the first left it alone")
        run.finish()
    finally:
        plain.thaw_node(host, daemon=True)
    assert output_digests(run.run_dir)["gan"] == undisturbed, run.describe()


def test_scancel_while_saving_stays_cancelled(
    plain: Cluster, new_run: NewRun, undisturbed: str
) -> None:
    """A cancelled job is not brought back to life, and what it saved is whole."""
    run = new_run(plain)
    run.drive("--stage", "gan", "--set", "training.checkpoint_images=4")  # it saves all the time
    run.wait_for_checkpoint("gan", after=20)
    job = run.jobs()["gan"]
    plain.run("scancel", job)
    plain.run("scancel", job)  # a second signal while saving changes nothing
    run.wait_until(lambda: not run.queue(), "the job is gone")
    time.sleep(3)
    assert not run.queue() and run.requeues("gan") == []
    assert not run.is_done("gan")
    assert "CANCELLED" in run.batch_log("gan")
    status = run.drive("--status")
    assert re.search(r"gan +ended", status), status
    said = run.drive("--stage", "gan")
    assert "1 jobs submitted" in said
    run.finish()
    assert output_digests(run.run_dir)["gan"] == undisturbed


def test_signal_to_one_rank_stops_all(plain: Cluster, new_run: NewRun) -> None:
    """A flag on one rank is everybody's, and rank 0's log says so."""
    run = new_run(plain)
    run.drive("--stage", "gan")
    run.wait_for_checkpoint("gan")
    pid = rank_pids(run.run_dir / "gan")[3]
    subprocess.run(["kill", f"-{signal.SIGUSR2.value}", str(pid)], check=True)
    run.wait_until(lambda: run.requeues("gan") == ["stopped"], "all ranks stopped")
    log = (run.run_dir / "gan" / "logs" / "attempt-1.log").read_text()
    assert "stopped by a signal" in log
    assert json.loads((run.run_dir / "gan" / "state.json").read_text())["state"] == "preempted"
