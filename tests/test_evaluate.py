"""Evaluation: every image counts once, on sets for results and for choices, with and without uint8.

That the scores are those of Cityscapes' own scorer is in test_export.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_jobs import job
from tiny_run import CONTROL, evaluate_science, tiny_run

from data_prep.config import load_class_set
from data_prep.labels import lookup_table
from data_prep.shards import PackedSplit
from tigan import evaluate, predict, scores
from tigan.config import EvaluateStage
from tigan.data import train_and_selection


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, packed_synthia: Path, packed_cityscapes: Path
) -> dict[str, Path]:
    run_dir = tiny_run(tmp_path_factory.getbasetemp(), packed_synthia, packed_cityscapes)
    nodes = {"synthetic": "pack_synthia", "real": "pack_cityscapes", "segmenter": "segmenter"}
    return {role: run_dir / node for role, node in nodes.items()} | {"run": run_dir}


def scored(folder: Path, science: EvaluateStage, inputs: dict[str, Path]) -> dict[str, Any]:
    """scores.json of an evaluation; 'rows' by (input, uint8)."""
    result = evaluate.run(job(folder, science, inputs))
    assert result.outputs == ["scores.json"]
    found = json.loads((folder / "scores.json").read_text())
    rows = {(row["input"], row["uint8"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    figures = {f"miou_{name}_{'uint8' if u else 'float'}": rows[name, u] for name, u in rows}
    assert result.figures == {key: row["miou"] for key, row in figures.items()}
    return {**found, "rows": rows}


@pytest.fixture(scope="module")
def informed(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Path]) -> dict[str, Any]:
    roles = inputs | {"translator": inputs["run"] / "finetune"}
    folder = tmp_path_factory.mktemp("informed")
    return scored(folder, evaluate_science("task_informed"), roles)


def classes_of(split: PackedSplit, index: int, *, full: bool = True) -> np.ndarray:
    ids = split.labels_full(index) if full else split.labels(index)
    return lookup_table(load_class_set("cityscapes19"), "cityscapes")[ids]


def test_rows_say_what_was_scored(informed: dict[str, Any], inputs: dict[str, Path]) -> None:
    names = [("cityscapes_val", True), ("cityscapes_val", False), ("cityscapes_selection", True)]
    assert list(informed["rows"]) == names
    for row in informed["rows"].values():
        assert row["segmenter"] == "scratch"
        assert row["translation"] == row["method"] == "task_informed"
        # Half of seven train images, rounded down: rows always hold the number.
        assert (row["labels"], row["draw"], row["alpha"], row["gamma"]) == (3, 2, 0.5, 10.0)
        assert row["seeds"] == {"segmenter": 0, "gan": 0, "finetune": 0}
        assert row["miou"] == scores.mean_iou(torch.tensor(row["confusion"]))
        assert row["classes"] == "cityscapes19" and len(row["per_class"]) == 19


def test_every_valid_pixel_counts_once_at_full_size(
    informed: dict[str, Any], inputs: dict[str, Path]
) -> None:
    val = PackedSplit(inputs["real"], "val")
    expected = np.bincount(
        np.concatenate([classes_of(val, index).ravel() for index in range(len(val))]),
        minlength=256,
    )
    for uint8 in (True, False):
        row = informed["rows"]["cityscapes_val", uint8]
        assert row["images"] == len(val) == 4
        assert np.array(row["confusion"]).sum(1).tolist() == expected[:19].tolist()
    exact, rounded = (informed["rows"]["cityscapes_val", uint8] for uint8 in (False, True))
    assert exact["confusion"] != rounded["confusion"]


def test_choices_are_made_on_images_held_out_of_train(
    informed: dict[str, Any], inputs: dict[str, Path]
) -> None:
    train = PackedSplit(inputs["real"], "train")
    _, selection = train_and_selection(train, 0.3)
    row = informed["rows"]["cityscapes_selection", True]
    assert row["images"] == len(selection) == 1
    f = predict.load_segmenter(inputs["segmenter"], load_class_set("cityscapes19"))
    _, generator = predict.load_generator(inputs["run"] / "finetune")
    with torch.no_grad():
        image = predict.image_tensor(train.image(int(selection[0])))
        seen = f.logits(predict.translate(generator, image, uint8=True)).argmax(1)[0]
    truth = classes_of(train, int(selection[0]), full=False)  # train has no full-size labels
    expected = scores.confusion_matrix(torch.from_numpy(truth), seen, 19)
    assert row["confusion"] == expected.tolist()


def test_single_images_are_scored_after_the_round_trip(
    informed: dict[str, Any], inputs: dict[str, Path]
) -> None:
    val = PackedSplit(inputs["real"], "val")
    assert [image["key"] for image in informed["images"]] == val.keys
    f = predict.load_segmenter(inputs["segmenter"], load_class_set("cityscapes19"))
    _, generator = predict.load_generator(inputs["run"] / "finetune")
    predictor = predict.translated(f, generator, uint8=True)
    for index, image in enumerate(informed["images"]):
        truth = torch.from_numpy(classes_of(val, index))
        size = (truth.shape[0], truth.shape[1])
        seen = predict.classes_at(predictor, predict.image_tensor(val.image(index)), size)
        assert image["miou"] == scores.mean_iou(scores.confusion_matrix(truth, seen, 19))


def test_without_translator_both_val_sets_are_scored(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    found = scored(tmp_path, evaluate_science("source_only"), inputs)
    names = ["synthia_val", "cityscapes_val", "cityscapes_selection"]
    assert list(found["rows"]) == [(name, True) for name in names]
    sizes = [row["images"] for row in found["rows"].values()]
    assert sizes == [len(PackedSplit(inputs["synthetic"], "val")), 4, 1]
    for row in found["rows"].values():
        assert (row["translation"], row["labels"], row["draw"], row["alpha"]) == (
            "none",
            None,
            None,
            None,
        )
    assert len(found["images"]) == 4  # of the real images, not of the synthetic


def test_control_says_alpha_0_and_its_labels(tmp_path: Path, inputs: dict[str, Path]) -> None:
    roles = inputs | {"translator": inputs["run"] / CONTROL}
    found = scored(tmp_path, evaluate_science("cyclegan_matched"), roles)
    row = found["rows"]["cityscapes_val", True]
    assert (row["alpha"], row["labels"], row["draw"]) == (0.0, 3, 2)
    assert row["translation"] == "cyclegan_matched"


def test_without_selection_split_there_is_no_row_of_it(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    science = evaluate_science("source_only").model_copy(update={"selection_fraction": 0.0})
    rows = scored(tmp_path, science, inputs)["rows"]
    assert [name for name, _ in rows] == ["synthia_val", "cityscapes_val"]


def test_uint8_round_trip_is_what_an_image_file_holds(inputs: dict[str, Path]) -> None:
    _, generator = predict.load_generator(inputs["run"] / "finetune")
    image = torch.rand(1, 3, 24, 32)
    exact = predict.translate(generator, image, uint8=False)
    rounded = predict.translate(generator, image, uint8=True)
    assert torch.equal(rounded * 255, (rounded * 255).round())
    assert 0 < (exact - rounded).abs().max() <= 0.5 / 255 + 1e-6


def test_logits_are_upsampled_before_the_argmax() -> None:
    # Class 1 is second in both pixels, so upsampled indices never show it; between the pixels
    # the upsampled logits put it first.
    logits = torch.tensor([[[[4.0, 0.0]], [[3.9, 3.9]], [[0.0, 4.0]]]])
    result = predict.classes_at(lambda _: logits, torch.zeros(1), (1, 8))
    assert result.tolist() == [[0, 0, 1, 1, 1, 1, 2, 2]]


def test_f_of_another_class_set_is_refused(inputs: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"trained on class set 'cityscapes19'.*synthia13"):
        predict.load_segmenter(inputs["segmenter"], load_class_set("synthia13"))
