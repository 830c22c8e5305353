"""The whole graph on Slurm with the driver gone, and undisturbed; what the other tests equal."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster
from live_runs import SlurmRun, drive, output_digests, write_local_profile


@pytest.fixture(scope="module")
def whole(accounted: Cluster, tmp_path_factory: pytest.TempPathFactory) -> SlurmRun:
    """A finished run of everything, rendering and packing with MPI included."""
    folder = tmp_path_factory.mktemp("whole")
    run = SlurmRun(accounted, folder / "run", folder / "profile.yaml")
    started = time.monotonic()
    said = run.drive("--stage", "all")
    assert "15 jobs submitted" in said
    run.finish(timeout_s=400)
    (folder / "seconds").write_text(str(time.monotonic() - started))
    return run


def test_all_is_done_and_nothing_is_left_to_do(whole: SlurmRun) -> None:
    said = whole.drive("--stage", "all")
    assert "nothing to do: all 15 stages are done" in said, whole.describe()
    status = whole.drive("--status")
    assert "15 done" in status and "node-hours used" in status
    rows = json.loads((whole.run_dir / "report" / "results.json").read_text())["rows"]
    methods = {"source_only", "cyclegan", "cyclegan_matched", "task_informed", "adaptsegnet"}
    assert {row["method"] for row in rows} == methods
    ranks = json.loads((whole.run_dir / "gan" / "done.json").read_text())["world_size"]
    assert ranks == 4


def test_segmenter_and_gan_ran_at_the_same_time(whole: SlurmRun) -> None:
    jobs = whole.jobs()
    fields = ["--noheader", "--parsable2", "--allocations", "--format", "Start,End"]
    spans = [
        whole.cluster.run("sacct", *fields, "--jobs", jobs[node]).strip().split("|")
        for node in ("segmenter", "gan")
    ]
    (first_start, first_end), (second_start, second_end) = spans
    assert first_start < second_end and second_start < first_end, spans


def test_weights_are_those_of_a_run_on_this_machine(whole: SlurmRun, tmp_path: Path) -> None:
    """4 ranks under torchrun and 2 nodes x 2 ranks under srun: the same bits."""
    profile = write_local_profile(tmp_path, ranks=4)
    started = time.monotonic()
    drive(tmp_path / "local", profile, "--stage", "all")
    seconds = time.monotonic() - started
    on_slurm = float((whole.run_dir.parent / "seconds").read_text())
    print(f"whole graph: {on_slurm:.0f} s on Slurm, {seconds:.0f} s with --partition local")
    expected = output_digests(tmp_path / "local")
    assert {"gan", "finetune/finetune.alpha=0.0", "adaptsegnet"} <= expected.keys()
    assert output_digests(whole.run_dir) == expected


def test_preempted_gan_goes_on_with_the_same_weights(
    whole: SlurmRun, accounted: Cluster, new_run: Callable[..., SlurmRun]
) -> None:
    run = new_run(accounted)
    run.drive("--stage", "finetune")
    run.wait_for_checkpoint("gan")
    before = run.jobs()
    # The partition `urgent` takes all nodes from `booster`.
    accounted.run("sbatch", "-p", "urgent", "-N4", "-o", "/dev/null", "--wrap", "sleep 2")
    run.wait_until(lambda: run.state("gan").get("state") == "preempted", "gan was preempted")
    states = run.queue()
    assert all(states[before[node]][0] == "PENDING" for node in ("finetune",)), states
    run.finish()
    assert run.jobs() == before  # the same job, by its id
    assert run.requeues("gan") == ["stopped"], run.batch_log("gan")
    steps = run.steps("gan")
    assert steps == sorted(set(steps)), "a step was done twice: images were lost"
    digests = output_digests(run.run_dir)
    expected = output_digests(whole.run_dir)
    assert {k: digests[k] for k in digests} == {k: expected[k] for k in digests}
    assert {"segmenter", "gan", "finetune"} <= digests.keys()
