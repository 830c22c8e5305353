"""The driver's commands against a real queue: killed drivers, failed stages, odd places."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cluster import Cluster
from live_runs import CONFIG, ROOT, SlurmRun

from data_prep.shard_file import read_extents

NewRun = Callable[..., SlurmRun]


def wrapper(folder: Path, name: str, script: str) -> dict[str, str]:
    """A script before the real command `name` on PATH; it may call it as $REAL."""
    real = shutil.which(name)
    assert real is not None
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/bash\nREAL={real}\n{script}\n")
    path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def environment(folder: Path, python: str) -> str:
    """An environment file under which every Python of a job first runs `python`."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(python)
    path = folder / "env.sh"
    path.write_text(f"source {ROOT / 'slurm' / 'env_testcluster.sh'}\nexport PYTHONPATH={folder}\n")
    return str(path)


def jobs_by_node(run: SlurmRun) -> Counter[str]:
    """How many jobs in the queue would run each node."""
    live = run.queue()
    found: Counter[str] = Counter()
    for path in (run.run_dir / "slurm").glob("[0-9]*.json"):
        record = json.loads(path.read_text())
        for number, unit in enumerate(record["units"]):
            element = f"{record['job']}_{number}" if len(record["units"]) > 1 else record["job"]
            found.update(node for node in unit if element in live)
    return found


def all_in_queue(cluster: Cluster) -> int:
    """Jobs and elements in the cluster's queue."""
    return len(cluster.run("squeue", "--noheader", "--array").splitlines())


def test_driver_killed_after_sbatch_took_a_job(
    plain: Cluster, new_run: NewRun, tmp_path: Path
) -> None:
    """Neither lost nor doubled: killed before it could note the id, at each place in turn."""
    run = new_run(plain)
    plain.run("scontrol", "update", "PartitionName=booster", "State=DOWN")  # nothing starts
    try:
        for number in (1, 3, 5):
            script = (
                f'echo >>{tmp_path}/calls; "$REAL" "$@" || exit\n'
                f"[ $(wc -l <{tmp_path}/calls) -eq {number} ] && kill -9 $PPID; exit 0"
            )
            (tmp_path / "calls").unlink(missing_ok=True)
            env = wrapper(tmp_path / "bin", "sbatch", script)
            run.drive("--stage", "all", code=-9, **env)
            said = run.drive("--stage", "all")
            assert "killed before it noted the id" in said
            nodes = jobs_by_node(run)
            assert set(nodes.values()) == {1} and len(nodes) == 11, nodes
            assert all_in_queue(plain) == 11  # 5 trainings, 5 evaluations, the report
            run.drive("--cancel")
            assert all_in_queue(plain) == 0
    finally:
        plain.run("scontrol", "update", "PartitionName=booster", "State=UP")


def test_second_driver_stops(plain: Cluster, new_run: NewRun, tmp_path: Path) -> None:
    run = new_run(plain)
    env = wrapper(tmp_path / "bin", "sbatch", 'sleep 5; exec "$REAL" "$@"')
    first = subprocess.Popen(
        [
            *(sys.executable, ROOT / "pipeline" / "run.py", "--stage", "gan", "--config", CONFIG),
            *("--partition", run.profile, "--run-dir", run.run_dir),
        ],
        env=plain.env() | env,
        cwd=ROOT,
    )
    run.wait_until(lambda: (run.run_dir / "driver.lock").exists(), "the first driver works")
    said = run.drive("--stage", "gan", code=2)
    assert "is at work here" in said
    assert first.wait(timeout=60) == 0
    assert list(jobs_by_node(run)) == ["gan"]


def test_failed_stage_and_the_next_command(plain: Cluster, new_run: NewRun) -> None:
    """Its dependents are cancelled, the report shows what there is, the next command goes on."""
    run = new_run(plain)
    shard = min((run.run_dir / "pack_synthia").glob("*train*.h5"))
    good = shard.read_bytes()
    begin, size = read_extents(shard)["labels"]  # which the gan does not read
    wrong = bytes(value ^ 1 for value in good[begin : begin + size])
    shard.write_bytes(good[:begin] + wrong + good[begin + size :])
    run.drive("--stage", "all")
    run.finish(timeout_s=300)
    assert run.state("segmenter")["state"] == "failed" and run.requeues("segmenter") == []
    assert not run.is_done("finetune") and not run.state("finetune")
    assert (run.run_dir / "report" / "index.html").is_file()  # of what there is
    said = run.drive("--status")
    assert "segmenter: failed: " in said and shard.name in said, said
    assert "finetune: blocked: can never run: needs segmenter" in said
    assert "evaluate/task_informed: blocked: can never run: needs segmenter" in said
    before = run.jobs()
    shard.write_bytes(good)
    run.drive("--stage", "all")
    after = run.jobs()
    assert {node for node in after if after[node] == before[node]} == {"gan"}
    run.finish(timeout_s=300)
    assert "nothing to do" in run.drive("--stage", "all"), run.describe()


