"""`python -m pipeline.stages`: data stages run for real, and what stops a stage."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_runs import PROFILE, finish, finish_all, plan, tiny_run
from tiny_data import write_png, write_synthia

from data_prep.config import REPO_ROOT
from pipeline import paths, progress
from pipeline.done import load_done
from pipeline.frozen import read_frozen, write_frozen
from pipeline.local import stage_environment
from pipeline.plan import freeze
from pipeline.profiles import find_mpiexec
from pipeline.stages import StageError, find_inputs
from pipeline.stopping import EXIT_PREEMPTED
from tigan.networks import Segmenter

SMALL = {
    "minicity": {
        "height": 64,
        "width": 96,
        "synthia_images": 3,
        "train_images": 2,
        "val_images": 1,
    },
    "pack__synthia": {"height": 32, "width": 48, "images_per_shard": 2, "val_images": 1},
    "pack__cityscapes": {"height": 32, "width": 48},
    "segmenter__crop": [32, 48],
    "finetune__labels": 1,
    "gan__crop": [32, 48],
}


def command(stage_dir: Path) -> list[str]:
    return [sys.executable, "-m", "pipeline.stages", str(stage_dir)]


def stage(stage_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(stage_dir), cwd=REPO_ROOT, capture_output=True, text=True)


def frozen_dir(run_dir: Path, name: str, **keys: object) -> Path:
    made = plan(tiny_run(**{**SMALL, **keys}), run_dir)
    return freeze(made, made.graph[name], PROFILE)


def test_render_then_pack(tmp_path: Path) -> None:
    render = stage(frozen_dir(tmp_path, "render_synthia"))
    assert render.returncode == 0, render.stderr
    folder = frozen_dir(tmp_path, "pack_synthia")
    packing = stage(folder)
    assert packing.returncode == 0, packing.stderr
    record = load_done(folder)
    assert record is not None
    assert set(record.outputs) == {
        "index.json",
        "train-00000.h5",
        "val-00000.h5",
    }
    rendered = load_done(tmp_path / "render_synthia")
    assert rendered is not None and record.inputs == {"raw": rendered.output_digest}
    reading = progress.last_reading(folder)
    assert reading is not None and (reading.images, reading.total) == (3, 3)
    todo = plan(tiny_run(**SMALL), tmp_path, stage="segmenter").todo
    assert todo == ["segmenter"]
    # Done is done: nothing is written a second time.
    before = (folder / "done.json").stat().st_mtime_ns
    assert stage(folder).stdout.strip() == "already done"
    assert (folder / "done.json").stat().st_mtime_ns == before


def test_unfinished_input_is_one_clear_error(tmp_path: Path) -> None:
    folder = frozen_dir(tmp_path, "pack_synthia")
    result = stage(folder)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: pack_synthia (rank 0): input raw: ")
    assert "no valid done.json" in last
    state = progress.read_state(folder)
    assert state["state"] == "failed" and "no valid done.json" in state["message"]


def test_changed_code_or_classes_since_the_plan_are_refused(tmp_path: Path) -> None:
    folder = frozen_dir(tmp_path, "render_synthia")
    frozen = read_frozen(folder)
    changed = {**frozen.science, "images": 4}
    write_frozen(folder, frozen.model_copy(update={"science": changed}))
    result = stage(folder)
    assert result.returncode == 1 and "plans anew" in result.stderr.splitlines()[-1]
    assert not (folder / "RAND_CITYSCAPES").exists()


def test_input_made_anew_since_the_start_is_refused(tmp_path: Path) -> None:
    run = tiny_run(**SMALL)
    finish_all(run, tmp_path)
    folder = tmp_path / "pack_synthia"
    (folder / "done.json").unlink()
    (folder / "inputs.json").write_text(json.dumps({"raw": "another digest"}))
    result = stage(folder)
    assert result.returncode == 1
    assert "its input raw was made anew since it began" in result.stderr.splitlines()[-1]


def test_signal_stops_a_data_stage_and_it_goes_on(tmp_path: Path) -> None:
    many = {**SMALL["minicity"], "synthia_images": 5000}
    folder = frozen_dir(tmp_path, "render_synthia", minicity=many)
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT)}
    with subprocess.Popen(
        command(folder), env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        while not (folder / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()
    assert process.returncode == EXIT_PREEMPTED
    assert progress.read_state(folder)["state"] == "preempted"
    assert load_done(folder) is None
    assert not progress.is_running(folder)


def test_damaged_weights_of_an_input_are_one_clear_error(tmp_path: Path) -> None:
    run = tiny_run(**SMALL)
    finish_all(run, tmp_path)
    made = plan(run, tmp_path)
    finish(made, made.graph["gan"], "weights", "translator.pt")
    folder = freeze(made, made.graph["finetune"], PROFILE)
    folders, _ = find_inputs(read_frozen(folder), tmp_path)
    assert folders["gan"] == tmp_path / "gan"
    (tmp_path / "gan" / "translator.pt").write_text("wEights")  # the size is the same
    with pytest.raises(StageError) as caught:
        find_inputs(read_frozen(folder), tmp_path)
    for part in ("input gan: ", "gan/translator.pt", "--force gan", "gan/done.json"):
        assert part in str(caught.value)
    (folder / "done.json").unlink()
    result = stage(folder)
    assert result.returncode == 1
    assert "gan/translator.pt is not the file" in result.stderr.splitlines()[-1]
    find_inputs(read_frozen(tmp_path / "report"), tmp_path)  # the report reads no weights


@pytest.mark.slow
def test_signal_ends_an_evaluation_at_once(tmp_path: Path) -> None:
    run = tiny_run(**SMALL)
    finish_all(run, tmp_path)
    folder = tmp_path / "evaluate" / "source_only"
    (folder / "done.json").unlink()
    settings = run.config.segmenter
    states = {"segmenter": Segmenter(settings, classes=16).state_dict()}
    config = {"segmenter": settings.model_dump(), "classes": "synthia16"}
    weights = {"config": config, "states": states}
    torch.save(weights, tmp_path / "segmenter" / "segmenter.pt")
    pipe = tmp_path / "pack_cityscapes" / "index.json"  # the evaluation waits for its content
    os.mkfifo(pipe)
    with subprocess.Popen(command(folder), cwd=REPO_ROOT, stdout=subprocess.PIPE) as process:
        try:
            writer = _open_writer(pipe, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == EXIT_PREEMPTED
        finally:
            process.kill()
        os.close(writer)
    assert progress.read_state(folder)["state"] == "preempted"


def _open_writer(pipe: Path, reader: subprocess.Popen[bytes]) -> int:
    """Open a named pipe for writing as soon as `reader` has opened it for reading."""
    while reader.poll() is None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it yet
            time.sleep(0.02)
    raise AssertionError("the stage ended before it read its input")


def pack_on_two_ranks(run_dir: Path, images: Path) -> tuple[Path, list[str]]:
    """The frozen stage that packs images in Synthia's layout, and its command on two MPI ranks."""
    mpiexec = find_mpiexec()
    if mpiexec is None:
        pytest.skip("no mpiexec (make setup installs mpich)")
    data = {"synthia_root": str(images), "cityscapes_root": "minicity", "subset": True}
    folder = frozen_dir(run_dir, "pack_synthia", data=data)
    return folder, [mpiexec, "-n", "2", *command(folder)]


