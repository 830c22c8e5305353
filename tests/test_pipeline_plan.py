"""What is done, stale or to be run; what is moved aside; what stands in the way."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from pipeline_runs import PROFILE, finish, finish_all, plan, tiny_run
from tiny_data import write_cityscapes

from data_prep.config import ConfigError, parse_yaml
from pipeline import nodes, paths
from pipeline.done import digest_of, read_done
from pipeline.frozen import read_frozen, write_yaml
from pipeline.plan import freeze, is_finished, make_plan, prepare
from pipeline.profiles import LocalProfile, StageResources

SWEEP = [{"finetune.alpha": [0.0, 0.5]}]


def kinds(run_dir: Path, *args: object, **keys: object) -> dict[str, str]:
    """Node -> state of the plan, without those that are done."""
    states = plan(tiny_run(SWEEP, **keys), run_dir).states
    return {name: state.kind for name, state in states.items() if state.kind != "done"}


def test_everything_is_to_run_at_first_and_nothing_at_last(tmp_path: Path) -> None:
    run = tiny_run(SWEEP)
    first = plan(run, tmp_path)
    assert first.todo == list(first.graph)
    assert {state.kind for state in first.states.values()} == {"run"}
    finish_all(run, tmp_path)
    last = plan(run, tmp_path)
    assert last.todo == [] and last.problems == []
    assert not (tmp_path / "superseded").exists()


def test_moved_run_directory_and_launch_keys_leave_all_done(tmp_path: Path) -> None:
    finish_all(tiny_run(SWEEP), tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert kinds(tmp_path / "there", training={"num_workers": 3}) == {}


def test_changed_science_is_stale_with_its_reason_and_downstream(tmp_path: Path) -> None:
    finish_all(tiny_run(SWEEP), tmp_path)
    changed = plan(tiny_run(SWEEP, finetune__gamma=3.0), tmp_path)
    assert set(changed.todo) == {
        "finetune",
        "evaluate/task_informed",
        "report",
    }  # at alpha = 0 gamma has no effect
    assert changed.states["finetune"].reason == "finetune.gamma: 10.0 -> 3.0"
    assert changed.states["evaluate/task_informed"].reason == "its input finetune changed"


def test_stage_version_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish_all(tiny_run(), tmp_path)
    monkeypatch.setitem(nodes.STAGE_VERSION, "segmenter", 99)
    states = plan(tiny_run(), tmp_path).states
    assert states["segmenter"].reason == "stage version 2 -> 99"
    assert states["gan"].kind == "done"


@pytest.mark.parametrize("damage", ["remove", "shorten", "no done.json", "broken done.json"])
def test_damaged_outputs_are_not_done(tmp_path: Path, damage: str) -> None:
    finish_all(tiny_run(SWEEP), tmp_path)
    output, record = tmp_path / "segmenter" / "out.bin", tmp_path / "segmenter" / "done.json"
    if damage == "remove":
        output.unlink()
    elif damage == "shorten":
        output.write_text("x")
    elif damage == "no done.json":
        record.unlink()
    else:
        record.write_text(record.read_text()[:-20])
    found = kinds(tmp_path)
    assert found["segmenter"] == "run"
    assert found["finetune"] == "stale"
    assert "gan" not in found


def test_input_that_lost_a_file_goes_on_and_nothing_behind_it_is_set_aside(tmp_path: Path) -> None:
    finish_all(tiny_run(SWEEP), tmp_path)
    done = json.loads((tmp_path / "pack_synthia" / "done.json").read_text())
    (tmp_path / "pack_synthia" / "inputs.json").write_text(json.dumps(done["inputs"]))
    (tmp_path / "pack_synthia" / next(iter(done["outputs"]))).unlink()
    assert kinds(tmp_path) == {"pack_synthia": "resume", "report": "run"}


def test_input_made_anew_with_another_result_makes_downstream_stale(tmp_path: Path) -> None:
    run = tiny_run(SWEEP)
    finish_all(run, tmp_path)
    forced = plan(run, tmp_path, force=("gan",))
    prepare(forced)
    finish(forced, forced.graph["gan"], "another result")
    # As after `--force gan --stage gan` where finetune had been kept: put it back.
    kept = tmp_path / "superseded" / "finetune"
    for entry in next(kept.glob("base-*")).iterdir():
        shutil.move(entry, tmp_path / "finetune" / entry.name)
    again = plan(run, tmp_path)
    assert again.states["gan"].kind == "done"
    assert again.states["finetune"].reason == "its input gan was made anew"


def test_begun_stage_resumes_unless_an_input_changed(tmp_path: Path) -> None:
    run = tiny_run()
    finish_all(run, tmp_path)
    (tmp_path / "finetune" / "done.json").unlink()
    gan = json.loads((tmp_path / "gan" / "done.json").read_text())["output_digest"]
    started = {"gan": gan}
    (tmp_path / "finetune" / "inputs.json").write_text(json.dumps(started))
    states = plan(run, tmp_path).states
    assert states["finetune"].kind == "stale"  # the other inputs are not those it began with
    for role, name in plan(run, tmp_path).graph["finetune"].inputs.items():
        record = json.loads((tmp_path / name / "done.json").read_text())
        started[role] = record["output_digest"]
    (tmp_path / "finetune" / "inputs.json").write_text(json.dumps(started))
    assert plan(run, tmp_path).states["finetune"].kind == "resume"


def test_superseded_directory_is_kept_and_points_stay(tmp_path: Path) -> None:
    finish_all(tiny_run(SWEEP), tmp_path)
    old = read_frozen(tmp_path / "finetune").science_hash[:8]
    content = (tmp_path / "finetune" / "out.bin").read_text()
    # A sweep of one point: the other point's directory lies inside finetune/ and is not touched.
    changed = plan(tiny_run(finetune__gamma=3.0), tmp_path)
    lines = prepare(changed)
    kept = tmp_path / "superseded" / "finetune" / f"base-{old}-1"
    assert (kept / "out.bin").read_text() == content
    assert (kept / "done.json").is_file() and (kept / "config.yaml").is_file()
    assert [p.name for p in (tmp_path / "finetune").iterdir()] == ["finetune.alpha=0.0"]
    assert (tmp_path / "finetune" / "finetune.alpha=0.0" / "done.json").is_file()
    line = next(line for line in lines if line.startswith("finetune:"))
    assert "finetune.gamma: 10.0 -> 3.0" in line and str(kept) in line


def test_same_config_superseded_twice_is_numbered(tmp_path: Path) -> None:
    run = tiny_run()
    for number in (1, 2):
        finish_all(run, tmp_path, f"round {number}")
        prepare(plan(run, tmp_path, force=("gan",)))
    names = sorted(p.name for p in (tmp_path / "superseded" / "gan").iterdir())
    assert [name.rpartition("-")[2] for name in names] == ["1", "2"]


def test_force_makes_the_stage_and_its_downstream_stale(tmp_path: Path) -> None:
    run = tiny_run(SWEEP)
    finish_all(run, tmp_path)
    forced = plan(run, tmp_path, force=("evaluate",))
    assert {forced.graph[name].stage for name in forced.todo} == {"evaluate", "report"}
    prepare(forced)
    assert sorted(p.name for p in (tmp_path / "superseded").iterdir()) == ["evaluate"]
    wrong = plan(run, tmp_path, stage="segmenter", force=("gan",))
    assert wrong.problems == ["--force gan: --stage segmenter does not run gan"]


def begun(run_dir: Path, name: str) -> None:
    """Make a finished node one that has only begun."""
    record = json.loads((run_dir / name / "done.json").read_text())
    (run_dir / name / "inputs.json").write_text(json.dumps(record["inputs"]))
    (run_dir / name / "done.json").unlink()


def test_forced_stage_that_is_half_made_goes_on(tmp_path: Path) -> None:
    run = tiny_run([{"gan.seed": [0, 1]}])
    finish_all(run, tmp_path)
    begun(tmp_path, "gan")
    forced = plan(run, tmp_path, force=("gan",))
    assert forced.states["gan"].kind == "resume"
    assert forced.states["gan/gan.seed=1"].kind == "stale"
    assert [line for line in forced.warnings if line.startswith("gan: half made")]
    assert plan(run, tmp_path).warnings == []


def test_report_is_fresh_only_for_the_present_digests(tmp_path: Path) -> None:
    run = tiny_run()
    finish_all(run, tmp_path)
    record = json.loads((tmp_path / "report" / "done.json").read_text())
    record["inputs"]["gan"] = None
    (tmp_path / "report" / "done.json").write_text(json.dumps(record))
    again = plan(run, tmp_path)
    assert again.todo == ["report"]
    assert again.states["report"].kind == "run"  # made anew in its place
    assert not is_finished(again, again.graph["report"])


def test_rendered_images_may_go_once_they_are_packed(tmp_path: Path) -> None:
    run = tiny_run()
    finish_all(run, tmp_path)
    shutil.rmtree(tmp_path / "render_synthia")
    again = plan(run, tmp_path)
    assert again.states["render_synthia"].kind == "done"
    assert again.todo == ["report"]
    forced = plan(run, tmp_path, force=("pack_synthia",))
    assert {"render_synthia", "pack_synthia", "segmenter"} <= set(forced.todo)


def test_images_removed_from_a_rendering_leave_its_pack_standing(tmp_path: Path) -> None:
    run = tiny_run()
    finish_all(run, tmp_path)
    (tmp_path / "render_synthia" / "out.bin").unlink()
    assert plan(run, tmp_path).todo == ["report"]


def test_hidden_files_among_rendered_images_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"a")
    before = digest_of(tmp_path)
    (tmp_path / "images" / ".DS_Store").write_bytes(b"x")
    assert digest_of(tmp_path) == before
    (tmp_path / "images" / "b.png").write_bytes(b"b")
    assert digest_of(tmp_path) != before


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    cities = {"train": {"aachen": 2}, "val": {"frankfurt": 1}}
    return write_cityscapes(tmp_path / "photos", cities)


def test_own_data_moved_or_gone_keeps_its_pack(tmp_path: Path, photos: Path) -> None:
    run_dir = tmp_path / "run"
    data = {"synthia_root": "minicity", "cityscapes_root": str(photos), "subset": True}
    finish_all(tiny_run(data=data), run_dir)
    moved = photos.rename(tmp_path / "elsewhere")
    after = plan(tiny_run(data={**data, "cityscapes_root": str(moved)}), run_dir)
    assert (after.todo, after.warnings) == ([], [])
    gone = plan(tiny_run(data=data), run_dir)
    assert (gone.todo, gone.problems) == ([], [])
    assert len(gone.warnings) == 1 and str(photos) in gone.warnings[0]
    image = next(moved.rglob("*_leftImg8bit.png"))
    image.write_bytes(image.read_bytes() + b"x")
    changed = plan(tiny_run(data={**data, "cityscapes_root": str(moved)}), run_dir)
    assert changed.states["pack_cityscapes"].reason == "its data changed"


def test_too_few_images_are_a_problem_unless_they_are_meant(tmp_path: Path, photos: Path) -> None:
    data = {"synthia_root": "minicity", "cityscapes_root": str(photos)}
    (problem,) = plan(tiny_run(data=data, finetune__labels=1), tmp_path).problems
    assert problem.startswith(f"data.cityscapes_root: {photos}: labelled images: ")
    assert "2,975 in train, 500 in val" in problem and "--set data.subset=true" in problem
    keys = {"data": data | {"subset": True}, "selection_fraction": 0.5}
    meant = plan(tiny_run(**keys, finetune__labels=1), tmp_path)
    assert (meant.problems, meant.warnings) == ([], [])
    frozen = freeze(meant, meant.graph["pack_cityscapes"], PROFILE)
    assert read_frozen(frozen).launch.subset


def test_missing_data_is_a_problem_only_for_what_needs_it(tmp_path: Path) -> None:
    run = tiny_run(data={"synthia_root": "minicity"})
    missing = plan(run, tmp_path)
    assert len(missing.problems) == 1
    assert "--set data.cityscapes_root=PATH" in missing.problems[0]
    assert plan(run, tmp_path, stage="segmenter").problems == []
    nowhere = tiny_run(data={"synthia_root": str(tmp_path / "no"), "cityscapes_root": "minicity"})
    assert "no folder" in plan(nowhere, tmp_path).problems[0]
    empty = tmp_path / "empty"
    empty.mkdir()
    wrong = tiny_run(data={"synthia_root": str(empty), "cityscapes_root": "minicity"})
    assert "data.synthia_root: " in plan(wrong, tmp_path).problems[0]


def test_batches_must_be_shared_evenly(tmp_path: Path) -> None:
    profile = LocalProfile(kind="local", run="minicity", ranks=4)
    problems = make_plan(tiny_run(SWEEP), tmp_path, "all", profile).problems
    keys = [line.partition(":")[0] for line in problems]
    assert keys == ["gan.batch_size", "finetune.batch_size"]


def test_packing_with_ranks_but_no_mpi_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    stages = {"pack_synthia": StageResources(ranks=2)}
    profile = LocalProfile(kind="local", run="minicity", stages=stages)
    problems = make_plan(tiny_run(), tmp_path, "segmenter", profile).problems
    assert [line.partition(":")[0] for line in problems] == ["pack_synthia"]
    assert "no mpiexec" in problems[0] and "stages.pack_synthia.ranks" in problems[0]
    assert make_plan(tiny_run(), tmp_path, "segmenter", PROFILE).problems == []
    (tmp_path / "mpiexec").touch(mode=0o755)
    assert make_plan(tiny_run(), tmp_path, "segmenter", profile).problems == []


def test_weights_file_that_is_gone_keeps_the_segmenter_made_from_it(tmp_path: Path) -> None:
    weights = tmp_path / "backbone.pt"
    weights.write_text("backbone")
    keys = {"segmenter__architecture": "deeplabv3", "segmenter__pretrained": str(weights)}
    run = tiny_run([{"segmenter.seed": 3}], **keys)
    run_dir = tmp_path / "run"
    finish_all(run, run_dir)
    weights.rename(tmp_path / "elsewhere.pt")
    gone = plan(run, run_dir)
    assert (gone.todo, gone.problems, len(gone.warnings)) == ([], [], 1)
    assert f"{weights}; segmenter/segmenter.seed=3: done" in gone.warnings[0]
    forced = plan(run, run_dir, force=("segmenter",))
    assert [line for line in forced.problems if f"no file {weights}" in line]
    unmade = plan(tiny_run([{"segmenter.seed": [3, 4]}], **keys), run_dir)
    assert "segmenter/segmenter.seed=4" in unmade.problems[0]
    weights.write_text("other weights")
    assert plan(run, run_dir).states["segmenter/segmenter.seed=3"].kind == "stale"
    weights.unlink()
    (run_dir / "segmenter" / "segmenter.seed=3" / "done.json").unlink()
    assert f"no file {weights}" in plan(run, run_dir).problems[0]


def test_more_labels_than_are_left_and_an_empty_selection_are_told(
    tmp_path: Path,
) -> None:
    for city, count in (("aachen", 15), ("bochum", 5)):
        for kind, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            for split, number in (("train", count), ("val", 1)):
                folder = tmp_path / kind / split / f"{city}{split}"
                folder.mkdir(parents=True)
                for i in range(number):
                    (folder / f"{city}{split}_{i:06d}_000019_{suffix}.png").write_text("x")
    data = {"synthia_root": "minicity", "cityscapes_root": str(tmp_path), "subset": True}
    keys = {"data": data, "selection_fraction": 0.2}  # 12 and 4 are left

    def found(labels: int | str) -> list[str]:
        run = tiny_run([{"finetune.labels": labels}], **keys)
        return plan(run, tmp_path / "run").problems

    assert found(16) == [] and found("all") == []
    assert "finetune.labels: 17 asked for, but only 16 train images are left" in found(17)[0]
    # A share of less than one image of the largest city holds out nothing.
    for fraction, words in ((0.2, []), (0.06, ["no image", "15 train images"]), (0.0, [])):
        run = tiny_run([{}], **(keys | {"selection_fraction": fraction}))
        lines = [text for text in plan(run, tmp_path / "run").warnings if "selection_" in text]
        assert len(lines) == bool(words) and all(word in lines[0] for word in words)


@pytest.mark.parametrize("file", [paths.CONFIG, paths.DONE, paths.STARTED])
def test_files_that_cannot_be_read_now_make_nothing_anew(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that is away for a minute is no changed configuration."""
    run = tiny_run()
    made = plan(run, tmp_path)
    for name in made.todo[:3]:
        finish(made, made.graph[name])
    gan = freeze(made, made.graph["gan"], PROFILE)
    (gan / paths.STARTED).write_text("{}")
    real = Path.open

    def away(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == file:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", away)
    with pytest.raises(OSError, match=file):
        plan(run, tmp_path)


def test_unknown_stage_lists_the_stages(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no stage 'gam'; there are: render_synthia"):
        plan(tiny_run(), tmp_path, stage="gam")


def test_frozen_config_reads_back(tmp_path: Path, photos: Path) -> None:
    data = {"synthia_root": "minicity", "cityscapes_root": str(photos)}
    made = plan(tiny_run([{"gan.seed": 1}], data=data, training={"log_images": 9}), tmp_path)
    node = made.graph["gan/gan.seed=1"]
    frozen = read_frozen(freeze(made, node, PROFILE))
    assert frozen.science == node.science and frozen.science_hash == node.hash
    assert frozen.launch.training.log_images == 9
    assert frozen.inputs["real"].dir == "pack_cityscapes"
    pack = read_frozen(freeze(made, made.graph["pack_cityscapes"], PROFILE))
    assert pack.inputs["raw"].dir == str(photos)


def test_strings_that_look_like_numbers_survive(tmp_path: Path) -> None:
    tree = {"a": "1e5", "b": 2e-4, "c": "no", "d": [1, True, None, "0x1f"], "e": {"f": ""}}
    write_yaml(tmp_path / "x.yaml", tree)
    assert parse_yaml((tmp_path / "x.yaml").read_text(), "x").tree == tree


def test_read_done_wants_the_expected_hash(tmp_path: Path) -> None:
    run = tiny_run()
    finish_all(run, tmp_path)
    node = plan(run, tmp_path).graph["gan"]
    assert read_done(tmp_path / "gan", str(node.hash)) is not None
    assert read_done(tmp_path / "gan", "another") is None
