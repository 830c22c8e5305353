"""The end of a job: done, requeued or failed, and what is done about it."""

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pipeline_runs import finish, tiny_run
from slurm_runs import Commands, bundling, jobs_of, slurm_plan, slurm_profile, submitted

from pipeline import batches, epilogue, paths, progress
from pipeline.epilogue import Stage, Verdict, Why, judge
from pipeline.plan import Plan, freeze
from pipeline.profiles import SlurmProfile
from pipeline.stopping import SIGNALS

LIMITS: dict[Why, int] = {"stopped": 3, "died": 1, "unhealthy": 2}
DONE = Stage("gan", is_done=True, state="done", may_retry=True)
STOPPED = Stage("gan", is_done=False, state="preempted", may_retry=True)
DIED = Stage("gan", is_done=False, state="running", may_retry=True)
SILENT = Stage("gan", is_done=False, state="", may_retry=True)
WRONG = Stage("gan/gan.seed=1", is_done=False, state="failed", may_retry=False)
SICK = Stage("gan", False, "failed", True, sick_nodes=("jwb0002", "jwb0003"))
STATES = ("CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "COMPLETING")


def verdict(
    *stages: Stage, code: int = 1, state: str = "RUNNING", before: Sequence[str] = ()
) -> Verdict:
    return judge(code, stages, state, before, LIMITS)


@pytest.mark.parametrize("code", [0, 1, 75, 137])
@pytest.mark.parametrize("state", ["RUNNING", *STATES])
def test_done_is_done_whatever_the_exit_code(code: int, state: str) -> None:
    found = verdict(DONE, DONE, code=code, state=state, before=["died"] * 9)
    assert (found.code, found.requeue) == (0, None)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("stage", [STOPPED, DIED, SILENT, WRONG, SICK])
def test_job_that_slurm_ended_is_never_requeued(state: str, stage: Stage) -> None:
    found = verdict(stage, code=0, state=state)
    assert (found.code, found.requeue) == (1, None) and state in found.message
    assert verdict(stage, code=143, state=state).code == 143


@pytest.mark.parametrize("before", [[], ["died"], ["stopped"] * 3 + ["died"] + ["unhealthy"] * 2])
@pytest.mark.parametrize("stage", [STOPPED, DIED, SILENT, WRONG, SICK])
def test_exit_code_0_without_a_record_is_no_success(stage: Stage, before: list[str]) -> None:
    assert verdict(stage, code=0, before=before).code != 0
    assert verdict(DONE, stage, code=0, before=before).code != 0


@pytest.mark.parametrize(
    ("stage", "why"), [(STOPPED, "stopped"), (DIED, "died"), (SILENT, "died"), (SICK, "unhealthy")]
)
def test_each_reason_has_a_limit_of_its_own(stage: Stage, why: Why) -> None:
    others = [other for other in LIMITS if other != why for _ in range(9)]
    for count in range(LIMITS[why]):
        found = verdict(stage, before=[*others, *[why] * count])
        assert (found.code, found.requeue) == (75, why)
        assert f"requeued ({count + 1} of {LIMITS[why]})" in found.message
    last = verdict(stage, code=9, before=[*others, *[why] * LIMITS[why]])
    assert last.requeue is None and f"requeued {LIMITS[why]} times already" in last.message
    # What was saved goes on with the driver's next command; what died has failed.
    assert last.code == (75 if why == "stopped" else 9)


def test_crashes_count_since_the_last_stop() -> None:
    """A chain of days is not to end of crashes that it has long got over."""
    for before in (["died", "stopped"], ["stopped", "died", "stopped"]):
        assert verdict(DIED, before=before).requeue == "died"
    for before in (["died"], ["stopped", "died"], ["stopped", "unhealthy", "died"]):
        assert verdict(DIED, before=before).requeue is None
    assert verdict(STOPPED, before=["stopped", "died", "stopped", "stopped"]).requeue is None


def test_wrong_input_is_not_tried_again() -> None:
    found = verdict(WRONG, code=1)
    assert (found.code, found.requeue) == (1, None)
    assert "gan/gan.seed=1" in found.message and "log" in found.message
    assert verdict(WRONG, WRONG, DONE).requeue is None


@pytest.mark.parametrize(("other", "why"), [(STOPPED, "stopped"), (DIED, "died")])
def test_wrong_input_of_one_point_does_not_end_the_others(other: Stage, why: Why) -> None:
    for stages in ([WRONG, other], [other, WRONG]):
        assert verdict(*stages).requeue == why


def test_stopped_goes_before_died() -> None:
    assert verdict(DIED, STOPPED, before=["died"]).requeue == "stopped"


def test_sick_nodes_are_excluded() -> None:
    other = Stage("gan", False, "failed", True, sick_nodes=("jwb0001", "jwb0002"))
    assert verdict(SICK, other).exclude == ("jwb0001", "jwb0002", "jwb0003")
    assert verdict(DIED).exclude == () and verdict(STOPPED).exclude == ()


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The epilogue ignores signals: let Ctrl-C stop the tests again."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# `scontrol show job` of Slurm 22.05, shortened.
SHOWN = """JobId={id} ArrayJobId={array} ArrayTaskId={task} JobName=tigan-gan
   UserId=smith1(1000) GroupId=users(1000) MCS_label=N/A
   Priority=4294901759 Nice=0 Account=zam QOS=normal
   JobState={state} Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   Partition=booster AllocNode:Sid=localhost:18665
   ReqNodeList=(null) ExcNodeList={excluded}
   NodeList=jwb0003
   Comment=tigan:0005-gan-00000100
"""


def shown(state: str = "RUNNING", excluded: str = "(null)", id: str = "105", task: int = 0) -> str:
    return SHOWN.format(id=id, array="105", task=task, state=state, excluded=excluded)


class Job:
    """A job of the GAN, in whose batch script the epilogue runs."""

    def __init__(
        self, run_dir: Path, monkeypatch: pytest.MonkeyPatch, profile: SlurmProfile, plan: Plan
    ) -> None:
        self.plan, self.run_dir = plan, run_dir
        self._environment = monkeypatch
        for record in submitted(plan, profile):
            batches.write_batch(run_dir, record)
        self.of(plan.todo[-1])

    def of(self, node: str, job_id: str = "") -> None:
        """Be the job of `node`; `job_id` is Slurm's own, where it is an element of an array."""
        records = batches.load_batches(self.run_dir)
        job, record = batches.latest_jobs(records)[node]
        base, _, element = job.partition("_")
        self.id = job_id or job
        values = {"TIGAN_RUN_DIR": str(self.run_dir), "TIGAN_BATCH": record.token}
        values |= {"TIGAN_JOB": job, "SLURM_JOB_ID": self.id}
        if element:
            values |= {"SLURM_ARRAY_JOB_ID": base, "SLURM_ARRAY_TASK_ID": element}
        for name, value in values.items():
            self._environment.setenv(name, value)

    def begin(self, node: str, attempts: int = 1) -> Path:
        """Let `node` have been started; returns its directory."""
        folder = self.run_dir / node
        for attempt in range(1, attempts + 1):
            path = paths.log(folder, attempt)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return folder

    def requeued(self) -> list[str]:
        """Why the run's jobs were requeued so far."""
        files = paths.slurm_dir(self.run_dir).glob("*.requeues")
        return [word for path in files for word in path.read_text().split()]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """A Slurm in which the job runs and can be requeued; none of it waits."""
    monkeypatch.setattr(epilogue, "_TRY_EVERY_S", 0.0)
    monkeypatch.setattr(epilogue, "_WAIT_FOR_END_S", 0.0)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    found = Commands(tmp_path / "bin", monkeypatch)
    found.add("scontrol", says=shown())
    return found


@pytest.fixture
def job(tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> Job:
    """The job of a single GAN, which may be requeued twice, and be tried again once."""
    profile = slurm_profile(max_requeues=2, max_retries=1)
    plan = slurm_plan(tiny_run(), tmp_path / "r", "gan")
    found = Job(tmp_path / "r", monkeypatch, profile, plan)
    assert found.id == jobs_of(batches.load_batches(found.run_dir))["gan"] == "104"
    return found


@pytest.mark.parametrize("code", ["0", "1", "143"])
def test_finished_job_ends_well(job: Job, commands: Commands, code: str) -> None:
    finish(job.plan, job.plan.graph["gan"])
    assert epilogue.main([code]) == 0
    assert not [call for call in commands.calls("scontrol") if not call.startswith("show")]


def test_record_of_another_configuration_does_not_count(job: Job) -> None:
    other = slurm_plan(tiny_run(gan__seed=7), job.run_dir)
    finish(other, other.graph["gan"])
    assert epilogue.main(["0"]) == 75
    assert job.requeued() == ["died"]


def test_stopped_job_is_requeued_until_its_limit(
    job: Job, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = job.begin("gan")
    progress.write_state(folder, "preempted", "start it again to go on")
    for count in (1, 2):
        assert epilogue.main(["75"]) == 75
        assert job.requeued() == ["stopped"] * count
        assert commands.calls("scontrol")[-1] == "requeue 104"
    calls = len(commands.calls("scontrol"))
    assert epilogue.main(["75"]) == 75
    assert commands.calls("scontrol")[calls:] == ["show job 104"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("gan: stopped; to be requeued (1 of 2)")
    assert lines[-1].endswith("gan: stopped, and requeued 2 times already")


def test_job_that_ends_without_a_word_is_tried_again_once(job: Job) -> None:
    assert epilogue.main(["0"]) == 75
    assert job.requeued() == ["died"]
    assert epilogue.main(["0"]) == 1
    assert job.requeued() == ["died"]


def test_wrong_input_fails_at_once(job: Job, commands: Commands) -> None:
    progress.write_state(job.begin("gan"), "failed", "no such file", may_retry=False)
    assert epilogue.main(["1"]) == 1
    assert commands.calls("scontrol") == ["show job 104"] and job.requeued() == []


def test_failure_of_an_earlier_attempt_does_not_count(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    progress.write_state(job.begin("gan"), "failed", "no such file", may_retry=False)
    job.begin("gan", attempts=2)
    assert epilogue.main(["137"]) == 75
    assert job.requeued() == ["died"]


@pytest.mark.parametrize(("code", "expected"), [("0", 1), ("143", 143)])
def test_cancelled_job_stays_cancelled(
    job: Job, commands: Commands, code: str, expected: int
) -> None:
    progress.write_state(job.begin("gan"), "preempted", "")
    commands.add("scontrol", says=shown(state="CANCELLED"))
    assert epilogue.main([code]) == expected
    assert commands.calls("scontrol") == ["show job 104"] and job.requeued() == []


def test_sick_nodes_are_added_to_those_excluded_before(
    job: Job, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.add("scontrol", says=shown(excluded="jwb[0001-0002]"))
    sick = {"may_retry": True, "sick_nodes": ["jwb0007"]}
    progress.write_state(job.begin("gan"), "failed", "jwb0007 does not answer", **sick)
    assert epilogue.main(["1"]) == 75
    assert job.requeued() == ["unhealthy"]
    requeue, _, update = commands.calls("scontrol")[-3:]
    # In this order: the scheduler refuses to change the nodes of a job that runs.
    assert requeue == "requeue 104"
    assert update == "update JobId=104 ExcNodeList=jwb[0001-0002],jwb0007"
    assert "excluded from now on: jwb0007" in capsys.readouterr().out


def test_first_sick_node_is_excluded_alone(job: Job, commands: Commands) -> None:
    sick = {"may_retry": True, "sick_nodes": ["jwb0007"]}
    progress.write_state(job.begin("gan"), "failed", "jwb0007 does not answer", **sick)
    assert epilogue.main(["1"]) == 75
    assert commands.calls("scontrol")[-1] == "update JobId=104 ExcNodeList=jwb0007"


def test_node_that_cannot_be_excluded_does_not_stop_the_requeue(
    job: Job, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.add(
        "scontrol",
        '[ "$1" = update ] && { echo "slurm_update error: Access denied" >&2; exit 1; }',
        says=shown(),
    )
    sick = {"may_retry": True, "sick_nodes": ["jwb0007"]}
    progress.write_state(job.begin("gan"), "failed", "jwb0007 does not answer", **sick)
    assert epilogue.main(["1"]) == 75
    assert "could not exclude jwb0007: slurm_update error: Access denied" in capsys.readouterr().out


def test_requeue_that_is_refused_is_tried_five_times(
    job: Job, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.add(
        "scontrol",
        '[ "$1" = requeue ] && { echo "Unable to contact slurm controller" >&2; exit 1; }',
        says=shown(),
    )
    assert epilogue.main(["1"]) == 75
    # Asked before each try: a job that was cancelled meanwhile must not be brought back.
    assert commands.calls("scontrol") == ["show job 104", "requeue 104"] * 5 + ["show job 104"]
    out = capsys.readouterr().out
    assert out.count("scontrol requeue 104: Unable to contact slurm controller") == 5
    assert "give the driver's command again" in out.splitlines()[-1]


def test_requeue_that_works_on_the_third_try_is_enough(job: Job, commands: Commands) -> None:
    third = '[ "$1" = requeue ] && [ "$(grep -c requeue "$0.calls")" -lt 3 ] && exit 1'
    commands.add("scontrol", third, says=shown())
    assert epilogue.main(["1"]) == 75
    assert commands.calls("scontrol").count("requeue 104") == 3


def test_silent_scheduler_is_asked_again_and_then_left_alone(job: Job, commands: Commands) -> None:
    commands.add("scontrol", '[ "$1" = show ] && exit 1')
    assert epilogue.main(["1"]) == 1  # it may be that the job was cancelled
    assert commands.calls("scontrol") == ["show job 104"] * epilogue._ASKS


def test_controller_that_is_away_for_a_minute_ends_no_chain(job: Job, commands: Commands) -> None:
    away = '[ "$(grep -c . "$0.calls")" -lt 20 ] && exit 1'
    commands.add("scontrol", away, says=shown())
    assert epilogue.main(["1"]) == 75
    assert commands.calls("scontrol")[-1] == "requeue 104"


@pytest.mark.parametrize("spent", [False, True])
def test_start_of_a_lost_node_leaves_the_next_one_alone(
    chain: Job, commands: Commands, monkeypatch: pytest.MonkeyPatch, *, spent: bool
) -> None:
    """It lives on without a daemon; the job that Slurm says is running is its successor."""
    chain.begin("gan/gan.seed=1", attempts=2)
    if spent:
        log = paths.requeues(chain.run_dir, os.environ["TIGAN_JOB"])
        log.write_text("died\n")
    commands.add("scontrol", says=shown().replace("Restarts=0", "Restarts=1"))
    assert epilogue.main(["1"]) == 1
    assert [call.partition(" ")[0] for call in commands.calls("scontrol")] == ["show"]
    assert commands.calls("scancel") == []
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert epilogue.main(["1"]) == (1 if spent else 75)


def test_job_that_is_cancelled_between_two_tries_stays_cancelled(
    job: Job, commands: Commands, tmp_path: Path
) -> None:
    tried = tmp_path / "tried"
    commands.add(
        "scontrol",
        f'[ "$1" = requeue ] && {{ touch {tried}; echo "no answer" >&2; exit 1; }}\n'
        f'[ -f {tried} ] && echo "JobState=COMPLETING" || echo "JobState=RUNNING"',
    )
    epilogue.main(["1"])
    assert commands.calls("scontrol").count("requeue 104") == 1


def test_signals_are_ignored(job: Job) -> None:
    finish(job.plan, job.plan.graph["gan"])
    epilogue.main(["0"])
    assert {signal.getsignal(number) for number in SIGNALS} == {signal.SIG_IGN}


@pytest.fixture
def array(tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> Job:
    """An array over the GAN's five seeds, two of which share a job."""
    plan = slurm_plan(tiny_run([{"gan.seed": [0, 1, 2, 3, 4]}]), tmp_path / "r", "gan")
    return Job(tmp_path / "r", monkeypatch, bundling(gan=2), plan)


def test_element_is_done_when_its_own_points_are(array: Job) -> None:
    for seed in (2, 3):
        finish(array.plan, array.plan.graph[f"gan/gan.seed={seed}"])
    array.of("gan/gan.seed=2", job_id="106")
    assert epilogue.main(["1"]) == 0
    array.of("gan", job_id="105")
    assert epilogue.main(["0"]) == 75


def test_shared_job_is_not_done_before_its_last_point(array: Job) -> None:
    finish(array.plan, array.plan.graph["gan"])
    array.of("gan", job_id="105")
    assert epilogue.main(["0"]) == 75
    assert array.requeued() == ["died"]


@pytest.fixture
def chain(tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A whole run over two seeds of the GAN, all of it submitted."""
    commands.add("scancel")
    plan = slurm_plan(tiny_run([{"gan.seed": [0, 1]}]), tmp_path / "r")
    found = Job(tmp_path / "r", monkeypatch, slurm_profile(max_retries=1), plan)
    found.of("gan/gan.seed=1", job_id="112")
    return found


def test_failed_job_cancels_what_waits_for_it(
    chain: Job, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.write_state(chain.begin("gan/gan.seed=1"), "failed", "no file", may_retry=False)
    assert epilogue.main(["1"]) == 1
    jobs = jobs_of(batches.load_batches(chain.run_dir))
    of_the_seed = [n for n in jobs if "gan.seed=1" in n and not n.startswith("gan")]
    calls = [call.split() for call in commands.calls("scancel")]
    # Waiting ones only: what has begun does not wait.
    assert all(call[:2] == ["--quiet", "--state=PENDING"] for call in calls)
    lost = [job for call in calls for job in call[2:]]
    assert len(of_the_seed) == 3 and set(lost) == {jobs[name] for name in of_the_seed}
    assert lost == sorted(lost, reverse=True)  # the last first: else its turn might come
    assert "cancelled what waits for it" in capsys.readouterr().out


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED"])
def test_job_that_is_requeued_or_cancelled_cancels_nothing(
    chain: Job, commands: Commands, state: str
) -> None:
    commands.add("scontrol", says=shown(state))
    epilogue.main(["1"])
    assert commands.calls("scancel") == []


def test_finished_job_cancels_nothing(chain: Job, commands: Commands) -> None:
    finish(chain.plan, chain.plan.graph["gan/gan.seed=1"])
    assert epilogue.main(["1"]) == 0
    assert commands.calls("scancel") == []


def test_driver_that_is_still_submitting_is_waited_for(
    chain: Job, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it submits meanwhile waits for the failed job too."""
    lock = chain.run_dir / paths.LOCK
    lock.touch()
    called = []

    def driver_ends(seconds: float) -> None:
        called.append(commands.calls("scancel"))
        lock.unlink(missing_ok=True)

    monkeypatch.setattr(epilogue.time, "sleep", driver_ends)
    progress.write_state(chain.begin("gan/gan.seed=1"), "failed", "no file", may_retry=False)
    assert epilogue.main(["1"]) == 1
    assert called[0] == [] and commands.calls("scancel")


def test_lock_of_a_driver_that_was_killed_is_not_waited_for(
    chain: Job, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = chain.run_dir / paths.LOCK
    lock.touch()
    os.utime(lock, (0, 0))
    slept: list[float] = []
    monkeypatch.setattr(epilogue.time, "sleep", slept.append)
    progress.write_state(chain.begin("gan/gan.seed=1"), "failed", "no file", may_retry=False)
    assert epilogue.main(["1"]) == 1
    assert commands.calls("scancel") and 1.0 not in slept


def test_failed_cancellation_changes_no_exit_code(
    chain: Job, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.add("scancel", 'echo "scancel: error: Access denied" >&2; exit 1')
    progress.write_state(chain.begin("gan/gan.seed=1"), "failed", "no file", may_retry=False)
    assert epilogue.main(["9"]) == 9
    assert (
        "could not cancel (scancel: error: Access denied) what waits for it"
        in capsys.readouterr().out
    )


def test_stage_by_hand_is_judged_by_its_frozen_config(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = slurm_plan(tiny_run([{"gan.seed": [0, 1]}]), tmp_path / "r", "gan")
    node = plan.graph["gan/gan.seed=1"]
    monkeypatch.delenv("TIGAN_BATCH", raising=False)
    monkeypatch.setenv("TIGAN_STAGE_DIR", str(freeze(plan, node, slurm_profile())))
    monkeypatch.setenv("SLURM_JOB_ID", "70")
    monkeypatch.setenv("TIGAN_JOB", "70")
    for _ in range(2):
        assert epilogue.main(["0"]) == 75
        assert commands.calls("scontrol")[-1] == "requeue 70"
    assert paths.requeues(tmp_path / "r", "70").read_text().split() == ["died", "died"]
    assert epilogue.main(["0"]) == 1
    finish(plan, node)
    assert epilogue.main(["1"]) == 0
    # Inputs that were made anew since: it refuses to run, and what lies there is of the old ones.
    message = "its input was made anew"
    progress.write_state(tmp_path / "r" / node.name, "failed", message, may_retry=False)
    assert epilogue.main(["1"]) == 1


# Slurm gives the last element of an array the array's own number as its SLURM_JOB_ID, and takes
# that number for the whole array: `scontrol requeue 104` would end the elements that run, and start
# those again that are done.
def test_last_element_of_an_array_requeues_itself_alone(array: Job, commands: Commands) -> None:
    array.of("gan/gan.seed=4", job_id="104")
    commands.add("scontrol", says=shown(id="104", task=2) + "\n" + shown(id="105"))
    assert epilogue.main(["1"]) == 75
    assert commands.calls("scontrol") == ["show job 104_2", "requeue 104_2"]


# A report is made anew in its place: the record of the one before lies there all the while.
def test_report_of_before_does_not_count(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = slurm_plan(tiny_run(), tmp_path / "r")
    for name in first.todo:
        if name != "evaluate/cyclegan":
            finish(first, first.graph[name])
    finish(first, first.graph["evaluate/cyclegan"])
    plan = slurm_plan(tiny_run(), tmp_path / "r")
    assert plan.todo == ["report"]
    Job(tmp_path / "r", monkeypatch, slurm_profile(), plan)
    progress.write_state(tmp_path / "r" / "report", "running", "")
    assert epilogue.main(["137"]) != 0
