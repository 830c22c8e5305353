"""The sbatch file: its parameters, its text to the letter, and how it is submitted."""

import json
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import tiny_run
from slurm_runs import Commands, bundling, slurm_plan, slurm_profile

from data_prep.config import REPO_ROOT
from pipeline import batches, launch, paths, submit
from pipeline.arrange import Batch
from pipeline.batches import BatchRecord
from pipeline.profiles import SlurmLayout, SlurmProfile, load_profile
from pipeline.slurm import SlurmError
from pipeline.task import Task

GOLDEN = Path(__file__).parent / "golden"


def record_of(stage: str = "segmenter", *units: list[str], **keys: Any) -> BatchRecord:
    """A record with nothing of this minute or this machine in it."""
    given = {
        "token": f"0004-{stage}-0123abcd",
        "stage": stage,
        "units": list(units or [[stage]]),
        "hashes": {},
        "first_attempts": {},
        "dependency": "afterok:4711",
        "shares_node": False,
        "max_requeues": 1,
        "max_retries": 1,
        "submitted": "2025-01-01T00:00:00+0100",
    }
    return BatchRecord(**{**given, **keys})


THREE = (["gan"], ["gan/gan.seed=1"], ["gan/gan.seed=2"])


def booster() -> SlurmProfile:
    profile = load_profile("booster")
    assert isinstance(profile, SlurmProfile)
    return profile


def test_golden_text_of_booster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, run_dir = tmp_path / "here", tmp_path / "run"
    here.mkdir()
    monkeypatch.chdir(here)
    text = launch.sbatch_text(record_of(), booster(), "zam", run_dir)
    for path, name in [
        (sys.executable, "@PYTHON@"),
        (str(here), "@CWD@"),
        (str(run_dir), "@RUN_DIR@"),
        (str(REPO_ROOT), "@ROOT@"),
    ]:
        text = text.replace(path, name)
    text = re.sub(r"'(@\w+@[^']*)'", r"\1", text)  # where a path here has to be quoted
    assert text == (GOLDEN / "booster_segmenter.sbatch").read_text()


def test_what_is_recorded_of_a_batch(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run([{"gan.seed": [0, 1, 2]}]), tmp_path)
    for attempt in (1, 2):
        log = paths.log(tmp_path / "gan", attempt)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    profile = slurm_profile(
        max_requeues=7, max_retries=3, stages={"gan": SlurmLayout(points_per_node=2)}
    )
    units = (("gan", "gan/gan.seed=1"), ("gan/gan.seed=2",))
    record = launch.record_of(plan, Batch("gan", units, ()), profile, "0003-gan-x", "afterok:1")
    names = [name for unit in units for name in unit]
    assert record.units == [list(unit) for unit in units] and record.job is None
    assert record.hashes == {name: plan.graph[name].hash for name in names}
    assert record.first_attempts == {"gan": 3, "gan/gan.seed=1": 1, "gan/gan.seed=2": 1}
    assert (record.token, record.dependency) == ("0003-gan-x", "afterok:1")
    assert (record.max_requeues, record.max_retries, record.shares_node) == (7, 3, True)


# A job that was preempted before its ranks began leaves no log of that start.
def test_next_attempt_comes_after_the_last(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run(), tmp_path)
    log = paths.log(tmp_path / "gan", 2)
    log.parent.mkdir(parents=True)
    log.touch()
    record = launch.record_of(plan, Batch("gan", (("gan",),), ()), slurm_profile(), "0-gan", "")
    assert record.first_attempts == {"gan": 3}


def test_record_comes_back_from_disk(tmp_path: Path) -> None:
    record = record_of("gan", *THREE)
    batches.write_batch(tmp_path, record)
    batches.write_batch(tmp_path, record.model_copy(update={"job": "12"}))
    (found,) = batches.load_batches(tmp_path)
    assert found.job_ids() == {"gan": "12_0", "gan/gan.seed=1": "12_1", "gan/gan.seed=2": "12_2"}
    assert record.job_ids() == {}
    assert record_of(job="13").job_ids() == {"segmenter": "13"}
    path = paths.batch(tmp_path, record.token)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match=rf"(?s)^{path}: not a record .*delete this file$"):
        batches.load_batches(tmp_path)


def test_shape_of_a_job(tmp_path: Path) -> None:
    given = launch.parameters(record_of(), booster(), "zam", tmp_path)
    shape = ("partition", "account", "time", "nodes", "ntasks_per_node", "cpus_per_task", "gres")
    assert [given[key] for key in shape] == ["booster", "zam", 1440, 4, 4, 12, "gpu:4"]
    assert (given["signal_delay_s"], given["wckey"]) == (600, "")
    assert given["comment"] == "tigan:0004-segmenter-0123abcd"
    assert given["additional_parameters"]["hint"] == "nomultithread"
    assert given["additional_parameters"]["requeue"] is True


