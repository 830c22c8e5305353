"""How long the driver takes to submit a sweep of 200 points, beside plain sbatch calls.

The queue is held, so that no point starts: what is measured is the way from the command to the
prompt. Peers, in the same run on the same cluster: 200 x `sbatch` of an empty script, and
`submitit` with one call per point.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
POINTS = 200


def seconds(command: list[str], env: dict[str, str]) -> float:
    """Wall time of a command that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.perf_counter() - started


def submit_with_submitit(folder: Path, points: int) -> float:
    """Seconds for one submitit call per point."""
    import submitit

    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(time=1, wckey="")
    started = time.perf_counter()
    for _ in range(points):
        executor.submit(time.sleep, 0)
    return time.perf_counter() - started


def main() -> None:
    """Print seconds, seconds per point and ratios."""
    sys.path.insert(0, str(TESTS / "cluster"))
    import cluster

    if reason := cluster.missing():
        print(f"submit: no Slurm here: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="tigan-bench-") as name:
        folder = Path(name)
        slurm = cluster.start(folder / "slurm")
        try:
            measure(slurm.env(), folder)
        finally:
            slurm.stop()


def measure(env: dict[str, str], folder: Path) -> None:
    """All three ways, one after the other, each from an empty queue."""
    hold = ["scontrol", "update", "PartitionName=booster", "State=DOWN"]
    subprocess.run(hold, env=env, check=True)
    values = ", ".join(str(number / 1000) for number in range(1, POINTS + 1))
    sweep = folder / "sweep.yaml"
    sweep.write_text(f"sweep:\n  - {{finetune.alpha: [{values}]}}\n")
    run = [sys.executable, "pipeline/run.py", "--stage", "all", "--partition", "testcluster"]
    run += ["--sweep", str(sweep), "--run-dir", str(folder / "run")]
    ours = seconds(run, env)
    count = len(subprocess.check_output(["squeue", "-h", "-r"], env=env, text=True).splitlines())
    status = seconds([*run[:2], "--status", "--run-dir", str(folder / "run")], env)
    clear = ["scancel", "--user", str(os.getuid())]
    subprocess.run(clear, env=env, check=True)

    empty = folder / "empty.sh"
    empty.write_text("#!/bin/bash\n")
    loop = f"for i in $(seq {POINTS}); do sbatch -o /dev/null {empty}; done"
    plain = seconds(["bash", "-c", loop], env)
    subprocess.run(clear, env=env, check=True)
    os.environ.clear()
    os.environ.update(env)
    tenth = submit_with_submitit(folder / "submitit", POINTS // 10)
    print(
        f"submit a sweep of {POINTS} points ({count} jobs with evaluations and the rest): "
        f"{ours:.2f} s, {1000 * ours / POINTS:.1f} ms per point; --status {status:.2f} s"
    )
    print(f"  sbatch, one call per point: {plain:.2f} s; ours takes {ours / plain:.2f} x that")
    print(
        f"  submitit, one call per point: {1000 * tenth / (POINTS // 10):.0f} ms per point (of "
        f"{POINTS // 10}); ours is {tenth * 10 / ours:.1f} x as fast"
    )


if __name__ == "__main__":
    main()