@pytest.mark.slow
def test_wrong_input_on_any_rank_is_recorded_and_not_to_be_retried(tmp_path: Path) -> None:
    images = write_synthia(tmp_path / "synthia", 8) / "RAND_CITYSCAPES"
    write_png(images / "GT/LABELS/0000003.png", np.full((36, 48, 3), 99, np.uint16))
    folder, packing = pack_on_two_ranks(tmp_path / "run", images)
    result = subprocess.run(packing, env=stage_environment(1), capture_output=True, text=True)
    assert result.returncode == 1
    state = progress.read_state(folder)
    assert (state["state"], state["may_retry"]) == ("failed", False)
    assert "0000003.png: unknown label ids 99" in state["message"]


@pytest.mark.slow
def test_a_signal_to_one_rank_of_a_packing_stops_all_of_them(tmp_path: Path) -> None:
    images = write_synthia(tmp_path / "synthia", 8) / "RAND_CITYSCAPES"
    pipe = images / "RGB/0000003.png"  # whose header a rank waits for
    pipe.unlink()
    os.mkfifo(pipe)
    folder, packing = pack_on_two_ranks(tmp_path / "run", images)
    with subprocess.Popen(
        packing, env=stage_environment(1), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        writer = _open_writer(pipe, process)
        while not (waiting := [pid for pid in _ranks(folder) if _has_open(pid, pipe)]):
            time.sleep(0.05)
        try:
            for _ in range(20):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(waiting[0], signal.SIGTERM)
                # Once more, should the first have come in the moment before the rank began to read.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=2)
                    break
        finally:
            os.close(writer)
            process.terminate()
        errors = process.stderr.read() if process.stderr else b""
    assert process.returncode == EXIT_PREEMPTED
    assert progress.read_state(folder)["state"] == "preempted"
    assert b"Traceback" not in errors


def _ranks(stage_dir: Path) -> list[int]:
    """The processes that run a stage, without their launcher."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may end meanwhile
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[0] == sys.executable.encode() and str(stage_dir).encode() in words:
                found.append(int(entry.name))
    return found


def _has_open(pid: int, path: Path) -> bool:
    return any(os.path.realpath(fd) == str(path) for fd in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_usage(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pipeline.stages", *arguments],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "usage" in result.stderr


def test_a_lost_attempt_leaves_the_newer_ones_records_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was given up for lost may come back while its stage runs elsewhere."""
    logs = tmp_path / paths.LOGS
    logs.mkdir()
    (logs / "attempt-2.log").touch()
    monkeypatch.setenv("TIGAN_ATTEMPT", "2")
    progress.write_state(tmp_path, "running", "")
    monkeypatch.setenv("TIGAN_ATTEMPT", "1")
    progress.write_state(tmp_path, "failed", "the network is gone")
    assert progress.is_superseded(tmp_path)
    assert progress.read_state(tmp_path)["state"] == "running"
    monkeypatch.delenv("TIGAN_ATTEMPT")  # a stage that no Slurm job runs
    assert not progress.is_superseded(tmp_path)
