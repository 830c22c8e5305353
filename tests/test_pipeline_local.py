"""The local scheduler, with stand-ins for the stage processes, and the driver's lock."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pipeline_runs import FakeStages, events, plan, tiny_run
from rich.console import Console

from data_prep.processes import identity
from pipeline import lock, paths, progress
from pipeline.dag import priorities
from pipeline.display import Display
from pipeline.done import load_done
from pipeline.local import Outcome, Scheduler, stage_command, stage_environment
from pipeline.plan import Plan, prepare
from pipeline.profiles import LocalProfile, Resources

SWEEP = [{"finetune.alpha": [0.0, 0.5]}]


def scheduler(
    made: Plan, behaviour: dict[str, str], parallel: int = 4, terminal: bool = False
) -> tuple[Scheduler, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    profile = LocalProfile(kind="local", run="minicity", parallel=parallel, threads=3)
    fake = FakeStages(made.run_dir, behaviour)
    return Scheduler(made, profile, Display(console, len(made.todo)), fake, poll_s=0.005), text


def run_all(run_dir: Path, behaviour: dict[str, str], parallel: int = 4) -> tuple[Outcome, str]:
    made = plan(tiny_run(SWEEP), run_dir)
    prepare(made)
    engine, text = scheduler(made, behaviour, parallel)
    return engine.run(), text.getvalue()


def when(ready: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Do `act` from another thread as soon as `ready`."""

    def wait() -> None:
        while not ready():
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_whole_graph_runs_in_order(tmp_path: Path) -> None:
    outcome, text = run_all(tmp_path, {})
    made = plan(tiny_run(SWEEP), tmp_path)
    assert sorted(outcome.done) == sorted(made.graph) and not outcome.failed
    assert made.todo == []
    order = events(tmp_path)
    for name, node in made.graph.items():
        for before in node.inputs.values():
            assert order.index(f"end {before}") < order.index(f"start {name}")
    assert f"report: done after 0s  [{len(made.graph)}/{len(made.graph)}]" in text
    record = load_done(tmp_path / "gan")
    assert record is not None and record.threads == 3


