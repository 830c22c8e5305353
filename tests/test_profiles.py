"""Partition profiles: those that are shipped, and what a wrong one is told."""

from pathlib import Path

import pytest
from slurm_runs import slurm_profile

from data_prep.config import CONFIGS, REPO_ROOT, ConfigError
from pipeline.config import config_path
from pipeline.nodes import STAGES
from pipeline.plan import global_batches
from pipeline.profiles import LocalProfile, SlurmLayout, SlurmProfile, load_profile
from pipeline.sweep import load_run

SHIPPED = sorted(path.stem for path in (CONFIGS / "partitions").glob("*.yaml"))
ON_SLURM = [name for name in SHIPPED if name != "local"]


def slurm(name: str) -> SlurmProfile:
    profile = load_profile(name)
    assert isinstance(profile, SlurmProfile)
    return profile


def test_shipped_profiles_are_these() -> None:
    assert SHIPPED == ["booster", "develbooster", "local", "testcluster"]
    assert isinstance(load_profile("local"), LocalProfile)


@pytest.mark.parametrize("name", ON_SLURM)
def test_shipped_profile_has_its_files_and_fits_its_limit(name: str) -> None:
    profile = slurm(name)
    assert profile.environment_path.is_file()
    assert profile.environment_path.parent == REPO_ROOT / "slurm"
    assert config_path(profile.run, "runs").is_file()
    for stage in STAGES:
        assert profile.layout(stage).time_min <= profile.time_min


@pytest.mark.parametrize("name", ON_SLURM)
def test_ranks_divide_the_batches_of_the_default_run(name: str) -> None:
    profile = slurm(name)
    config = load_run(config_path(profile.run, "runs"), []).config
    for stage in STAGES:
        ranks = profile.resources(stage).ranks
        sizes = global_batches(config, stage)
        assert not [key for key, size in sizes.items() if size % ranks], stage


@pytest.mark.parametrize("name", ["booster", "develbooster"])
def test_ranks_of_a_booster_node_fit_its_cores(name: str) -> None:
    for stage in STAGES:
        layout = slurm(name).layout(stage)
        assert layout.tasks_per_node * layout.cpus_per_task <= 48
        assert layout.gpus_per_node == 4


@pytest.mark.parametrize("name", SHIPPED)
def test_renderings_and_the_report_are_one_process(name: str) -> None:
    profile = load_profile(name)
    for stage in ("render_synthia", "render_cityscapes", "report"):
        assert profile.resources(stage).ranks == 1  # type: ignore[arg-type]


def test_stage_differs_only_in_what_it_restates() -> None:
    layout = SlurmLayout(time_min=30, points_per_node=4)
    profile = slurm_profile(tasks_per_node=4, cpus_per_task=12, stages={"gan": layout})
    gan, segmenter = profile.layout("gan"), profile.layout("segmenter")
    assert (gan.time_min, gan.points_per_node, gan.tasks_per_node) == (30, 4, 4)
    assert (segmenter.time_min, segmenter.points_per_node) == (60, 1)
    # Points that share a job are one rank each.
    assert profile.resources("gan").ranks == 1
    assert profile.resources("segmenter").ranks == 4
    assert profile.resources("gan").threads == 12


GIVEN = """\
kind: slurm
run: minicity
partition: booster
environment: env_booster.sh
"""


