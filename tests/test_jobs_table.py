"""The tables of a run on Slurm: each state a node can be in, and how many lines it takes."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import finish, tiny_run
from slurm_runs import (
    PROFILE,
    Commands,
    bundling,
    jobs_of,
    queued,
    slurm_plan,
    slurm_profile,
    submitted,
    waiting,
    with_data_done,
)

from pipeline import jobs_table, paths, progress, submit
from pipeline.batches import BatchRecord
from pipeline.jobs_table import Row, Seen
from pipeline.plan import Plan
from pipeline.profiles import SlurmLayout
from pipeline.slurm import Ended, Queued


def rows_of(
    plan: Plan,
    records: list[BatchRecord],
    queue: Mapping[str, Queued],
    ended: Mapping[str, Ended] | None = None,
) -> dict[str, Row]:
    seen = Seen(queue, ended)
    found = jobs_table.rows(plan.graph, plan.states, plan.run_dir, records, seen)
    return {row.name: row for row in found}


def begin(plan: Plan, node: str, attempts: int = 1) -> Path:
    """Let a node have been started; returns its directory."""
    folder = plan.run_dir / node
    (folder / paths.LOGS).mkdir(parents=True)
    for attempt in range(1, attempts + 1):
        paths.log(folder, attempt).touch()
    return folder


def states(rows: Mapping[str, Row]) -> dict[str, str]:
    return {name: row.state for name, row in rows.items()}


def test_submitted_run_is_queued(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    records = submitted(plan)
    rows = rows_of(plan, records, waiting(records))
    assert set(states(rows).values()) == {"queued"}
    assert {name: row.job for name, row in rows.items()} == jobs_of(records)
    assert not [row for row in rows.values() if row.note]
    assert jobs_table.is_active(rows.values())


def test_reason_of_waiting_is_noted_unless_it_is_the_usual_one(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    records = submitted(plan)
    queue = {**waiting(records), "100": queued(reason="QOSMaxJobsPerUserLimit")}
    assert rows_of(plan, records, queue)["render_synthia"].note == "QOSMaxJobsPerUserLimit"


def test_running_job_shows_how_far_it_is(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    records = submitted(plan)
    job = jobs_of(records)["segmenter"]
    folder = begin(plan, "segmenter", attempts=3)
    metrics = {"images": 1000, "total": 12000, "seconds": 100.0}
    (folder / paths.METRICS).write_text(json.dumps(metrics) + "\n")
    manifest = folder / "checkpoints" / "images-1000" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    queue = {job: queued(state="RUNNING", reason="None", restarts=2)}
    row = rows_of(plan, records, queue)["segmenter"]
    assert (row.state, row.note, row.job) == ("running", "", job)
    assert (row.images, row.eta, row.restarts) == ("1000/12k", "18m20s", 2)
    assert row.saved.endswith("s")
    queue = {job: queued(state="COMPLETING", reason="None")}
    assert rows_of(plan, records, queue)["segmenter"].note == "Slurm: COMPLETING"


def test_requeued_job_keeps_its_images_but_has_no_eta(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    records = submitted(plan)
    folder = begin(plan, "segmenter")
    (folder / paths.METRICS).write_text('{"images": 500, "total": 4000, "seconds": 50.0}\n')
    progress.write_state(folder, "preempted", "start it again to go on")
    queue = {jobs_of(records)["segmenter"]: queued(reason="BeginTime", restarts=1)}
    row = rows_of(plan, records, queue)["segmenter"]
    assert (row.state, row.note) == ("requeued", "BeginTime")
    assert (row.images, row.eta, row.saved) == ("500/4000", "-", "-")


def test_what_waits_for_a_dead_input_is_blocked_down_to_the_report(tmp_path: Path) -> None:
    plan, records = with_data_done(tiny_run(), tmp_path)
    queue = waiting(records)
    del queue[jobs_of(records)["gan"]]
    queue[jobs_of(records)["finetune"]] = queued(reason="DependencyNeverSatisfied")
    # Cancelled, as the epilogue does it.
    del queue[jobs_of(records)["evaluate/cyclegan"]]
    rows = rows_of(plan, records, queue)
    blocked = {"finetune", "evaluate/cyclegan", "evaluate/task_informed"}
    assert {name for name, row in rows.items() if row.state == "blocked"} == blocked
    assert {rows[name].note for name in blocked} == {"can never run: needs gan"}
    # The report runs after any end.
    assert rows["report"].state == rows["segmenter"].state == "queued"
    assert rows["gan"].state == "ended"


def test_job_that_began_before_its_input_was_lost_is_not_blocked(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    records = submitted(plan)
    jobs = jobs_of(records)
    queue = {jobs["finetune"]: queued(restarts=1), jobs["gan"]: queued(state="RUNNING")}
    found = states(rows_of(plan, records, queue))
    assert (found["finetune"], found["gan"]) == ("requeued", "running")


def test_failed_stage_shows_its_message_and_its_log(tmp_path: Path) -> None:
    plan, records = with_data_done(tiny_run(), tmp_path)
    folder = begin(plan, "gan", attempts=2)
    progress.write_state(folder, "failed", "no file x", may_retry=False)
    row = rows_of(plan, records, {}, {jobs_of(records)["gan"]: Ended("FAILED", 1.0)})["gan"]
    assert (row.state, row.job) == ("failed", "")
    assert row.note == f"no file x (log: {paths.log(folder, 2)})"


# A job that was preempted before its ranks began leaves no log of that start.
def test_log_that_is_shown_is_there(tmp_path: Path) -> None:
    plan, records = with_data_done(tiny_run(), tmp_path)
    folder = begin(plan, "gan", attempts=0)
    paths.log(folder, 2).touch()
    progress.write_state(folder, "failed", "no file x", may_retry=False)
    row = rows_of(plan, records, {})["gan"]
    assert row.note == f"no file x (log: {paths.log(folder, 2)})"


@pytest.mark.parametrize(
    ("ended", "part"),
    [
        ("TIMEOUT", "Slurm: TIMEOUT"),
        ("CANCELLED", "Slurm: CANCELLED"),
        ("COMPLETED", "left no result"),
        (None, "left no result"),
    ],
)
def test_job_that_is_gone_without_a_result_has_ended(
    tmp_path: Path, ended: str | None, part: str
) -> None:
    plan, records = with_data_done(tiny_run(), tmp_path)
    known = {jobs_of(records)["gan"]: Ended(ended, 1.0)} if ended else None
    row = rows_of(plan, records, {}, known)["gan"]
    assert row.state == "ended" and part in row.note and "goes on from here" in row.note


def test_done_and_stale_go_before_what_slurm_says(tmp_path: Path) -> None:
    first = slurm_plan(tiny_run(), tmp_path)
    records = submitted(first)
    for name in first.todo:
        finish(first, first.graph[name])
    plan = slurm_plan(tiny_run(gan__seed=3), tmp_path)
    found = rows_of(plan, records, {})
    assert (found["segmenter"].state, found["segmenter"].note) == ("done", "")
    assert (found["gan"].state, found["gan"].note) == ("stale", "gan.seed: 0 -> 3")


def test_what_was_never_submitted_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    monkeypatch.delenv("TIGAN_JOB", raising=False)
    progress.write_state(begin(plan, "gan"), "running", "")
    rows = rows_of(plan, [], {})
    assert set(states(rows).values()) == {"waiting"}
    assert rows["gan"].note == "at work by --partition local"
    assert not jobs_table.is_active(rows.values())


LONG = [{"gan.seed": list(range(12)), "finetune.seed": [3], "finetune.draw": [2]}]


def long_table(first_id: int, images: int, run_dir: Path) -> list[str]:
    """The table, less what is said below it, of many points with long names."""
    plan = slurm_plan(tiny_run(LONG), run_dir)
    records = submitted(plan, first_id=first_id)
    queue = {
        job: queued(state="RUNNING", reason="None")
        for name, job in jobs_of(records).items()
        if plan.graph[name].stage == "finetune"
    }
    requeued = jobs_of(records)["gan/gan.seed=11"]
    queue[requeued] = queued(restarts=1)
    row = {"images": images, "total": 356_000, "seconds": images / 4.2}
    for name in plan.graph:
        if plan.graph[name].stage in ("gan", "finetune"):
            folder = begin(plan, name, attempts=11)
            (folder / paths.METRICS).write_text(json.dumps(row) + "\n")
    seen = Seen(queue, {})
    found = jobs_table.rows(plan.graph, plan.states, plan.run_dir, records, seen)
    lines = jobs_table.status_lines(found, records, seen)
    return [line for line in lines if ": " not in line and ";" not in line]


def test_table_is_as_wide_as_a_terminal(tmp_path: Path) -> None:
    table = long_table(98765, 9980, tmp_path)
    assert table[0].split() == ["stage", "state", "job", "images", "ETA", "saved", "re"]
    assert [line for line in table if "98771_11" in line and "9980/356k" in line]
    assert [line for line in table if line.startswith("finetune/") and "…" in line]
    assert max(map(len, table)) <= 80


# Job ids of 8 digits, as JUWELS gives them; days to go; a checkpoint of hours ago.
def test_table_is_as_wide_as_a_terminal_on_a_large_cluster() -> None:
    name = "finetune/finetune.alpha=0.0,finetune.draw=1,gan.seed=1"
    images: dict[str, Any] = {"images": "12.3k/356k", "saved": "11h05m", "restarts": 12}
    rows = [
        Row(name, "finetune", "requeued", job="12345678_107", **images),
        Row(name, "finetune", "running", job="12345678_108", eta="23h59m", **images),
    ]
    lines = jobs_table.status_lines(rows, [], Seen({}, {}))
    assert max(map(len, lines[:3])) <= 80


def test_many_points_of_one_state_are_summed() -> None:
    rows = [Row(f"gan/gan.seed={n}", "gan", "queued", job=f"7_{n}") for n in range(200)]
    rows += [Row("gan/gan.seed=200", "gan", "failed", note="no file x")]
    rows += [Row(f"finetune/gan.seed={n}", "finetune", "queued") for n in range(13)]
    lines = jobs_table.status_lines(rows, [], Seen({}, {}))
    assert len(lines) == 1 + 12 + 1 + 12 + 2 + 1 + 1
    assert "gan: 188 more points queued" in lines and "finetune: 1 more points queued" in lines
    assert "gan/gan.seed=200: failed: no file x" in lines
    assert lines[-1].startswith("213 queued, 1 failed; ")


def test_summary_has_the_node_hours_of_this_run_alone(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run([{"gan.seed": [0, 1]}]), tmp_path, "gan")
    records = submitted(plan)
    assert jobs_of(records)["gan/gan.seed=1"] == "104_1"
    ended = {"103": Ended("COMPLETED", 1.0), "104_0": Ended("RUNNING", 2.5)}
    ended |= {"104_1": Ended("RUNNING", 0.25), "99": Ended("COMPLETED", 1000.0)}
    found = list(rows_of(plan, records, waiting(records), ended).values())
    last = jobs_table.status_lines(found, records, Seen({}, ended))[-1]
    assert last.endswith("; 3.75 node-hours used")
    last = jobs_table.status_lines(found, records, Seen({}, None))[-1]
    assert last.endswith("; node-hours: not known (no accounting on this cluster)")


def images_of(run_dir: Path, total: int) -> str:
    """How the images of a running GAN are shown, after the first."""
    plan = slurm_plan(tiny_run(), run_dir)
    records = submitted(plan)
    row = {"images": 1, "total": total, "seconds": 1.0}
    (begin(plan, "gan") / paths.METRICS).write_text(json.dumps(row) + "\n")
    queue = {jobs_of(records)["gan"]: queued(state="RUNNING")}
    return rows_of(plan, records, queue)["gan"].images


@pytest.mark.parametrize(
    ("total", "text"), [(9999, "9999"), (12_345, "12.3k"), (356_000, "356k"), (960_000, "960k")]
)
def test_images_are_short(tmp_path: Path, total: int, text: str) -> None:
    assert images_of(tmp_path, total) == f"1/{text}"


def test_millions_of_images_are_no_power_of_ten(tmp_path: Path) -> None:
    assert "e" not in images_of(tmp_path, 1_920_000)


def test_slurm_is_asked_twice_whatever_the_number_of_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = slurm_plan(tiny_run(LONG), tmp_path / "r")
    records = [*submitted(plan), submitted(plan)[0].model_copy(update={"job": None})]
    commands = Commands(tmp_path / "bin", monkeypatch)
    commands.add("squeue")
    commands.add("sacct", says="100|COMPLETED|3600|2\n")
    assert jobs_table.ask(records) == Seen({}, {"100": Ended("COMPLETED", 2.0)})
    assert len(commands.calls("squeue")) == len(commands.calls("sacct")) == 1


def test_age_of_the_newest_checkpoint_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    records = submitted(plan)
    folder = begin(plan, "gan")
    now = 1_700_000_000.0
    for name, age in (("images-100", 7200.0), ("images-200", 3600.0), ("images-50", 9000.0)):
        manifest = folder / "checkpoints" / name / "manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.touch()
        os.utime(manifest, (now - age, now - age))
    monkeypatch.setattr(time, "time", lambda: now)
    queue = {jobs_of(records)["gan"]: queued(state="RUNNING")}
    assert rows_of(plan, records, queue)["gan"].saved == "1h00m"


def test_plan_of_a_submission(tmp_path: Path) -> None:
    sweep = [{"gan.seed": [0, 1, 2, 3]}]
    gan = SlurmLayout(nodes=1, points_per_node=4, time_min=600, images_per_s=0.5)
    profile = slurm_profile(nodes=2, tasks_per_node=4, cpus_per_task=12, stages={"gan": gan})
    plan = slurm_plan(tiny_run(sweep, gan__images=1800, gan__decay_from=900), tmp_path, "gan")
    head, *lines, total = jobs_table.submission_table(
        plan, submit.arranged(plan, profile, {}), profile
    )
    assert head.split("  ")[0] == "stage" and len(lines) == 5
    # 1800 images at 0.5 images/s: an hour of one node for all four points.
    assert lines[-1].split()[:7] == ["gan", "1", "1", "x", "4", "x", "12"]
    assert "~1 " in lines[-1] and "10h00m" in lines[-1]
    assert lines[-1].endswith("afterok pack_cityscapes, afterok pack_synthia")
    # Two packs of 2 nodes for 1 h, two renderings of 1 node, where the rate is not known.
    assert "<=2 " in lines[2] and total.startswith("up to 7 node-hours")


def test_submission_beside_live_jobs_says_so(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run([{"gan.seed": [0, 1, 2, 3]}]), tmp_path, "finetune")
    keep = {name: f"9{n}" for n, name in enumerate(plan.todo) if plan.graph[name].stage != "gan"}
    todo = submit.arranged(plan, bundling(gan=2), keep)
    (line,) = jobs_table.submission_table(plan, todo, PROFILE)[1:-1]
    assert line.split()[:2] == ["gan", "2"] and line.endswith("afterok a live job")
