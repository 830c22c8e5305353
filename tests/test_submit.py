"""The plan against the queue: which jobs go on, which are cancelled, what is submitted."""

import json
import os
from pathlib import Path

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

from pipeline import batches, paths, progress, submit
from pipeline.batches import BatchRecord
from pipeline.plan import prepare
from pipeline.profiles import SlurmLayout
from pipeline.slurm import SlurmError
from pipeline.submit import reconcile

SWEEP = [{"gan.seed": [0, 1, 2]}]


def test_nothing_was_submitted_yet(tmp_path: Path) -> None:
    found = reconcile(slurm_plan(tiny_run(SWEEP), tmp_path), [], {"7": queued()})
    assert (found.keep, found.cancel, found.problems) == ({}, {}, [])


@pytest.mark.parametrize("points", [{}, {"gan": 2, "finetune": 2}])
def test_what_waits_as_it_should_is_kept(tmp_path: Path, points: dict[str, int]) -> None:
    plan = slurm_plan(tiny_run(SWEEP), tmp_path)
    records = submitted(plan, bundling(**points))
    found = reconcile(plan, records, waiting(records))
    assert (found.keep, found.cancel, found.problems) == (jobs_of(records), {}, [])
    assert set(found.keep) == set(plan.todo)


def test_what_slurm_has_forgotten_is_not_kept(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(SWEEP), tmp_path)
    found = reconcile(plan, submitted(plan), {})
    assert (found.keep, found.cancel, found.problems) == ({}, {}, [])


def test_jobs_go_on_beside_stages_that_are_done(tmp_path: Path) -> None:
    run = tiny_run(SWEEP)
    before = slurm_plan(run, tmp_path)
    records = submitted(before)
    for name in ("render_synthia", "pack_synthia"):
        finish(before, before.graph[name])
    plan = slurm_plan(run, tmp_path)
    jobs = {name: job for name, job in jobs_of(records).items() if name in plan.todo}
    queue = {job: q for job, q in waiting(records).items() if job in jobs.values()}
    found = reconcile(plan, records, queue)
    assert "segmenter" in found.keep and "pack_synthia" not in found.keep
    assert (found.keep, found.cancel, found.problems) == (jobs, {}, [])


def test_changed_configuration_cancels_what_waits_for_the_old_one(tmp_path: Path) -> None:
    records = submitted(slurm_plan(tiny_run(), tmp_path))
    jobs = jobs_of(records)
    plan = slurm_plan(tiny_run(finetune__gamma=3.0), tmp_path)
    found = reconcile(plan, records, waiting(records))
    changed = {"finetune", "evaluate/task_informed", "report"}
    assert set(found.cancel) == {jobs[name] for name in changed}
    assert found.cancel[jobs["finetune"]] == "finetune: its configuration changed"
    assert set(found.keep) == set(plan.todo) - changed and found.problems == []


def test_running_job_of_another_configuration_is_a_problem(tmp_path: Path) -> None:
    records = submitted(slurm_plan(tiny_run(), tmp_path))
    job = jobs_of(records)["gan"]
    queue = {**waiting(records), job: queued(state="RUNNING", reason="None")}
    found = reconcile(slurm_plan(tiny_run(gan__seed=5), tmp_path), records, queue)
    assert len(found.problems) == 1
    assert f"gan: job {job} is at work" in found.problems[0] and "--cancel" in found.problems[0]
    assert job not in found.cancel and "gan" not in found.keep