def test_operator_cancels_one_stage(plain: Cluster, new_run: NewRun) -> None:
    """--status tells what can never run; the next command submits just that anew."""
    run = new_run(plain)
    run.drive("--stage", "all")
    before = run.jobs()
    plain.run("scancel", before["segmenter"])
    run.wait_until(lambda: "DependencyNeverSatisfied" in str(run.queue()), "Slurm knows it")
    run.wait_until(lambda: before["segmenter"] not in run.queue(), "it is gone")
    assert "finetune: blocked: can never run: needs segmenter" in run.drive("--status")
    said = run.drive("--stage", "all")
    after = run.jobs()
    assert f"job {before['finetune'].partition('_')[0]}" in said
    assert {node for node in after if after[node] == before[node]} == {"gan"}
    assert set(jobs_by_node(run).values()) == {1} and len(jobs_by_node(run)) == 11


def test_exit_code_0_without_a_record_is_a_failure(
    plain: Cluster, new_run: NewRun, tmp_path: Path
) -> None:
    """A stage that ends well by its exit code alone: dependents never run on it."""
    lies = (
        "import os, sys\n"
        "if sys.orig_argv[1:3] == ['-m', 'pipeline.stages'] and 'gan' in sys.orig_argv[3]:\n"
        "    os._exit(0)\n"
    )
    run = new_run(plain, environment=environment(tmp_path / "env", lies))
    run.drive("--stage", "finetune")
    run.wait_until(lambda: run.requeues("gan") == ["died"], "tried once more")
    run.wait_until(lambda: run.jobs()["gan"] not in run.queue(), "gan's job has ended")
    assert not run.is_done("gan") and not run.state("finetune")
    assert run.jobs()["finetune"] not in run.queue()
    assert "finetune: blocked: can never run: needs gan" in run.drive("--status")


def test_sick_node_is_excluded(plain: Cluster, new_run: NewRun, tmp_path: Path) -> None:
    """Ranks that hang on one node: the others name it, and the job goes on elsewhere."""
    hangs = (
        "import os, sys, time\n"
        "if sys.orig_argv[1:3] == ['-m', 'pipeline.stages']:\n"
        "    if os.environ['SLURM_NODEID'] == '1' and 'SLURM_RESTART_COUNT' not in os.environ:\n"
        "        time.sleep(600)\n"
    )
    run = new_run(plain, environment=environment(tmp_path / "env", hangs), health_check_s=15)
    run.drive("--stage", "gan")
    run.wait_until(lambda: run.requeues("gan") == ["unhealthy"], "the node was noticed")
    (nodes,) = re.findall(r"start 0, on (\w+) (\w+)", run.batch_log("gan"))
    log = (run.run_dir / "gan" / "logs" / "attempt-1.log").read_text()
    assert f"ranks 2, 3 of 4 on {nodes[1]} did not come" in log
    run.finish()
    assert run.is_done("gan"), run.describe()
    assert f"excluded from now on: {nodes[1]}" in run.batch_log("gan")
    (again,) = re.findall(r"start 1, on (.*)", run.batch_log("gan"))
    assert nodes[1] not in again


def test_environment_file_that_fails(plain: Cluster, new_run: NewRun, tmp_path: Path) -> None:
    """Such as a module that is not there: the log says so, and nothing waits for ever."""
    path = tmp_path / "env.sh"
    path.write_text("false\n")
    run = new_run(plain, environment=str(path), max_retries=0)
    run.drive("--stage", "all")
    run.wait_until(lambda: list(run.queue()) in ([], [run.jobs()["report"]]), "the rest has ended")
    assert "the environment file (slurm/env_*.sh) ended with exit code 1" in run.batch_log("gan")
    assert f"{run.jobs()['gan']}.log" in run.drive("--status")


def test_rank_without_its_gpu_does_not_train_on_the_cpu(plain: Cluster, new_run: NewRun) -> None:
    run = new_run(plain, gpus_per_node=4)  # the cluster's GPUs are names only
    run.drive("--stage", "gan")
    run.wait_until(lambda: run.requeues("gan") == ["unhealthy"], "the job was requeued")
    assert "sees 0 GPUs" in run.state("gan")["message"]
    run.wait_until(lambda: "excluded from now on" in run.batch_log("gan"), "without that node")
    assert run.checkpoints("gan") == []