def refused(tmp_path: Path, text: str) -> str:
    """What the profile of that text is refused with."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_profile(str(path))
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


def test_profile_of_ones_own_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GIVEN + "sbatch: {qos: long, exclusive: true, mem: 0}\n")
    profile = load_profile(str(path))
    assert isinstance(profile, SlurmProfile)
    assert profile.sbatch == {"qos": "long", "exclusive": True, "mem": 0}


def test_environment_may_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert slurm_profile(environment="./env.sh").environment_path == tmp_path / "env.sh"
    named = slurm_profile(environment="env_booster.sh").environment_path
    assert named == REPO_ROOT / "slurm" / "env_booster.sh"


def test_unknown_partition_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"--partition nosuch: .*booster, develbooster, local"):
        load_profile("nosuch")


def test_unknown_key_is_named_with_its_line(tmp_path: Path) -> None:
    found = refused(tmp_path, GIVEN + "time_mins: 60\n")
    assert "mine.yaml:5: time_mins: unknown key; did you mean 'time_min'?" in found
    found = refused(tmp_path, GIVEN + "stages:\n  gan: {gpus: 4}\n")
    assert "mine.yaml:6: stages.gan.gpus: unknown key" in found


def test_unknown_stage_is_named(tmp_path: Path) -> None:
    found = refused(tmp_path, GIVEN + "stages:\n  gam: {nodes: 1}\n")
    assert "mine.yaml:6: stages.gam" in found and "'gan'" in found


@pytest.mark.parametrize(
    "kind",
    [
        "kind: pbs",
        "kind: null",
        "run: x",
        "kind: [slurm]",
    ],
)
def test_wrong_kind_lists_those_there_are(tmp_path: Path, kind: str) -> None:
    assert "kind: " in refused(tmp_path, kind) and "local, slurm" in refused(tmp_path, kind)


@pytest.mark.parametrize(
    "text",
    [
        "signal_delay_s: 3600",
        "time_min: 5",
        "time_min: 600\nstages: {evaluate: {time_min: 5}}",
        # Every other stage keeps the short limit.
        "time_min: 5\nstages: {gan: {time_min: 600}}",
    ],
)
def test_signal_has_to_leave_time_to_work(tmp_path: Path, text: str) -> None:
    assert "signal_delay_s: " in refused(tmp_path, GIVEN + text + "\n")


@pytest.mark.parametrize("option", ["comment: mine", "requeue: false", "ntasks_per_node: 2"])
def test_options_that_the_driver_lives_by_are_not_for_the_profile(
    tmp_path: Path, option: str
) -> None:
    said = refused(tmp_path, GIVEN + f"sbatch: {{{option}}}\n")
    assert f"sbatch: {option.partition(':')[0]}: not here" in said


def test_no_more_ranks_than_gpus(tmp_path: Path) -> None:
    said = refused(tmp_path, GIVEN + "gpus_per_node: 4\ntasks_per_node: 8\n")
    assert "8 ranks on a node" in said and "gpus_per_node is 4" in said


def test_signal_just_before_the_end_is_fine(tmp_path: Path) -> None:
    assert slurm_profile(time_min=5, signal_delay_s=299).signal_delay_s == 299


@pytest.mark.parametrize(
    "text",
    [
        "nodes: 2\npoints_per_node: 4",
        "nodes: 2\nstages: {gan: {points_per_node: 4}}",
        "points_per_node: 4\nstages: {gan: {nodes: 2}}",
        "stages: {gan: {nodes: 2, points_per_node: 4}}",
    ],
)
def test_points_cannot_share_several_nodes(tmp_path: Path, text: str) -> None:
    found = refused(tmp_path, GIVEN + text + "\n")
    assert "points_per_node: 4 points cannot share 2 nodes" in found


# Whoever reads it has to find the stage among nine.
@pytest.mark.parametrize(
    "text",
    [
        "nodes: 2\nstages: {gan: {points_per_node: 4}}",
        "points_per_node: 4\nstages: {gan: {nodes: 2}}",
    ],
)
def test_points_of_a_stage_that_cannot_share_are_one_line_with_its_name(
    tmp_path: Path, text: str
) -> None:
    found = refused(tmp_path, GIVEN + text + "\n")
    assert len(found.splitlines()) == 1 and "gan" in found


@pytest.mark.parametrize(
    "line", ["nodes: 0", "time_min: 24:00:00", "signal_delay_s: 5", "account: ''", "max_array: 0"]
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, line: str) -> None:
    assert f"mine.yaml:5: {line.partition(':')[0]}: " in refused(tmp_path, GIVEN + line + "\n")