def test_job_that_is_just_ending_is_neither_kept_nor_doubled(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    records = submitted(plan)
    job = jobs_of(records)["gan"]
    found = reconcile(plan, records, {job: queued(state="COMPLETING")})
    assert "gan" not in found.keep
    assert found.problems == [f"gan: job {job} is just ending; try again in a minute"]


def test_job_of_another_run_with_the_same_id_is_not_ours(tmp_path: Path) -> None:
    """A cluster that is set up anew counts its jobs from 1 again."""
    plan = slurm_plan(tiny_run(), tmp_path)
    records = submitted(plan)
    job = jobs_of(records)["gan"]
    stranger = queued(state="RUNNING", comment="tigan:0003-evaluate-12345678")
    assert reconcile(plan, records, {job: stranger}) == submit.Reconciled()
    by_name = queued(state="RUNNING", comment="set by the site", name="somebody-else")
    assert reconcile(plan, records, {job: by_name}) == submit.Reconciled()


def test_jobs_of_points_that_are_gone_are_cancelled(tmp_path: Path) -> None:
    sweep = [{"gan.seed": [0, 1]}]
    records = submitted(slurm_plan(tiny_run(sweep), tmp_path))
    fewer = slurm_plan(tiny_run(), tmp_path)
    found = reconcile(fewer, records, waiting(records))
    gone = jobs_of(records)["gan/gan.seed=1"]
    assert found.cancel[gone] == "gan/gan.seed=1: no longer in the configuration"
    assert jobs_of(records)["gan"] not in found.cancel


@pytest.mark.parametrize("begun", [{"state": "RUNNING"}, {"state": "PENDING", "restarts": 1}])
def test_job_that_has_begun_goes_on_whatever_its_inputs_do(
    tmp_path: Path, begun: dict[str, object]
) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    records = submitted(plan)
    job = jobs_of(records)["gan"]
    found = reconcile(plan, records, {job: queued(**begun)})  # type: ignore[arg-type]
    assert (found.keep, found.cancel, found.problems) == ({"gan": job}, {}, [])


def test_job_whose_input_failed_is_cancelled_with_all_that_waits_for_it(tmp_path: Path) -> None:
    plan, records = with_data_done(tiny_run(), tmp_path)
    jobs = jobs_of(records)
    queue = waiting(records)
    del queue[jobs["gan"]]
    queue[jobs["finetune"]] = queued(reason="DependencyNeverSatisfied")
    found = reconcile(plan, records, queue)
    left = ("finetune", "evaluate/cyclegan", "evaluate/task_informed", "report")
    assert set(found.cancel) == {jobs[name] for name in left}
    assert found.cancel[jobs["finetune"]] == "finetune: an input failed"
    anew = "evaluate/cyclegan: its input gan is submitted anew"
    assert found.cancel[jobs["evaluate/cyclegan"]] == anew
    assert set(found.keep) == {"segmenter", "evaluate/source_only"}


# It waited for the segmenter through finetune, of which nothing is said.
def test_reason_names_the_input_that_is_submitted_anew(tmp_path: Path) -> None:
    plan, records = with_data_done(tiny_run(), tmp_path)
    queue = waiting(records)
    del queue[jobs_of(records)["finetune"]]
    found = reconcile(plan, records, queue)
    name = "evaluate/task_informed"
    assert found.cancel[jobs_of(records)[name]] == f"{name}: its input finetune is submitted anew"


def test_one_element_of_an_array_is_cancelled_by_itself(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(SWEEP), tmp_path)
    records = submitted(plan)
    jobs = jobs_of(records)
    queue = waiting(records)
    del queue[jobs["gan/gan.seed=1"]]
    found = reconcile(plan, records, queue)
    job = jobs["finetune/gan.seed=1"]
    assert job.endswith("_1")
    assert found.cancel[job] == "finetune/gan.seed=1: its input gan/gan.seed=1 is submitted anew"
    for name in ("finetune", "finetune/gan.seed=2", "evaluate/task_informed,gan.seed=2"):
        assert found.keep[name] == jobs[name]


def test_job_that_does_not_wait_for_an_input_is_cancelled(tmp_path: Path) -> None:
    plan, records = with_data_done(tiny_run(), tmp_path)
    jobs = jobs_of(records)
    # As after a command that found the GAN done, and a --force gan since.
    alone = {"dependency": f"afterok:{jobs['segmenter']}"}
    records = [r.model_copy(update=alone if r.stage == "finetune" else {}) for r in records]
    found = reconcile(plan, records, waiting(records))
    assert found.cancel[jobs["finetune"]] == "finetune: it does not wait for gan"
    assert jobs["evaluate/task_informed"] in found.cancel
    assert jobs["evaluate/cyclegan"] not in found.cancel


def test_job_for_what_is_made_anew_is_cancelled(tmp_path: Path) -> None:
    run = tiny_run()
    first = slurm_plan(run, tmp_path)
    records = submitted(first)
    for name in first.todo:
        finish(first, first.graph[name])
    job = jobs_of(records)["gan"]
    plan = slurm_plan(run, tmp_path, forced=("gan",))
    assert plan.states["gan"].kind == "stale"
    found = reconcile(plan, records, {job: queued()})
    assert found.cancel == {job: "gan: --force gan"} and found.keep == {}


def test_report_is_kept_alone_while_nothing_new_is_submitted(tmp_path: Path) -> None:
    run = tiny_run()
    before = slurm_plan(run, tmp_path)
    records = submitted(before)
    for name in before.todo[:-1]:
        finish(before, before.graph[name])
    plan = slurm_plan(run, tmp_path)
    assert plan.todo == ["report"]
    job = jobs_of(records)["report"]
    found = reconcile(plan, records, {job: queued()})
    assert (found.keep, found.cancel) == ({"report": job}, {})


def test_report_of_another_title_is_submitted_anew(tmp_path: Path) -> None:
    records = submitted(slurm_plan(tiny_run(), tmp_path))
    plan = slurm_plan(tiny_run(report={"title": "another"}), tmp_path)
    found = reconcile(plan, records, waiting(records))
    assert list(found.cancel) == [jobs_of(records)["report"]]
    assert set(found.keep) == set(plan.todo) - {"report"}


def test_report_that_does_not_wait_for_a_job_is_submitted_anew(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    *others, report = submitted(plan)
    waits_for = report.dependency.replace(f",afterany:{jobs_of(others)['gan']}", "")
    assert waits_for != report.dependency
    records = [*others, report.model_copy(update={"dependency": waits_for})]
    found = reconcile(plan, records, waiting(records))
    assert list(found.cancel) == [report.job]


def test_later_submission_of_a_node_counts(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    records = submitted(plan) + submitted(plan, first_id=200)
    found = reconcile(plan, records, waiting(records[len(records) // 2 :]))
    assert found.cancel == {}
    assert all(job.startswith("2") for job in found.keep.values())


def test_job_whose_id_was_never_recorded_is_found_by_its_comment(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(SWEEP), tmp_path)
    records = submitted(plan)
    number = next(n for n, record in enumerate(records) if record.stage == "gan")
    lost = records[number].model_copy(update={"job": None})
    comment = batches.comment(lost.token)
    queue = {
        "500_0": queued(comment),
        "500_1": queued(comment, "RUNNING"),
        "501": queued("tigan:0000-gan-ffffffff"),  # of another run
        "502": queued(""),
    }
    found = reconcile(plan, [*records[:number], lost], queue)
    assert list(found.cancel) == ["500"] and "killed" in found.cancel["500"]
    assert found.keep == {}


# One point of a shared job changed: the job is cancelled, and so is what waits for its others.
def test_nothing_is_kept_that_waits_for_a_cancelled_job(tmp_path: Path) -> None:
    sweep = [{"gan.seed": 0}, {"gan.seed": 1, "gan.images": 500}]
    records = submitted(slurm_plan(tiny_run(sweep), tmp_path), bundling(gan=2))
    by_job = {job: record for record in records for job in record.job_ids().values()}
    plan = slurm_plan(tiny_run(sweep, gan__images=450), tmp_path)
    found = reconcile(plan, records, waiting(records))
    assert jobs_of(records)["gan"] in found.cancel
    for job in found.keep.values():
        waits_for = {term.partition(":")[2] for term in by_job[job].dependency.split(",")}
        assert not waits_for & set(found.cancel)


def lost_with(records: list[BatchRecord], *failed: str) -> set[str]:
    """The nodes whose jobs can never run once those of `failed` have failed."""
    jobs = jobs_of(records)
    dead = {job for name in failed for job in batches.dependents(records, jobs[name])}
    return {name for name, job in jobs.items() if job in dead}


def test_all_that_needs_a_failed_job_but_the_report_can_never_run(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    records = submitted(plan)
    tuned = {"finetune", "evaluate/task_informed"}
    assert lost_with(records, "finetune") == {"evaluate/task_informed"}
    assert lost_with(records, "gan") == {*tuned, "evaluate/cyclegan"}
    assert lost_with(records, "evaluate/cyclegan") == lost_with(records, "report") == set()
    others = {"render_cityscapes", "render_synthia", "pack_synthia", "segmenter", "report"}
    assert lost_with(records, "render_cityscapes") == set(plan.todo) - others


@pytest.mark.parametrize(
    "sweep",
    [SWEEP, [*SWEEP, {"finetune.alpha": 0.25}], [{"gan.seed": [0, 1], "segmenter.seed": 1}]],
)
def test_other_elements_than_the_failed_one_run(
    tmp_path: Path, sweep: list[dict[str, object]]
) -> None:
    plan = slurm_plan(tiny_run(sweep), tmp_path)
    lost = lost_with(submitted(plan), "gan/gan.seed=1")
    assert lost == {
        name
        for name, node in plan.graph.items()
        if node.stage in ("finetune", "evaluate") and "gan.seed=1" in name
    }


def test_points_that_share_a_job_are_lost_together(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(SWEEP), tmp_path)
    lost = lost_with(submitted(plan, bundling(gan=2)), "gan")
    tuned = {"finetune", "finetune/gan.seed=1"}
    assert tuned <= lost and "finetune/gan.seed=2" not in lost


def test_nothing_stands_in_the_way(tmp_path: Path) -> None:
    assert submit.problems(slurm_plan(tiny_run(), tmp_path), PROFILE, None) == []


def test_problems_are_told_before_anything_is_submitted(tmp_path: Path) -> None:
    profile = slurm_profile(account_required=True, environment="env_nowhere.sh")
    plan = slurm_plan(tiny_run(), tmp_path / "50%")
    account, percent, environment = submit.problems(plan, profile, None)
    assert account.startswith("no account: booster") and "--account NAME" in account
    assert percent.startswith("--run-dir: ") and "50%" in percent
    assert "env_nowhere.sh" in environment and environment.startswith("environment: no file")
    assert submit.problems(plan, profile, "zam")[0] == percent


PARTITION = "PartitionName=booster AllowGroups=ALL MaxNodes=2 MaxTime=02:00:00 TotalNodes=4\n"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path / "bin", monkeypatch)


def test_jobs_within_the_partitions_limits_are_no_problem(
    tmp_path: Path, commands: Commands
) -> None:
    commands.add("scontrol", says=PARTITION)
    profile = slurm_profile(time_min=120, nodes=2)
    assert submit.partition_problems(slurm_plan(tiny_run(), tmp_path / "r"), profile) == []


def test_jobs_over_the_partitions_limits_are_named(tmp_path: Path, commands: Commands) -> None:
    commands.add("scontrol", says=PARTITION)
    profile = slurm_profile(
        stages={"gan": SlurmLayout(time_min=121), "segmenter": SlurmLayout(nodes=3)}
    )
    nodes, time = submit.partition_problems(slurm_plan(tiny_run(), tmp_path / "r"), profile)
    assert nodes.startswith("segmenter: 3 nodes") and "(2)" in nodes
    assert time.startswith("gan: time_min 121") and "120" in time
    # What is not to run may be as large as it likes.
    plan = slurm_plan(tiny_run(), tmp_path / "r", "pack_synthia")
    assert submit.partition_problems(plan, profile) == []


def test_unknown_partition_is_a_problem_with_those_there_are(
    tmp_path: Path, commands: Commands
) -> None:
    commands.add(
        "scontrol",
        '[ $# -eq 3 ] && { echo "PartitionName=large"; exit 0; }\n'
        'echo "Partition booster not found" >&2; exit 1',
    )
    (found,) = submit.partition_problems(slurm_plan(tiny_run(), tmp_path / "r"), PROFILE)
    assert "no partition 'booster'" in found and "large" in found


def test_process_of_no_job_that_is_at_work_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    for name in ("segmenter", "gan", "finetune"):
        (tmp_path / name).mkdir()
    monkeypatch.delenv("TIGAN_JOB", raising=False)
    progress.write_state(tmp_path / "segmenter", "running", "")
    progress.write_state(tmp_path / "gan", "preempted", "")
    monkeypatch.setenv("TIGAN_JOB", "77")
    progress.write_state(tmp_path / "finetune", "running", "")
    (line,) = submit.strangers(plan, [], {})  # job 77 has ended without a word
    assert line.startswith("segmenter: process id") and str(os.getpid()) in line
    by_hand = submit.strangers(plan, [], {"77": queued(state="RUNNING")})
    assert len(by_hand) == 2 and "Slurm job 77" in by_hand[1] and "stage.sbatch" in by_hand[1]


SBATCH = """
n=$(wc -l < "$0.calls")
cp "$1" "$0.$n"
for f in slurm/*.json; do last=$f; done
cp "$last" "$0.$n.json"
[ "$n" -eq "${REFUSE:-0}" ] && { echo "sbatch: error: Invalid account" >&2; exit 1; }
echo "Submitted batch job $((99 + n))"
"""


@pytest.fixture
def sbatch(commands: Commands) -> Commands:
    """A cluster whose sbatch keeps the scripts, and the newest record at the time."""
    commands.add("srun")
    commands.add("sbatch", SBATCH)
    return commands


def test_all_is_submitted_in_order_and_recorded(tmp_path: Path, sbatch: Commands) -> None:
    plan = slurm_plan(tiny_run(SWEEP), tmp_path / "r", "finetune")
    prepare(plan)
    said: list[str] = []
    todo = submit.arranged(plan, PROFILE, {})
    assert submit.submit_all(plan, todo, PROFILE, "zam", said.append) == 11
    assert len(sbatch.calls("sbatch")) == len(todo) == 7
    records = batches.load_batches(plan.run_dir)
    assert [record.stage for record in records] == [batch.stage for batch in todo]
    assert [record.job for record in records] == [str(number) for number in range(100, 107)]
    assert records[-1].dependency == "aftercorr:105,afterok:104"
    assert records[-1].hashes == {name: plan.graph[name].hash for name in todo[-1].nodes}
    assert said[-1] == "finetune: job 106 (array of 3), aftercorr:105,afterok:104"
    assert said[0] == "render_synthia: job 100"
    for name in plan.todo:
        assert (plan.run_dir / name / paths.CONFIG).is_file()
    # Each record is there before its job is.
    for number, record in enumerate(records, 1):
        at_the_time = json.loads((tmp_path / "bin" / f"sbatch.{number}.json").read_text())
        assert (at_the_time["token"], at_the_time["job"]) == (record.token, None)
    found = reconcile(slurm_plan(tiny_run(SWEEP), plan.run_dir), records, waiting(records))
    assert set(found.keep) == set(plan.todo) and found.cancel == {}


def test_bundles_are_told_by_their_points(tmp_path: Path, sbatch: Commands) -> None:
    profile = bundling(gan=2)
    plan = slurm_plan(tiny_run(SWEEP), tmp_path / "r", "gan")
    said: list[str] = []
    submit.submit_all(plan, submit.arranged(plan, profile, {}), profile, None, said.append)
    assert said[-1] == "gan: job 104 (array of 2, 3 points), afterok:102,afterok:103"


def test_refused_submission_leaves_what_was_submitted_before_known(
    tmp_path: Path, sbatch: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSE", "3")
    run = tiny_run()
    plan = slurm_plan(run, tmp_path / "r", "segmenter")
    todo = submit.arranged(plan, PROFILE, {})
    with pytest.raises(SlurmError, match=r"(?s)sbatch refused segmenter: .*Invalid account"):
        submit.submit_all(plan, todo, PROFILE, None, lambda line: None)
    records = batches.load_batches(plan.run_dir)
    assert [record.job for record in records] == ["100", "101", None]
    # The same command again keeps the two and submits the third.
    again = slurm_plan(run, plan.run_dir, "segmenter")
    found = reconcile(again, records, waiting(records))
    assert (found.keep, found.cancel) == ({"render_synthia": "100", "pack_synthia": "101"}, {})
    submit.submit_all(
        again, submit.arranged(again, PROFILE, found.keep), PROFILE, None, lambda line: None
    )
    newest = batches.load_batches(plan.run_dir)[-1]
    assert (newest.stage, newest.job, newest.dependency) == ("segmenter", "103", "afterok:101")


# A damaged record is to be deleted, as its error says: what is submitted then is still the newest.
def test_tokens_sort_by_time_after_a_record_was_deleted(tmp_path: Path, sbatch: Commands) -> None:
    plan = slurm_plan(tiny_run(), tmp_path / "r", "pack_synthia")
    submit.submit_all(plan, submit.arranged(plan, PROFILE, {}), PROFILE, None, lambda line: None)
    damaged, _ = batches.load_batches(plan.run_dir)
    paths.batch(plan.run_dir, damaged.token).unlink()
    finish(plan, plan.graph["render_cityscapes"])
    more = slurm_plan(tiny_run(), plan.run_dir, "pack_cityscapes")
    todo = submit.arranged(more, PROFILE, {})
    submit.submit_all(more, todo, PROFILE, None, lambda line: None)
    assert batches.load_batches(plan.run_dir)[-1].job == "102"


def squeue_lines(*rows: tuple[str, str, str, str, str]) -> str:
    return "".join("".join(f"{cell:<200}" for cell in row) + "\n" for row in rows)


def test_cancel_ends_the_jobs_of_this_run_only(tmp_path: Path, commands: Commands) -> None:
    plan = slurm_plan(tiny_run(SWEEP), tmp_path / "r")
    records = submitted(plan)
    for record in records:
        batches.write_batch(plan.run_dir, record)
    own = {record.stage: batches.comment(record.token) for record in records}
    commands.add(
        "squeue",
        says=squeue_lines(
            ("105_0", "RUNNING", "None", "0", own["gan"]),
            ("105_1", "PENDING", "Resources", "0", own["gan"]),
            ("106_0", "PENDING", "Dependency", "0", own["finetune"]),
            ("900", "RUNNING", "None", "0", "tigan:0000-gan-ffffffff"),
            ("901", "PENDING", "Priority", "0", ""),
        ),
    )
    commands.add("scancel")
    assert submit.cancel_run(plan.run_dir) == ["105_0", "105_1", "106_0"]
    assert commands.calls("scancel") == ["--quiet 105 106"]
    commands.add("squeue")
    assert submit.cancel_run(plan.run_dir) == []
    assert len(commands.calls("scancel")) == 1
