"""Run configs: overrides, sweeps, points, profiles, and the lines that errors are."""

from pathlib import Path

import pytest
from pipeline_runs import RUN_CONFIG, tiny_run

from data_prep.config import CONFIGS, ConfigError
from pipeline import paths
from pipeline.config import config_path
from pipeline.profiles import LocalProfile, StageResources, load_profile
from pipeline.sweep import load_run


@pytest.mark.parametrize("path", sorted((CONFIGS / "runs").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_runs_are_valid_and_named_like_their_file(path: Path) -> None:
    run = load_run(path, [])
    assert run.config.name == path.stem
    for point in run.points:  # every treatment has its matched control
        assert {"cyclegan_matched", "task_informed"} <= set(point.config.methods)


def test_set_overrides_and_is_read_as_yaml() -> None:
    run = load_run(RUN_CONFIG, ["gan.learning_rate=1e-3", "data.synthia_root=elsewhere"])
    assert run.config.gan.learning_rate == 1e-3
    assert run.config.data.synthia_root == "elsewhere"
    assert all(point.config.gan.learning_rate == 1e-3 for point in run.points)


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("gan.imagess=3", ["gan.imagess", "did you mean 'images'"]),
        ("finetune.alpha=2", ["finetune.alpha", "less than or equal to 1", "found 2"]),
        ("classes=nosuch", ["nosuch", "synthia16"]),
        ("gan.crop=[96, 256]", ["gan.crop", "pack.synthia", "[96, 128]"]),
        ("gan.crop=[90, 128]", ["gan", "[90, 128]", "multiples of 4"]),
        ("pack.cityscapes.width=130", ["pack.cityscapes", "130", "multiples of 4"]),
        ("pack.cityscapes.val_images=3", ["pack.cityscapes.val_images", "expected 0"]),
        ("minicity.synthia_images=80", ["minicity.synthia_images", "80", "nothing to train on"]),
        ("finetune.labels=500", ["finetune.labels", "500", "216 train images"]),
        ("gan.learning_rate=.inf", ["gan.learning_rate", "finite"]),
        ("stage_training.gam={}", ["stage_training.gam", "'gan'"]),
        ("gan", ["key=value"]),
        ("pack.synthia.val_images=0", ["pack.synthia.val_images: 0", "expected 1 or more"]),
        ("segmenter.crop=[97, 128]", ["segmenter.scale", "segmenter.crop", "[97, 128]"]),
        ("segmenter.scale=[0.8, 2.0]", ["segmenter.scale", "[96, 128]", "least zoom of 1 or"]),
    ],
)
def test_wrong_overrides_are_named(assignment: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(RUN_CONFIG, [assignment])
    for part in parts:
        assert part in str(caught.value)


def test_least_zoom_decides_which_crop_fits() -> None:
    zoomed = ["segmenter.scale=[0.57, 1.5]", "pack.synthia.height=100"]
    crop = load_run(RUN_CONFIG, [*zoomed, "segmenter.crop=[57, 70]"]).config.segmenter.crop
    assert crop == [57, 70]  # 100 * 0.57 is a little less than 57 in floating point
    with pytest.raises(ConfigError, match=r"least zoom of 0\.58 or more"):
        load_run(RUN_CONFIG, [*zoomed, "segmenter.crop=[58, 70]"])


@pytest.mark.parametrize(
    "assignment", ["finetune.alpha=0.9", "gan.seed=0", "gan={seed: 5, crop: [64, 64], images: 9}"]
)
def test_set_of_a_swept_key_is_refused(assignment: str) -> None:
    key = "finetune.alpha" if "alpha" in assignment else "gan.seed"
    values = "0.0, 0.5" if "alpha" in assignment else "0, 1"
    if "{" in assignment:
        assignment = assignment.replace("9}", "9, decay_from: 0}")
    with pytest.raises(ConfigError) as caught:
        load_run(RUN_CONFIG, ["report.title=x", assignment])
    message = str(caught.value)
    assert message.startswith(f"--set {assignment}: {key} is swept")
    assert f"sets it to {values};" in message
    assert "--sweep FILE" in message and "--set 'sweep=[]'" in message
    assert "\n" not in message


def test_set_of_a_swept_key_counts_without_the_sweep(tmp_path: Path) -> None:
    for order in (["sweep=[]", "finetune.alpha=0.9"], ["finetune.alpha=0.9", "sweep=[]"]):
        run = load_run(RUN_CONFIG, order)
        assert [dict(point.changed) for point in run.points] == [{}]
        assert run.points[0].config.finetune.alpha == 0.9
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("sweep:\n  - {gan.seed: [0, 1]}\n")
    points = load_run(RUN_CONFIG, ["finetune.alpha=0.9"], [sweep]).points
    assert [point.config.finetune.alpha for point in points] == [0.9, 0.9]
    with pytest.raises(ConfigError, match=r"gan\.seed is swept"):
        load_run(RUN_CONFIG, ["gan.seed=3"], [sweep])


def test_sweep_is_product_within_and_union_over_blocks() -> None:
    run = tiny_run(
        [
            {"gan.seed": [0, 1], "finetune.alpha": [0.0, 0.5]},
            {"gan.seed": 1, "finetune.alpha": 0.5},  # stands in the first block too
            {"finetune.labels": 29},
        ]
    )
    assert [dict(point.changed) for point in run.points] == [
        {"finetune.alpha": 0.0},
        {},
        {"gan.seed": 1, "finetune.alpha": 0.0},
        {"gan.seed": 1},
        {"finetune.labels": 29},
    ]


def test_equal_values_of_different_types_are_one_point() -> None:
    run = tiny_run([{"finetune.alpha": [0, 0.0]}])
    assert len(run.points) == 1


def test_lists_are_swept_as_lists_of_lists() -> None:
    run = tiny_run([{"gan.crop": [[64, 64], [96, 128]]}])
    assert [point.config.gan.crop for point in run.points] == [[64, 64], [96, 128]]


@pytest.mark.parametrize(
    ("block", "part"),
    [
        ({"pack.synthia.height": 48}, "cannot be swept"),
        ({"classes": "synthia13"}, "cannot be swept"),
        ({"gan.seed": []}, "expected a value or a list"),
        ({"gan.generator": {"width": 8}}, "expected a value or a list"),
        ({"gan.sead": 1}, "did you mean 'seed'"),
        ({"gan.images": 100}, "decay_from"),
    ],
)
def test_wrong_sweeps_are_named(block: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        tiny_run([block])


def test_sweep_file_replaces_the_sweep(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("sweep:\n  - {finetune.alpha: [0.1, 0.9]}\n")
    assert [p.config.finetune.alpha for p in load_run(RUN_CONFIG, [], [path]).points] == [0.1, 0.9]
    path.write_text("blocks: []\n")
    with pytest.raises(ConfigError, match="expected the one key 'sweep'"):
        load_run(RUN_CONFIG, [], [path])


def test_training_of_a_stage_takes_only_what_is_restated() -> None:
    run = tiny_run(training={"log_images": 7}, stage_training={"gan": {"num_workers": 2}})
    assert run.config.training_of("segmenter").num_workers == 0
    assert run.config.training_of("gan").num_workers == 2
    assert run.config.training_of("gan").log_images == 7


def test_labels_are_safe_and_never_shared() -> None:
    assert paths.point_label({"gan.seed": 1, "finetune.alpha": 0.5}) == (
        "finetune.alpha=0.5,gan.seed=1"
    )
    odd = [paths.point_label({"segmenter.pretrained": name}) for name in ("a/b", "a_b", "a b")]
    assert len(set(odd)) == 3
    long = [paths.point_label({"segmenter.pretrained": "x" * 300 + end}) for end in "ab"]
    assert long[0] != long[1]
    for label in odd + long:
        assert "/" not in label and len(label) < 200 and paths.is_point(label)


def test_local_profile_clips_slots_and_keeps_renderings_single() -> None:
    profile = LocalProfile(
        kind="local",
        run="minicity",
        parallel=2,
        ranks=2,
        stages={"render_synthia": StageResources(slots=8, processes=2)},
    )
    render, gan = profile.resources("render_synthia"), profile.resources("gan")
    assert (render.ranks, render.processes, render.slots) == (1, 2, 2)
    assert (gan.ranks, gan.threads, gan.slots) == (2, 1, 1)


def test_unknown_profile_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"--partition nosuch.*local"):
        load_profile("nosuch")


def test_default_partition_names_a_shipped_run() -> None:
    profile = load_profile("local")
    assert (CONFIGS / "runs" / f"{profile.run}.yaml").is_file()
    assert profile.resources("render_synthia").slots == profile.parallel


def test_several_sweep_files_are_one_sweep(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("sweep:\n  - {finetune.alpha: [0.1, 0.9]}\n")
    second.write_text("sweep:\n  - {gan.seed: 3}\n  - {finetune.alpha: 0.9}\n")
    points = load_run(RUN_CONFIG, [], [first, second]).points
    assert [dict(point.changed) for point in points] == [
        {"finetune.alpha": 0.1},
        {"finetune.alpha": 0.9},
        {"gan.seed": 3},
    ]
    second.write_text("sweep: {gan.seed: 3}\n")
    with pytest.raises(ConfigError, match=r"b\.yaml: expected the one key 'sweep' with a list"):
        load_run(RUN_CONFIG, [], [first, second])


@pytest.mark.parametrize(
    ("sweep", "config", "points"),
    [
        ("labels", "synthia_cityscapes", 36),
        ("alpha_gamma", "synthia_cityscapes", 36),
        ("baselines", "synthia_cityscapes", 42),
        ("labels_small", "minicity", 19),
        ("labels_small", "photos", 19),
    ],
)
def test_shipped_sweeps_fit_their_run_configs(sweep: str, config: str, points: int) -> None:
    file = config_path(sweep, "sweeps")
    run = load_run(config_path(config, "runs"), [], [file])
    assert len(run.points) == points


@pytest.mark.parametrize("labels", ["5%", "five", 0, 0.5])
def test_labels_are_a_number_or_all(labels: float | str) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.labels"):
        load_run(RUN_CONFIG, [f"finetune.labels={labels}"])


def test_a_crop_is_checked_against_real_images_only_where_they_are_trained_on() -> None:
    small = {"pack__cityscapes__height": 64, "gan__crop": [64, 128]}
    tiny_run(**small)
    with pytest.raises(ConfigError, match=r"methods: oracle takes windows.*zoom.*of 1\.5 or more"):
        tiny_run(methods=["oracle"], **small)
