"""Runs on Slurm for the tests: a profile, what the driver would have submitted, fake commands."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import finish

from pipeline import batches, launch, submit
from pipeline.batches import BatchRecord
from pipeline.plan import Plan, make_plan
from pipeline.profiles import SlurmLayout, SlurmProfile
from pipeline.slurm import Queued
from pipeline.sweep import Run


def slurm_profile(**keys: Any) -> SlurmProfile:
    """A profile of single ranks, which divide every batch size."""
    given = {
        "kind": "slurm",
        "run": "minicity",
        "partition": "booster",
        "account_required": False,
        "environment": "env_testcluster.sh",
    }
    return SlurmProfile(**{**given, **keys})


def bundling(**points: int) -> SlurmProfile:
    """A profile by which `points` (stage=number) share a job."""
    return slurm_profile(stages={s: SlurmLayout(points_per_node=n) for s, n in points.items()})


PROFILE = slurm_profile()


def slurm_plan(run: Run, run_dir: Path, stage: str = "all", **keys: Any) -> Plan:
    """The plan of a run on Slurm."""
    return make_plan(run, run_dir, stage, PROFILE, **keys)


def submitted(
    plan: Plan,
    profile: SlurmProfile = PROFILE,
    keep: Mapping[str, str] | None = None,
    first_id: int = 100,
) -> list[BatchRecord]:
    """What the driver would have recorded, had Slurm counted its job ids from `first_id`."""
    todo = submit.arranged(plan, profile, keep or {})
    ids = [str(first_id + number) for number in range(len(todo))]
    records = []
    for number, batch in enumerate(todo):
        after = ",".join(term.text(ids, todo) for term in batch.after)
        token = f"{number:04d}-{batch.stage}-{first_id:08d}"
        record = launch.record_of(plan, batch, profile, token, after)
        records.append(record.model_copy(update={"job": ids[number]}))
    return records


def jobs_of(records: Sequence[BatchRecord]) -> dict[str, str]:
    """Node -> job."""
    return {name: job for name, (job, _) in batches.latest_jobs(records).items()}


def queued(comment: str = "", state: str = "PENDING", **keys: Any) -> Queued:
    """A job in the queue."""
    return Queued(
        **{"state": state, "reason": "Dependency", "restarts": 0, **keys}, comment=comment
    )


def waiting(records: Sequence[BatchRecord]) -> dict[str, Queued]:
    """A queue in which all that was submitted waits."""
    return {
        job: queued(batches.comment(record.token))
        for record in records
        for job in record.job_ids().values()
    }


def with_data_done(run: Run, run_dir: Path) -> tuple[Plan, list[BatchRecord]]:
    """A run whose jobs were all submitted, and whose data is packed by now."""
    before = slurm_plan(run, run_dir)
    records = submitted(before)
    for name in before.todo:
        if before.graph[name].stage.startswith(("render_", "pack_")):
            finish(before, before.graph[name])
    return slurm_plan(run, run_dir), records


class Commands:
    """Small shell scripts that alone are on PATH, in Slurm's place; each notes its calls."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self._folder = folder
        monkeypatch.setenv("PATH", str(folder))

    def add(self, name: str, body: str = "", says: str = "") -> None:
        """A command that prints `says` and goes on with `body`, lines of sh."""
        text = self._folder / f"{name}.says"
        text.write_text(says)
        script = self._folder / name
        script.write_text(
            "#!/bin/sh\n"
            f"PATH={shlex.quote(os.defpath)}\n"
            f'printf "%s\\n" "$*" >> {shlex.quote(str(self._folder / name))}.calls\n'
            f"env > {shlex.quote(str(self._folder / name))}.env\n"
            f"cat {shlex.quote(str(text))}\n"
            f"{body}\nexit 0\n"
        )
        script.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        """The arguments of each call of a command, so far."""
        path = self._folder / f"{name}.calls"
        return path.read_text().splitlines() if path.is_file() else []

    def environment(self, name: str) -> dict[str, str]:
        """The environment of its last call."""
        lines = (self._folder / f"{name}.env").read_text().splitlines()
        return {key: value for key, _, value in (line.partition("=") for line in lines)}
