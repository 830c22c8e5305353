"""A run of the pipeline on a test cluster, as the tests see it: commands, queue, files."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("run.yaml")
PROFILE = Path(__file__).with_name("profile.yaml")
POLL_S = 0.2
# Started again within the second of its requeue, a job dies of 'Job credential revoked'.
REQUEUE_REST_S = 4.0


def drive(
    run_dir: Path,
    profile: Path,
    *arguments: str,
    env: dict[str, str] | None = None,
    code: int = 0,
    cwd: Path = ROOT,
) -> str:
    """Run the driver's command; returns all that it printed."""
    command = [sys.executable, str(ROOT / "pipeline" / "run.py"), *arguments]
    options = ["--partition", str(profile), "--config", str(CONFIG), "--run-dir", str(run_dir)]
    done = subprocess.run(
        [*command, *options], cwd=cwd, env=env, capture_output=True, text=True, timeout=600
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, f"exit code {done.returncode}, expected {code}:\n{said}"
    return said


def write_local_profile(folder: Path, ranks: int) -> Path:
    """A profile that runs every training on `ranks` ranks of this machine."""
    stages = {name: {"ranks": 1} for name in ("pack_synthia", "pack_cityscapes", "evaluate")}
    profile = {"kind": "local", "run": "minicity", "parallel": 2, "ranks": ranks, "stages": stages}
    path = folder / "local.yaml"
    path.write_text(yaml.safe_dump(profile))
    return path


def output_digests(run_dir: Path) -> dict[str, str]:
    """Node -> digest of its outputs, of every finished stage whose outputs are the same bits.

    Evaluations and the report hold times and names of machines.
    """
    return {
        str(path.parent.relative_to(run_dir)): json.loads(path.read_text())["output_digest"]
        for path in run_dir.rglob("done.json")
        if path.relative_to(run_dir).parts[0] not in ("evaluate", "report")
    }


@dataclass
class SlurmRun:
    """A run directory on a cluster; `keys` change profile.yaml."""

    cluster: Cluster
    run_dir: Path
    profile: Path
    keys: dict[str, Any] = field(default_factory=dict)
    requeued_since: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        profile = yaml.safe_load(PROFILE.read_text()) | self.keys
        self.profile.write_text(yaml.safe_dump(profile))

    def drive(self, *arguments: str, code: int = 0, **env: str) -> str:
        """The driver's command on this cluster."""
        return drive(
            self.run_dir, self.profile, *arguments, env=self.cluster.env() | env, code=code
        )

    def jobs(self) -> dict[str, str]:
        """Node -> id of the job last submitted for it."""
        found = {}
        for path in sorted((self.run_dir / "slurm").glob("[0-9]*.json")):
            record = json.loads(path.read_text())
            job = record["job"]
            for number, unit in enumerate(record["units"] if job else []):
                element = f"{job}_{number}" if len(record["units"]) > 1 else job
                found.update(dict.fromkeys(unit, element))
        return found

    def queue(self) -> dict[str, tuple[str, str]]:
        """Job -> (state, reason), of the jobs of this run that Slurm has in its queue."""
        text = self.cluster.run("squeue", "--noheader", "--array", "--format=%i|%T|%r")
        lines = [line.split("|") for line in text.splitlines()]
        own = {job.partition("_")[0] for job in self.jobs().values()}
        return {job: (state, why) for job, state, why in lines if job.partition("_")[0] in own}

    def hurry(self) -> None:
        """Let requeued jobs start soon: Slurm holds them back for two minutes."""
        now = time.monotonic()
        for job, (state, reason) in self.queue().items():
            if state != "PENDING" or reason != "BeginTime":
                self.requeued_since.pop(job, None)
            elif now - self.requeued_since.setdefault(job, now) > REQUEUE_REST_S:
                self.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def wait_until(self, holds: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
        """Wait for something; requeued jobs are hurried on meanwhile."""
        end = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end, f"not within {timeout_s} s: {what}\n{self.describe()}"
            time.sleep(POLL_S)
            self.hurry()

    def finish(self, timeout_s: float = 240) -> None:
        """Wait until none of the run's jobs is in the queue."""
        self.wait_until(lambda: not self.queue(), "all jobs have ended", timeout_s)

    def wait_for_checkpoint(self, node: str, after: int = 0, timeout_s: float = 120) -> None:
        """Wait until `node` runs and has a checkpoint of more than `after` images."""
        self.wait_until(
            lambda: any(images > after for images in self.checkpoints(node)),
            f"{node} has a checkpoint after {after} images",
            timeout_s,
        )

    def checkpoints(self, node: str) -> list[int]:
        """Images of the complete checkpoints of a node."""
        manifests = (self.run_dir / node / "checkpoints").glob("*/manifest.json")
        return sorted(int(path.parent.name) for path in manifests)

    def state(self, node: str) -> dict[str, Any]:
        """`state.json` of a node; empty where there is none."""
        path = self.run_dir / node / "state.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def is_done(self, node: str) -> bool:
        return (self.run_dir / node / "done.json").is_file()

    def steps(self, node: str) -> list[int]:
        """Images at each logged training step, in the order in which they were logged."""
        path = self.run_dir / node / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line["images"] for line in lines if line["kind"] == "train"]

    def requeues(self, node: str) -> list[str]:
        """Why the node's job (no array) was requeued by its batch script."""
        path = self.run_dir / "slurm" / f"{self.jobs()[node]}.requeues"
        return path.read_text().split() if path.is_file() else []

    def batch_log(self, node: str) -> str:
        """What the batch script of the node's job printed."""
        return (self.run_dir / "slurm" / f"{self.jobs()[node]}.log").read_text()

    def describe(self) -> str:
        """Queue and the ends of all logs: for failing tests."""
        logs = [*self.run_dir.glob("slurm/*.log"), *self.run_dir.rglob("logs/**/*.log")]
        ends = [f"== {path}\n{path.read_text()[-1500:]}" for path in sorted(logs)]
        return "\n".join([str(self.queue()), *ends])

    def clear(self) -> None:
        """Cancel what is left in the queue."""
        live = sorted({job.partition("_")[0] for job in self.queue()})
        if live:
            self.cluster.run("scancel", *live)


def rank_pids(node_dir: Path) -> list[int]:
    """Process ids, on this machine, of the ranks at work in a stage's directory."""
    wanted = ["-m", "pipeline.stages", str(node_dir)]
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if words[1:4] == wanted:
            found.append(int(path.parent.name))
    return sorted(found)


def kill(pid: int) -> None:
    os.kill(pid, 9)