def test_odd_path_and_no_accounting(plain: Cluster, new_run: NewRun) -> None:
    run = new_run(plain, 'it\'s a "run" $HOME & more')
    run.drive("--stage", "gan")
    run.finish()
    assert run.is_done("gan"), run.describe()
    said = run.drive("--status")
    assert "node-hours: not known (no accounting on this cluster)" in said


def test_driver_inside_a_job(plain: Cluster, new_run: NewRun) -> None:
    """slurm/driver.sbatch: its own job's variables do not reach what it submits."""
    run = new_run(plain)
    arguments = ["--stage", "gan", "--partition", str(run.profile), "--config", str(CONFIG)]
    out = run.run_dir.parent / "driver.log"
    env = plain.env() | {"TIGAN_PYTHON": sys.executable, "TIGAN_ENV": "env_testcluster.sh"}
    subprocess.run(
        [
            *("sbatch", "--wait", "--partition=booster", f"--output={out}", "--account=demo"),
            *(ROOT / "slurm" / "driver.sbatch", *arguments, "--run-dir", run.run_dir),
        ],
        cwd=ROOT,
        env=env,
        check=True,
        capture_output=True,
    )
    assert "1 jobs submitted" in out.read_text()
    run.finish()
    assert run.is_done("gan"), run.describe()


def test_forgotten_upstream(plain: Cluster, new_run: NewRun) -> None:
    """Slurm forgets ended jobs; what is done is known from the records, and waits for nothing."""
    run = new_run(plain)
    run.drive("--stage", "gan")
    run.finish()
    show = ["scontrol", "show", "job", run.jobs()["gan"]]
    run.wait_until(  # MinJobAge is 2 s here, but Slurm clears up once a minute
        lambda: subprocess.run(show, env=plain.env(), capture_output=True).returncode != 0,
        "Slurm has forgotten the job",
    )
    said = run.drive("--stage", "evaluate")
    record = json.loads(max((run.run_dir / "slurm").glob("*-finetune-*.json")).read_text())
    assert run.jobs()["gan"] not in record["dependency"], said
    assert run.jobs()["segmenter"] in record["dependency"]


def test_points_share_a_node_and_elements_follow_each_other(
    accounted: Cluster, new_run: NewRun, tmp_path: Path
) -> None:
    """Four points as two jobs of two; their evaluations wait for their own job only."""
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "sweep:\n"
        "  - finetune.alpha: [0.25, 0.5, 0.75]\n"
        "    methods: [[cyclegan_matched, task_informed]]\n"
    )
    layout = {"nodes": 1, "tasks_per_node": 1, "points_per_node": 2}
    run = new_run(accounted, stages={"finetune": layout, "evaluate": layout})
    said = run.drive("--stage", "all", "--sweep", str(sweep))
    assert "(array of 2, 4 points)" in said and "aftercorr" in said
    run.finish(timeout_s=300)
    status = run.drive("--status")
    assert "0 failed" not in status and "blocked" not in status, status
    assert "nothing to do" in run.drive("--stage", "all", "--sweep", str(sweep)), run.describe()


def test_status_asks_slurm_twice(accounted: Cluster, new_run: NewRun, tmp_path: Path) -> None:
    """However many points there are."""
    sweep = tmp_path / "sweep.yaml"
    alphas = ", ".join(f"{i / 1000}" for i in range(1, 201))
    sweep.write_text(f"sweep:\n  - {{finetune.alpha: [{alphas}], methods: [[task_informed]]}}\n")
    run = new_run(accounted)
    accounted.run("scontrol", "update", "PartitionName=booster", "State=DOWN")
    try:
        said = run.drive("--stage", "all", "--sweep", str(sweep))
        assert "(array of 200)" in said
        calls = tmp_path / "calls"
        for name in ("squeue", "sacct", "scontrol", "sinfo"):
            env = wrapper(tmp_path / "bin", name, f'echo {name} >>{calls}; exec "$REAL" "$@"')
        status = run.drive("--status", **env)
        assert sorted(calls.read_text().split()) == ["sacct", "squeue"]
        table = status[: status.index("more points")].splitlines()[:-1]
        assert max(map(len, table)) <= 80, status
        assert "finetune: 188 more points queued" in status
        assert "jobs cancelled" in run.drive("--cancel")
    finally:
        accounted.run("scontrol", "update", "PartitionName=booster", "State=UP")