def test_no_more_side_by_side_than_slots(tmp_path: Path) -> None:
    run_all(tmp_path, {}, parallel=1)
    words = [line.partition(" ")[0] for line in events(tmp_path)]
    assert words == ["start", "end"] * (len(words) // 2)


def test_longest_path_starts_first(tmp_path: Path) -> None:
    made = plan(tiny_run(), tmp_path)
    weight = priorities(made.graph, made.todo)
    longer, shorter = sorted(("gan", "segmenter"), key=lambda name: -weight[name])
    run_all(tmp_path, {}, parallel=1)
    order = events(tmp_path)
    assert order.index(f"start {longer}") < order.index(f"start {shorter}")


def test_failure_stops_its_downstream_only_and_the_report_runs(tmp_path: Path) -> None:
    outcome, text = run_all(tmp_path, {"finetune": "fail"})
    assert list(outcome.failed) == ["finetune"]
    assert "error: the fake stage broke" in outcome.failed["finetune"].read_text()
    started = {line[6:] for line in events(tmp_path) if line.startswith("start")}
    made = plan(tiny_run(SWEEP), tmp_path)
    assert started == set(made.graph) - {"evaluate/task_informed"}
    report = load_done(tmp_path / "report")
    assert report is not None and report.inputs["finetune"] is None
    assert report.inputs["evaluate/cyclegan"] is not None
    assert progress.read_state(tmp_path / "finetune")["message"] == "exit code 3"
    assert "finetune: FAILED (exit code 3)" in text
    # The next run does what was left, and the report again.
    outcome, _ = run_all(tmp_path, {})
    assert sorted(outcome.done) == ["evaluate/task_informed", "finetune", "report"]
    assert progress.attempts(tmp_path / "finetune") == 2


def test_failed_report_is_not_taken_for_done_by_its_old_record(tmp_path: Path) -> None:
    run_all(tmp_path, {"finetune": "fail"})
    outcome, _ = run_all(tmp_path, {"report": "fail"})
    assert list(outcome.failed) == ["report"]


def test_stage_that_saved_and_stopped_goes_on(tmp_path: Path) -> None:
    outcome, _ = run_all(tmp_path, {"gan": "preempted once"})
    assert not outcome.failed and "gan" in outcome.done
    assert progress.attempts(tmp_path / "gan") == 2


def test_stage_that_always_stops_fails_in_the_end(tmp_path: Path) -> None:
    outcome, _ = run_all(tmp_path, {"pack_synthia": "always preempted"})
    assert list(outcome.failed) == ["pack_synthia"]
    assert progress.attempts(tmp_path / "pack_synthia") == 4
    assert "gan" not in outcome.done and "pack_cityscapes" in outcome.done


def test_exit_code_0_without_a_record_is_a_failure(tmp_path: Path) -> None:
    outcome, text = run_all(tmp_path, {"segmenter": "no record"})
    assert list(outcome.failed) == ["segmenter"]
    assert "ended without a valid done.json" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_lets_stages_save_and_the_next_run_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    ready = tmp_path / "gan" / "ready"
    when(ready.exists, lambda: os.kill(os.getpid(), number))
    outcome, text = run_all(tmp_path, {"gan": "until stopped"})
    assert outcome.interrupted and not outcome.failed
    assert "gan: stopped" in text
    assert "gan" not in outcome.done and "report" not in outcome.done
    outcome, _ = run_all(tmp_path, {})
    assert not outcome.interrupted and "report" in outcome.done


def test_started_stage_is_seen_before_it_says_so_itself(tmp_path: Path) -> None:
    ready = tmp_path / "gan" / "ready"
    when(ready.exists, lambda: os.kill(os.getpid(), signal.SIGINT))
    run_all(tmp_path, {"gan": "until stopped"})  # the stand-in records no state
    state = progress.read_state(tmp_path / "gan")
    assert (state["state"], state["attempt"]) == ("running", 1)
    assert state["pid"] == int(ready.read_text())
    assert state["host"] == identity()["host"]
    assert not progress.is_running(tmp_path / "gan")


def test_what_a_stage_says_itself_stands(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "attempt-1.log").touch()
    progress.write_state(tmp_path, "failed", "why")
    progress.note_started(tmp_path, os.getpid())
    assert progress.read_state(tmp_path)["message"] == "why"
    # A rank that the launcher stops because another has failed does not hide the failure.
    progress.write_state(tmp_path, "preempted", "stopped")
    assert progress.read_state(tmp_path)["state"] == "failed"
    (logs / "attempt-2.log").touch()
    progress.note_started(tmp_path, os.getpid())
    assert progress.is_running(tmp_path)
    progress.write_state(tmp_path, "preempted", "stopped")
    assert progress.read_state(tmp_path)["state"] == "preempted"


def test_stages_are_tended_when_the_terminal_is_gone() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    display = Display(Console(file=Gone(), force_terminal=False), 1)
    display.started("gan")
    display.line("stopping")
    display.ended("gan", "stopped", 1.0)
    display.close()


def test_fault_of_the_driver_lets_the_running_stages_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where no further process can be started: days of training must not be killed for it."""
    made = plan(tiny_run(SWEEP), tmp_path)
    engine, _ = scheduler(made, {"gan": "until stopped"})
    ready = tmp_path / "gan" / "ready"

    def no_more(*_: object) -> None:
        if ready.exists():
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(engine._display, "tick", no_more)
    with pytest.raises(OSError, match="Cannot allocate"):
        engine.run()
    ended = engine._running["gan"].process
    assert ended.poll() == 75  # what it ends with once it has saved


def test_second_signal_kills(tmp_path: Path) -> None:
    made = plan(tiny_run(SWEEP), tmp_path)
    engine, text = scheduler(made, {"gan": "stubborn"})
    kill = lambda: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    when((tmp_path / "gan" / "ready").exists, kill)
    when(lambda: "stopping" in text.getvalue(), kill)
    outcome = engine.run()
    assert outcome.interrupted and "gan" not in outcome.done


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    run_all(tmp_path, {})
    assert signal.getsignal(signal.SIGINT) is before


def test_bars_on_a_terminal(tmp_path: Path) -> None:
    made = plan(tiny_run(), tmp_path, stage="segmenter")
    engine, text = scheduler(made, {}, terminal=True)
    assert sorted(engine.run().done) == ["pack_synthia", "render_synthia", "segmenter"]
    assert "segmenter: done" in text.getvalue()


def test_command_by_ranks(tmp_path: Path) -> None:
    graph = plan(tiny_run(), tmp_path).graph
    alone = stage_command(graph["gan"], Resources(), tmp_path)
    assert alone == [sys.executable, "-m", "pipeline.stages", str(tmp_path)]
    many = stage_command(graph["gan"], Resources(ranks=4), tmp_path)
    assert "torch.distributed.run" in many and many[many.index("--nproc-per-node") + 1] == "4"
    packing = stage_command(graph["pack_synthia"], Resources(ranks=4), tmp_path)
    assert Path(packing[0]).name == "mpiexec" and packing[1:3] == ["-n", "4"]


def test_environment_hides_an_outer_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "PMI_RANK", "SLURM_NTASKS", "MASTER_ADDR"):
        monkeypatch.setenv(name, "7")
    env = stage_environment(2)
    assert not {"RANK", "PMI_RANK", "SLURM_NTASKS", "MASTER_ADDR"} & set(env)
    assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == "2"


def test_lock_is_held_by_one_driver(tmp_path: Path) -> None:
    with lock.driver_lock(tmp_path):
        holder = lock.holder(tmp_path)
        assert holder is not None and holder["pid"] == os.getpid()
        with (
            pytest.raises(lock.LockError, match=f"process id {os.getpid()}.*--cancel"),
            lock.driver_lock(tmp_path),
        ):
            pass
    assert lock.holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["dead", "reused", "empty"])
def test_stale_lock_is_taken_over(tmp_path: Path, content: str) -> None:
    stale = {**identity(), "token": "old"}
    if content == "dead":
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            process.wait()
        stale["pid"] = process.pid
    elif content == "reused":
        stale["process_start"] = 1  # this process id belonged to an older process
    text = "" if content == "empty" else json.dumps(stale)
    (tmp_path / paths.LOCK).write_text(text)
    with lock.driver_lock(tmp_path):
        holder = lock.holder(tmp_path)
        assert holder is not None and holder["token"] != "old"


def test_lock_of_another_host_is_respected(tmp_path: Path) -> None:
    (tmp_path / paths.LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(lock.LockError, match="elsewhere"), lock.driver_lock(tmp_path):
        pass
    with pytest.raises(lock.LockError, match="give --cancel there"):
        lock.cancel(tmp_path)


def test_cancel_asks_the_driver_to_stop(tmp_path: Path) -> None:
    assert "no driver" in lock.cancel(tmp_path)
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with lock.driver_lock(tmp_path):
            assert str(os.getpid()) in lock.cancel(tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
