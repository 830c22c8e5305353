"""Evaluation: the official scorer agrees, every image counts once, with and without uint8."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from tiny_jobs import finetune_science, gan_science, job, segmenter_science

from data_prep.config import load_class_set
from data_prep.labels import lookup_table, regular_ids
from data_prep.shards import PackedSplit
from tigan import evaluate, finetune, gan, predict, scores, segmenter
from tigan.config import EvaluateStage


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, packed_synthia: Path, packed_cityscapes: Path
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("stages")
    roles = {"synthetic": packed_synthia, "real": packed_cityscapes}
    segmenter.run(job(root / "segmenter", segmenter_science(), roles))
    gan.run(job(root / "gan", gan_science(seed=4), roles))
    roles |= {"segmenter": root / "segmenter", "gan": root / "gan"}
    finetune.run(job(root / "finetune", finetune_science(draw=2), roles))
    return roles | {"finetune": root / "finetune"}


def science(method: str) -> EvaluateStage:
    return EvaluateStage.model_validate(
        {"evaluate": {"panels": 2}, "classes": "cityscapes19", "method": method}
    )


def test_rows_say_what_was_scored(tmp_path: Path, inputs: dict[str, Path]) -> None:
    roles = inputs | {"translator": inputs["finetune"]}
    task = job(tmp_path, science("task_informed"), roles)
    result = evaluate.run(task)
    rows = json.loads((tmp_path / "scores.json").read_text())["rows"]
    assert [row["uint8"] for row in rows] == [True, False]
    row = rows[0]
    assert row["segmenter"] == "scratch" and row["translation"] == "task_informed"
    assert (row["labels"], row["draw"], row["alpha"], row["gamma"]) == (3, 2, 0.5, 10.0)
    assert row["seeds"] == {"segmenter": 0, "gan": 0, "finetune": 0}
    assert row["images"] == len(PackedSplit(inputs["real"], "val"))
    full = sum(
        (
            lookup_table(load_class_set("cityscapes19"), "cityscapes")[
                PackedSplit(inputs["real"], "val").labels_full(i)
            ]
            != 255
        ).sum()
        for i in range(row["images"])
    )
    assert sum(map(sum, row["confusion"])) == full  # every valid full-size pixel, once
    assert row["miou"] == scores.mean_iou(torch.tensor(row["confusion"]))
    assert all((tmp_path / path).is_file() for path in result.outputs)


def test_uint8_round_trip_is_what_an_image_file_holds(inputs: dict[str, Path]) -> None:
    _, generator = predict.load_generator(inputs["finetune"])
    image = torch.rand(1, 3, 24, 32)
    exact = predict.translate(generator, image, uint8=False)
    rounded = predict.translate(generator, image, uint8=True)
    assert torch.equal(rounded * 255, (rounded * 255).round())
    assert 0 < (exact - rounded).abs().max() <= 0.5 / 255 + 1e-6


def test_source_only_rows_cover_both_val_sets(tmp_path: Path, inputs: dict[str, Path]) -> None:
    evaluate.run(job(tmp_path, science("source_only"), inputs))
    rows = json.loads((tmp_path / "scores.json").read_text())["rows"]
    assert [(row["input"], row["labels"]) for row in rows] == [
        ("synthia_val", None),
        ("cityscapes_val", None),
    ]
    assert (tmp_path / "panels" / "0_ground_truth.png").is_file()


def test_miou_is_the_official_scorers(tmp_path: Path, inputs: dict[str, Path]) -> None:
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official

    classes = load_class_set("cityscapes19")
    split = PackedSplit(inputs["real"], "val")
    f = predict.load_segmenter(inputs["segmenter"], classes)
    ids = regular_ids(classes)
    args = SimpleNamespace(**vars(official.args))
    args.evalInstLevelScore, args.quiet, args.JSONOutput = False, True, False
    predictions, truths = [], []
    for i in range(len(split)):
        truth = split.labels_full(i)
        size = (truth.shape[0], truth.shape[1])
        predicted = predict.classes_at(f.logits, predict.image_tensor(split.image(i)), size)
        for files, kind, pixels in (
            (predictions, "pred", ids[predicted.numpy()]),
            (truths, "gtFine_labelIds", truth),
        ):
            path = tmp_path / f"val_{i:06d}_000000_{kind}.png"
            cv2.imwrite(str(path), pixels)
            files.append(str(path))
    theirs = official.evaluateImgLists(predictions, truths, args)
    confusion = predict.confusion(
        f.logits,
        split,
        np.arange(len(split)),
        lookup_table(classes, "cityscapes"),
        len(classes.classes),
        full_size=True,
    )
    ours = scores.class_iou(confusion)
    for name, value in zip(classes.classes, ours, strict=True):
        expected = theirs["classScores"][name]
        assert (value is None and math.isnan(expected)) or value == pytest.approx(expected)
    assert scores.mean_iou(confusion) == pytest.approx(theirs["averageScoreClasses"])


def test_logits_are_upsampled_before_the_argmax() -> None:
    # Class 1 is second in both pixels, so upsampled indices never show it; between the pixels
    # the upsampled logits put it first.
    logits = torch.tensor([[[[4.0, 0.0]], [[3.9, 3.9]], [[0.0, 4.0]]]])
    result = predict.classes_at(lambda _: logits, torch.zeros(1), (1, 8))
    assert result.tolist() == [[0, 0, 1, 1, 1, 1, 2, 2]]


def test_f_of_another_class_set_is_refused(inputs: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"trained on class set 'cityscapes19'.*synthia13"):
        predict.load_segmenter(inputs["segmenter"], load_class_set("synthia13"))
