"""The command line as users give it, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pipeline_runs import PROFILE, RUN_CONFIG, FakeStages, events, finish_all, plan, tiny_run
from tiny_data import write_cityscapes, write_synthia

from data_prep.config import REPO_ROOT
from data_prep.processes import identity
from pipeline import driver, local, lock, progress, run, status
from pipeline.frozen import write_run_record
from pipeline.plan import freeze
from pipeline.sweep import Run, load_run

HEAVY = ("torch", "numpy", "cv2", "h5py", "matplotlib")


def command(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(REPO_ROOT / "pipeline" / "run.py")
    return subprocess.run(
        [sys.executable, "-X", "importtime", script, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def loaded(result: subprocess.CompletedProcess[str]) -> set[str]:
    """Top-level packages that a process of `command` imported."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    assert lines
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    lines = result.stderr.splitlines()
    return [line for line in lines if not line.startswith("import time:")]


def test_dry_run_plans_without_heavy_imports_and_writes_nothing(tmp_path: Path) -> None:
    result = command(tmp_path, "--stage", "all", "--dry-run", "--config", str(RUN_CONFIG))
    assert result.returncode == 0, result.stderr
    assert not loaded(result) & set(HEAVY)
    assert "runs/minicity: 19 stages to run, 0 done" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_missing_data_prints_the_plan_and_exits_2(tmp_path: Path) -> None:
    result = command(tmp_path, "--stage", "all", "--config", "synthia_cityscapes", "--dry-run")
    assert result.returncode == 2
    assert "evaluate/task_informed" in result.stdout
    assert [line.split(":")[1].strip() for line in errors(result)] == [
        "data.synthia_root",
        "data.cityscapes_root",
    ]
    assert not loaded(result) & set(HEAVY)


def test_dry_run_over_own_data_is_as_light(tmp_path: Path) -> None:
    write_synthia(tmp_path / "synthia", 2)
    write_cityscapes(tmp_path / "photos", {"train": {"aachen": 2}, "val": {"bochum": 1}})
    roots = ("data.synthia_root=synthia", "data.cityscapes_root=photos")
    given = ["--set", *roots, "data.subset=true", "finetune.labels=2"]
    result = command(tmp_path, "--stage", "all", "--dry-run", "--config", str(RUN_CONFIG), *given)
    assert result.returncode == 0, result.stderr
    assert "runs/minicity: 17 stages to run, 0 done" in result.stdout
    assert not loaded(result) & set(HEAVY)


def test_nothing_to_do(tmp_path: Path) -> None:
    finish_all(load_run(RUN_CONFIG, []), tmp_path / "runs" / "minicity")
    result = command(tmp_path, "--stage", "all", "--config", str(RUN_CONFIG))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "nothing to do: all 19 stages are done"
    assert not loaded(result) & set(HEAVY)


def main(*arguments: str) -> int:
    return run.main(["--config", str(RUN_CONFIG), *arguments])


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--stage", "gam"], "no stage 'gam'; there are: render_synthia"),
        (["--stage", "all", "--force", "gam"], "no stage 'gam'"),
        (["--stage", "all", "--partition", "booster9"], "there are: "),
        (["--stage", "all", "--config", "nosuch"], "configs/runs: no 'nosuch'"),
        (["--stage", "all", "--config", "nosuch.yaml"], "nosuch.yaml: cannot be read"),
        (["--stage", "all", "--sweep", "nosuch.yaml"], "nosuch.yaml: cannot be read"),
        (["--stage", "all", "--set", "gan.seed=-1"], "gan.seed"),
        (["--status"], "no run here yet"),
        (["--stage", "all", "--run-dir", "/proc/nothing"], "/proc/nothing: "),
    ],
)
def test_wrong_commands_are_one_line_and_exit_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(*arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and part in error[0]


@pytest.mark.parametrize("what", ["--status", "--cancel"])
@pytest.mark.parametrize("flag", [["--dry-run"], ["--force", "gan"], ["--sweep", "x.yaml"]])
def test_flags_that_mean_nothing_are_refused(
    what: str, flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(what, *flag)
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"error: {flag[0]}: only with --stage, not with {what}")


def fake_engine(monkeypatch: pytest.MonkeyPatch, run_dir: Path, behaviour: dict[str, str]) -> None:
    """Let the driver start stand-ins instead of stages: the process boundary, nothing else."""
    real = local.Scheduler

    def engine(*arguments: object) -> local.Scheduler:
        return real(*arguments, command=FakeStages(run_dir, behaviour), poll_s=0.005)  # type: ignore[arg-type]

    monkeypatch.setattr(driver, "Scheduler", engine)


def test_failed_stage_shows_its_log_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_engine(monkeypatch, tmp_path / "r", {"gan": "fail"})
    assert main("--stage", "gan", "--run-dir", "r") == 1
    out = capsys.readouterr().out
    assert "  | error: the fake stage broke" in out
    assert "r/gan/logs/attempt-1.log" in out and "r/gan/gan.seed=1" not in out
    assert "1 failed" in out
    fake_engine(monkeypatch, tmp_path / "r", {})
    assert main("--stage", "gan", "--run-dir", "r") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "done: 1 stages"
    assert "start segmenter" not in events(tmp_path / "r")
    assert lock.holder(tmp_path / "r") is None


def test_forced_run_that_was_stopped_goes_on_without_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "r"
    finish_all(load_run(RUN_CONFIG, []), run_dir)
    fake_engine(monkeypatch, run_dir, {"finetune": "until stopped"})

    def interrupt() -> None:
        while not (run_dir / "finetune" / "ready").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    forced = ("--stage", "finetune", "--force", "gan", "--force", "finetune", "--run-dir", "r")
    assert main(*forced) == 130
    advice = capsys.readouterr().out.splitlines()[-1]
    assert advice == "stopped; the same command, without --force, goes on from there"
    fake_engine(monkeypatch, run_dir, {})
    assert main("--stage", "finetune", "--run-dir", "r") == 0
    assert events(run_dir).count("start gan") == 1


def test_status_reads_and_tells_the_states_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_engine(monkeypatch, tmp_path / "r", {"segmenter": "fail"})
    assert main("--stage", "gan", "--run-dir", "r", "--set", "gan.images=300") == 0
    assert main("--stage", "segmenter", "--run-dir", "r", "--set", "gan.images=300") == 1
    finetune = tmp_path / "r" / "finetune"
    progress.write_state(finetune, "running", "")  # by this process, which lives
    line = {"images": 50, "total": 200, "seconds": 25.0, "kind": "train", "values": {}}
    (finetune / "metrics.jsonl").write_text(json.dumps(line) + '\n{"images": 60, "tot')
    config = load_run(RUN_CONFIG, ["gan.images=300"])
    freeze_of(config, tmp_path / "r", "finetune")
    before = sorted(p for p in (tmp_path / "r").rglob("*"))
    capsys.readouterr()
    assert main("--status", "--run-dir", "r") == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["gan"][0] == "done"
    assert rows["segmenter"][0] == "failed"
    assert rows["finetune"] == ["running", str(identity()["pid"]), "50/200", "2/s",
                                "1m15s", "0"]  # fmt: skip
    assert rows["report"][0] == "waiting"
    assert rows["segmenter:"][:2] == ["exit", "code"]
    assert sorted(p for p in (tmp_path / "r").rglob("*")) == before


def freeze_of(config: Run, run_dir: Path, name: str) -> None:
    made = plan(config, run_dir)
    freeze(made, made.graph[name], PROFILE)


def test_killed_stage_is_preempted_and_changed_config_stale(tmp_path: Path) -> None:
    finish_all(tiny_run(), tmp_path)
    changed = plan(tiny_run(gan__images=300), tmp_path)
    assert status.stage_state(tmp_path / "gan", changed.states["gan"]) == "stale"
    same = plan(tiny_run(), tmp_path, force=("segmenter",)).states["render_synthia"]
    assert status.stage_state(tmp_path / "render_synthia", same) == "done"
    begun = plan(tiny_run(), tmp_path / "new")
    folder = tmp_path / "new" / "gan"
    dead = {**identity(), "process_start": 1, "state": "running", "attempt": 1}
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(dead))
    assert status.stage_state(folder, begun.states["gan"]) == "preempted"