def test_what_is_not_set_is_left_out(tmp_path: Path) -> None:
    given = launch.parameters(record_of(dependency=""), slurm_profile(), None, tmp_path)
    assert not {"account", "gres", "dependency"} & set(given)
    text = launch.sbatch_text(record_of(dependency=""), slurm_profile(), None, tmp_path)
    for word in ("--account", "--gres", "--dependency", "--cpu-bind", "--mpi", "None"):
        assert word not in text


def test_points_that_share_a_node_are_tasks_that_live_and_die_alone(tmp_path: Path) -> None:
    profile = bundling(gan=4)
    record = record_of("gan", ["a", "b", "c"], ["d"], shares_node=True)
    given = launch.parameters(record, profile, None, tmp_path)
    assert given["ntasks_per_node"] == 3  # no more tasks than the fullest job has points
    assert "--kill-on-bad-exit=0" in given["srun_args"] and "--wait=0" in given["srun_args"]
    alone = launch.parameters(record_of("finetune"), profile, None, tmp_path)
    assert alone["ntasks_per_node"] == 1 and "--kill-on-bad-exit=1" in alone["srun_args"]


def test_srun_is_told_about_mpi_only_where_mpi_is(tmp_path: Path) -> None:
    profile = slurm_profile(mpi="pmi2", cpu_bind="none", cpus_per_task=3)
    pack = launch.parameters(record_of("pack_synthia"), profile, None, tmp_path)["srun_args"]
    gan = launch.parameters(record_of("gan"), profile, None, tmp_path)["srun_args"]
    assert pack == [*gan, "--mpi=pmi2"]
    assert {"--output=all", "--cpus-per-task=3", "--cpu-bind=none"} <= set(gan)


def test_array_has_one_log_per_element_and_runs_a_few_at_a_time(tmp_path: Path) -> None:
    text = launch.sbatch_text(
        record_of("gan", *THREE), slurm_profile(max_parallel=2), None, tmp_path
    )
    lines = text.splitlines()
    assert "#SBATCH --array=0-2%2" in lines
    assert "#SBATCH --output=slurm/%A_%a.log" in lines
    single = launch.sbatch_text(record_of(), slurm_profile(), None, tmp_path).splitlines()
    assert "#SBATCH --output=slurm/%j.log" in single
    assert not [line for line in single if "--array" in line]


def test_further_options_of_sbatch_go_before_our_own(tmp_path: Path) -> None:
    sbatch: dict[str, str | int | bool] = {"qos": "long", "exclusive": True, "mem": 0}
    text = launch.sbatch_text(record_of(), slurm_profile(sbatch=sbatch), None, tmp_path)
    given = {"#SBATCH --qos=long", "#SBATCH --exclusive", "#SBATCH --mem=0", "#SBATCH --requeue"}
    assert given <= set(text.splitlines())


def test_flag_that_is_false_is_left_out(tmp_path: Path) -> None:
    text = launch.sbatch_text(
        record_of(), slurm_profile(sbatch={"exclusive": False}), None, tmp_path
    )
    assert "exclusive" not in text


ODD = "a 'quoted' \"run\" $HOME; dir"


def test_setup_survives_odd_characters_in_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / ODD
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "env.sh").write_text('echo "env $PWD"\n')
    profile = slurm_profile(environment="./env.sh", host_suffix="i")
    setup = launch.parameters(record_of(), profile, None, Path("run"))["setup"]
    assert setup[0] == "set -e" and setup[-1] == 'source "$TIGAN_ROOT/slurm/job.sh"'
    show = 'printf "%s\\n" "$TIGAN_ROOT" "$TIGAN_PYTHON" "$TIGAN_RUN_DIR" "$TIGAN_BATCH"'
    lines = [line for line in setup[:-1] if "end.sh" not in line]  # there is no job to end
    script = "\n".join([*lines, show, 'echo "$TIGAN_HOST_SUFFIX"'])
    shell = subprocess.run(["bash", "-c", script], cwd="/", capture_output=True, text=True)
    assert (shell.returncode, shell.stderr) == (0, "")
    assert shell.stdout.splitlines() == [
        f"env {here}",
        str(REPO_ROOT),
        sys.executable,
        str(here / "run"),
        "0004-segmenter-0123abcd",
        "i",
    ]


