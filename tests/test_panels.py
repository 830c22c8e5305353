"""Panels: which images are shown, what their pictures hold, and what is said where one is gone."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_data import PACKED

from data_prep.config import load_class_set
from data_prep.labels import colour_table
from data_prep.shards import PackedSplit
from tigan import panels, predict
from tigan.panels import PANEL_CAPTIONS, Shown
from tigan.report_nodes import Node, read_nodes

CLASSES = load_class_set("cityscapes19")


def nodes_of(run_dir: Path) -> list[Node]:
    paths = [path.parent for path in run_dir.rglob("config.yaml")]
    return read_nodes({path.relative_to(run_dir).as_posix(): path for path in paths})


def methods_of(nodes: list[Node]) -> dict[str, Node]:
    roles = {"source_only": "source", "cyclegan": "cyclegan", "task_informed": "informed"}
    return {roles[node.point]: node for node in nodes if node.point in roles}


def scored(folder: Path, scores: dict[str, float]) -> Node:
    """An evaluate node whose val images have these mIoUs."""
    folder.mkdir(parents=True)
    images = [{"key": key, "miou": miou} for key, miou in scores.items()]
    (folder / "scores.json").write_text(json.dumps({"rows": [], "images": images}))
    return Node(f"evaluate/{folder.name}", folder, {}, {})


def choice(tmp_path: Path, gains: dict[str, float], count: int) -> list[Shown]:
    informed = scored(tmp_path / "informed", {key: 0.5 + gain for key, gain in gains.items()})
    control = scored(tmp_path / "control", dict.fromkeys(gains, 0.5))
    problems: list[str] = []
    found = panels.choose(informed, control, count, problems)
    assert problems == []
    return found


def test_best_median_and_worst_gain(tmp_path: Path) -> None:
    gains = {f"k{i}": i / 64 for i in (3, -2, 0, 5, -4, 1, 2, -1, 4)}
    shown = choice(tmp_path, gains, 5)
    assert [(one.place, one.key) for one in shown] == [
        ("best", "k5"),
        ("best", "k4"),
        ("median", "k2"),
        ("median", "k1"),
        ("worst", "k-4"),
    ]
    assert shown[0].caption == "best gain: 57.8 % against 50.0 % of the control (+7.8)"
    assert shown[-1].caption == "worst gain: 43.8 % against 50.0 % of the control (−6.2)"


@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize("images", [1, 2, 5, 6])
def test_no_image_twice_and_equal_gains_by_key(tmp_path: Path, images: int, count: int) -> None:
    gains = {f"k{i}": 0.25 for i in reversed(range(images))}
    shown = choice(tmp_path, gains, count)
    keys = [one.key for one in shown]
    assert len(keys) == min(count, images) and keys == sorted(set(keys))
    numbers = [[one.place for one in shown].count(p) for p in ("best", "median", "worst")]
    assert numbers == sorted(numbers, reverse=True) and numbers[0] - numbers[2] <= 1


def test_scores_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    informed = scored(tmp_path / "informed", {"a": 0.5, "b": 0.4})
    problems: list[str] = []
    other = scored(tmp_path / "other", {"b": 0.5, "c": 0.1})
    assert [one.key for one in panels.choose(informed, other, 3, problems)] == ["b"]
    assert "scored different images" in problems.pop()
    for text, expected in (
        ('{"rows": []}', "no scores of single images"),
        ('{"images": [{"key": "a"}]}', "damaged"),
        ("[]", "damaged"),
        ("{", "damaged"),
    ):
        (other.path / "scores.json").write_text(text)
        assert panels.choose(informed, other, 3, problems) == []
        assert "evaluate/other/scores.json" in problems[-1] and expected in problems.pop()
    (other.path / "scores.json").unlink()
    assert panels.choose(informed, other, 3, problems) == []
    assert "scores.json" in problems[-1]


def decoded(picture: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_pictures_are_what_was_scored(run_dir: Path) -> None:
    nodes = nodes_of(run_dir)
    methods, problems = methods_of(nodes), []
    control = next(node for node in nodes if node.method == "cyclegan_matched")
    shown = panels.choose(methods["informed"], control, 3, problems)
    lines = panels.draw(shown, methods, nodes, CLASSES, problems)
    assert problems == [] and [line["key"] for line in lines] == [one.key for one in shown]
    assert [line["caption"] for line in lines] == [one.caption for one in shown]
    split = PackedSplit(run_dir / "pack_cityscapes", "val")
    _, generator = predict.load_generator(run_dir / "finetune")
    f = predict.load_segmenter(run_dir / "segmenter", CLASSES)
    for line in lines:
        assert list(line["pictures"]) == list(PANEL_CAPTIONS)
        pictures = {column: decoded(png) for column, png in line["pictures"].items()}
        image = split.image(split.keys.index(line["key"]))
        assert (pictures["real"] == image).all()
        with torch.no_grad():
            fed = predict.translate(generator, predict.image_tensor(image), uint8=True)
            raw = f.logits(predict.image_tensor(image)).argmax(1)[0].numpy()
            seen = f.logits(fed).argmax(1)[0].numpy()
        assert (pictures["informed_input"] == np.rint(255 * fed[0].permute(1, 2, 0).numpy())).all()
        assert (pictures["informed_prediction"] == colour_table(CLASSES)[seen]).all()
        assert (pictures["source_prediction"] == colour_table(CLASSES)[raw]).all()
    assert panels.draw(shown, methods, nodes, CLASSES, problems) == lines  # same bytes


def test_what_is_gone_is_left_out_and_named(tmp_path: Path, run_dir: Path) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (copy / "gan" / "translator.pt").unlink()
    (copy / "finetune" / "translator.pt").write_bytes(b"PK\x03\x04 no weights")
    nodes = nodes_of(copy)
    shown = [Shown(PackedSplit(copy / "pack_cityscapes", "val").keys[0], "best", 0.5, 0.4)]
    problems: list[str] = []
    (line,) = panels.draw(shown, methods_of(nodes), nodes, CLASSES, problems)
    assert list(line["pictures"]) == ["real", "source_prediction", "ground_truth"]
    assert "evaluate/cyclegan: " in problems[0] and "evaluate/task_informed: " in problems[1]
    (copy / "pack_cityscapes" / "index.json").unlink()
    problems.clear()
    assert panels.draw(shown, methods_of(nodes), nodes, CLASSES, problems) == []
    assert len(problems) == 1 and "packing has not finished" in problems[0]


def change_done(folder: Path, key: str) -> None:
    done = json.loads((folder / "done.json").read_text())
    (folder / "done.json").write_text(json.dumps(done | {key: "another"}))


def test_what_was_not_scored_is_not_shown(tmp_path: Path, run_dir: Path) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    shown = [Shown(PackedSplit(copy / "pack_cityscapes", "val").keys[0], "best", 0.5, 0.4)]

    def drawn() -> tuple[list[list[str]], list[str]]:
        problems: list[str] = []
        nodes = nodes_of(copy)
        lines = panels.draw(shown, methods_of(nodes), nodes, CLASSES, problems)
        return [list(line["pictures"]) for line in lines], problems

    # Weights that load, but are others.
    shutil.copy(copy / "gan" / "translator.pt", copy / "finetune" / "translator.pt")
    ((*columns,),), (problem,) = drawn()
    assert columns == [column for column in PANEL_CAPTIONS if "informed" not in column]
    assert problem.startswith("panels: evaluate/task_informed: ")
    assert "finetune/translator.pt: is not the file that done.json recorded" in problem
    change_done(copy / "gan", "output_digest")
    ((*columns,),), problems = drawn()
    assert columns == ["real", "source_prediction", "ground_truth"]
    assert problems[0].startswith("panels: evaluate/cyclegan: its input 'translator' (gan) was mad")
    change_done(copy / "segmenter", "science_hash")  # it is to run again
    ((*columns,),), problems = drawn()
    assert columns == ["real", "ground_truth"] and len(problems) == 3
    assert all("its input 'segmenter' (segmenter) is not finished any" in one for one in problems)
    change_done(copy / "pack_cityscapes", "output_digest")
    lines, (problem,) = drawn()
    assert lines == [] and "its input 'real' (pack_cityscapes) was made anew since" in problem


def test_an_absent_method_leaves_its_columns_out(run_dir: Path) -> None:
    nodes = nodes_of(run_dir)
    methods = {"informed": methods_of(nodes)["informed"]}
    shown = [Shown(PackedSplit(run_dir / "pack_cityscapes", "val").keys[0], "best", 0.5, 0.4)]
    (line,) = panels.draw(shown, methods, nodes, CLASSES, [])
    columns = ["real", "informed_input", "informed_prediction", "ground_truth"]
    assert list(line["pictures"]) == columns


def test_wide_pictures_are_scaled_down_without_mixing_labels() -> None:
    colours = colour_table(CLASSES)[np.random.default_rng(0).integers(0, 19, (PACKED[0], 1001))]
    small = decoded(panels._png(colours, labels=True))
    assert small.shape[1] == panels.MOST_PIXELS and small.shape[0] == round(PACKED[0] * 640 / 1001)
    known = {tuple(colour) for colour in colour_table(CLASSES).tolist()}
    assert {tuple(pixel) for pixel in small.reshape(-1, 3).tolist()} <= known