def test_stage_of_a_dead_driver_is_not_started_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_engine(monkeypatch, tmp_path / "r", {})
    progress.write_state(tmp_path / "r" / "render_synthia", "running", "")
    assert main("--stage", "segmenter", "--run-dir", "r") == 2
    assert "still at work" in capsys.readouterr().err
    assert not (tmp_path / "r" / "events.txt").exists()


def test_second_driver_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lock.driver_lock(tmp_path / "r"):
        assert main("--stage", "all", "--run-dir", "r") == 2
    assert "is at work here" in capsys.readouterr().err


def test_cancel_without_a_driver(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--cancel", "--run-dir", "r") == 0
    assert "no driver is at work" in capsys.readouterr().out


def test_results_are_means_over_seeds(tmp_path: Path) -> None:
    row = {
        "input": "cityscapes_val",
        "segmenter": "scratch",
        "method": "task_informed",
        "labels": 14,
        "alpha": 0.5,
        "gamma": 10.0,
        "uint8": True,
        "classes": "synthia16",
    }
    plain = {**row, "method": "source_only", "labels": None, "alpha": None, "gamma": None}
    rows = [{**row, "miou": 0.3}, {**row, "miou": 0.4}, {**plain, "miou": 0.25}]
    assert status.results_table(tmp_path) == []
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text(json.dumps({"rows": rows}))
    lines = [" ".join(line.split()) for line in status.results_table(tmp_path)]
    assert lines[1] == "cityscapes_val task_informed 14 0.5 10 35.0 ± 7.1 2 synthia16"
    assert lines[2] == "cityscapes_val source_only - - - 25.0 1 synthia16"


def test_results_of_other_settings_are_no_replicates(tmp_path: Path) -> None:
    row = {"input": "cityscapes_val", "method": "finetuned_segmenter", "uint8": True, "labels": 14}
    rates = {"1e-3": [0.3, 0.4], "1e-2": [0.1]}
    rows = [
        {**row, "classes": "three", "miou": miou, "settings": {"finetune_segmenter.rate": rate}}
        for rate, mious in rates.items()
        for miou in mious
    ]
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text(json.dumps({"rows": rows}))
    lines = [" ".join(line.split()) for line in status.results_table(tmp_path)]
    head = "cityscapes_val finetuned_segmenter 14 - -"
    assert lines[1:] == [
        f"{head} 35.0 ± 7.1 2 three finetune_segmenter.rate=1e-3",
        f"{head} 10.0 1 three finetune_segmenter.rate=1e-2",
    ]


def test_run_record_reads_back(tmp_path: Path) -> None:
    given = tiny_run(
        [{"gan.crop": [[64, 64]], "finetune.alpha": [0.0, 0.5]}],
        stage_training={"gan": {"num_workers": 2}},
    )
    write_run_record(tmp_path, given.config)
    again = load_run(tmp_path / "run.yaml", [])
    assert again.config == given.config and again.points == given.points
    assert again.config.training_of("gan") == given.config.training_of("gan")