def test_missing_environment_file_ends_the_job(tmp_path: Path) -> None:
    profile = slurm_profile(environment=str(tmp_path / "env.sh"))
    setup = launch.parameters(record_of(), profile, None, tmp_path)["setup"]
    script = "\n".join([*setup[:-1], "echo went on"])
    shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert shell.returncode != 0 and shell.stdout == ""


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """A cluster whose sbatch keeps the script, and says where it was called."""
    found = Commands(tmp_path / "bin", monkeypatch)
    found.add("srun")
    keep = 'cp "$1" "$0.script"; pwd > "$0.cwd"; echo "Submitted batch job 4242"'
    found.add("sbatch", keep)
    return found


@pytest.mark.parametrize("name", ["run", ODD])
@pytest.mark.parametrize("units", [(["gan"],), THREE])
def test_submission_is_one_call_with_the_text_that_was_shown(
    tmp_path: Path,
    sbatch: Commands,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    units: tuple[list[str], ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    run_dir = Path(name)
    run_dir.mkdir()
    record = record_of("gan", *units)
    profile = slurm_profile()
    shown = launch.sbatch_text(record, profile, "zam", run_dir)
    assert launch.submit(record, profile, "zam", run_dir) == "4242"
    assert len(sbatch.calls("sbatch")) == 1
    assert (tmp_path / "bin" / "sbatch.script").read_text() == shown
    # Its log lies there: the paths of its options are relative.
    assert (tmp_path / "bin" / "sbatch.cwd").read_text() == f"{tmp_path / name}\n"
    assert Path.cwd() == tmp_path
    folder = paths.slurm_dir(tmp_path / name)
    command = shlex.split(shown.splitlines()[-1])
    assert command[-5:] == [sys.executable, "-u", "-m", "submitit.core._submit", str(folder)]
    jobs = [f"4242_{n}" for n in range(len(units))] if len(units) > 1 else ["4242"]
    for job in jobs:
        with (folder / f"{job}_submitted.pkl").open("rb") as file:
            task = pickle.load(file).function
        assert task == Task(str(paths.batch(tmp_path / name, record.token)))


def test_sbatch_gets_nothing_of_an_outer_job(
    tmp_path: Path, sbatch: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = {"SLURM_JOB_ID": "1", "SLURM_CPU_BIND": "x", "SBATCH_QOS": "y", "SRUN_DEBUG": "1"}
    kept = {"SLURM_CONF": "/etc/slurm/slurm.conf", "HOME": "/home/smith1"}
    for name, value in {**outer, **kept, "TIGAN_JOB": "1"}.items():
        monkeypatch.setenv(name, value)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    launch.submit(record_of(), slurm_profile(), None, run_dir)
    seen = sbatch.environment("sbatch")
    assert kept.items() <= seen.items()
    outside = [name for name in seen if name.startswith(("SLURM_", "SBATCH_", "SRUN_", "TIGAN_"))]
    assert outside == ["SLURM_CONF"]


def test_refusal_of_sbatch_is_told(tmp_path: Path, sbatch: Commands) -> None:
    sbatch.add("sbatch", 'echo "sbatch: error: Invalid qos specification" >&2; exit 1')
    with pytest.raises(SlurmError, match=r"(?s)^sbatch refused gan: .*Invalid qos"):
        launch.submit(record_of("gan"), slurm_profile(), None, tmp_path)
    sbatch.add("sbatch", says="no number in here\n")
    with pytest.raises(SlurmError, match=r"(?s)^sbatch refused gan: "):
        launch.submit(record_of("gan"), slurm_profile(), None, tmp_path)


def test_machine_without_slurm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Commands(tmp_path / "bin", monkeypatch)
    with pytest.raises(SlurmError, match=r"^sbatch refused gan: .*srun"):
        launch.submit(record_of("gan"), slurm_profile(), None, tmp_path)


def test_stages_of_booster_are_as_its_profile_says(tmp_path: Path) -> None:
    plan = slurm_plan(tiny_run([{"gan.seed": [0, 1, 2]}]), tmp_path)
    tokens = []
    for batch in submit.arranged(plan, booster(), {}):
        record = launch.record_of(plan, batch, booster(), f"0000-{batch.stage}-x", "")
        given = launch.parameters(record, booster(), "zam", tmp_path)
        shape = (given["nodes"], given["ntasks_per_node"], given["cpus_per_task"], given["time"])
        tokens.append((batch.stage, shape))
        assert given["gres"] == "gpu:4"  # whole nodes, whatever runs there
    assert json.loads(json.dumps(dict(tokens))) == {
        "render_synthia": [1, 1, 48, 120],
        "render_cityscapes": [1, 1, 48, 120],
        "pack_synthia": [1, 24, 2, 120],
        "pack_cityscapes": [1, 24, 2, 120],
        "segmenter": [4, 4, 12, 1440],
        "gan": [1, 4, 12, 1440],
        "finetune": [1, 4, 12, 1440],
        "evaluate": [1, 4, 12, 60],
        "report": [1, 1, 12, 60],
    }
