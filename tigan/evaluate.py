"""Stage 'evaluate': the scores of one method, with and without the uint8 round trip."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data_prep import atomic
from data_prep.config import ClassSet, load_class_set
from data_prep.shards import PackedSplit
from tigan import checkpoint, distributed, predict, scores
from tigan.config import EvaluateStage, StageJob, StageResult
from tigan.data import Indices, class_table, label_count, train_and_selection
from tigan.predict import Predictor

SCORES = "scores.json"


@dataclass(frozen=True)
class _Set:
    """Images that are scored together, and whether against labels of full size."""

    name: str
    split: PackedSplit
    indices: Indices
    full_size: bool


def run(job: StageJob) -> StageResult:
    """Score one method; write scores.json.

    It holds a row for each set of images (see `_sets`), of translated val images a second one
    without the uint8 round trip, and the mIoU of every single real val image. A collective.
    """
    science: EvaluateStage = job.science
    classes = load_class_set(science.classes)
    segmenter = predict.load_segmenter(job.inputs["segmenter"], classes)
    origin = _origin(job)
    if "translator" in job.inputs:
        _, generator = predict.load_generator(job.inputs["translator"])
        rounded, exact = (
            predict.translated(segmenter, generator, uint8=uint8) for uint8 in (True, False)
        )
    else:
        rounded, exact = segmenter.logits, None  # image files are in 8 bits as they come
    rows, images = [], []
    for scored in _sets(job):
        found = _confusions(scored, rounded, classes)
        rows.append(_row(origin, classes, scored, found, uint8=True))
        if scored.name == "cityscapes_val":
            images = _single_images(scored, found)
            if exact is not None:
                found = _confusions(scored, exact, classes)
                rows.append(_row(origin, classes, scored, found, uint8=False))
    if distributed.group().is_first:
        atomic.write_json(job.stage_dir / SCORES, {"rows": rows, "images": images})
    return StageResult([SCORES], {f"miou_{row['input']}_{_form(row)}": row["miou"] for row in rows})


def _form(row: dict[str, Any]) -> str:
    return "uint8" if row["uint8"] else "float"


def _sets(job: StageJob) -> list[_Set]:
    """What is scored: real val; the selection split of real train; else synthetic val too.

    Synthetic images are not translated, so they say something of methods without a translator
    only. The selection split, of which there are labels at the packed size only, is what alpha,
    gamma and the like may be chosen on.
    """
    val = PackedSplit(job.inputs["real"], "val")
    train = PackedSplit(job.inputs["real"], "train")
    _, selection = train_and_selection(train, job.science.selection_fraction)
    found = [_Set("cityscapes_val", val, np.arange(len(val)), True)]
    if len(selection):
        found.append(_Set("cityscapes_selection", train, selection, False))
    if "translator" not in job.inputs:
        synthetic = PackedSplit(job.inputs["synthetic"], "val")
        found.insert(0, _Set("synthia_val", synthetic, np.arange(len(synthetic)), True))
    return found


def _origin(job: StageJob) -> dict[str, Any]:
    """What the row says about where f and the translator come from: their own files know."""
    segmenter, _ = checkpoint.load_weights(job.inputs["segmenter"] / predict.SEGMENTER_WEIGHTS)
    translator: dict[str, Any] = {}
    if "translator" in job.inputs:
        translator, _ = checkpoint.load_weights(
            job.inputs["translator"] / predict.TRANSLATOR_WEIGHTS
        )
    finetune, method = translator.get("finetune", {}), job.science.method
    adapted = finetune or segmenter.get("adaptsegnet", segmenter)
    pretrained = segmenter["segmenter"]["pretrained"]
    return {
        "segmenter": "scratch" if pretrained == "none" else Path(pretrained).stem,
        "translation": _translation(method, finetune) if translator else "none",
        "method": method,
        **_labels(job, segmenter, finetune),
        "alpha": finetune.get("alpha"),
        "gamma": finetune.get("gamma"),
        "seeds": {
            "segmenter": segmenter["segmenter"]["seed"],
            "gan": translator.get("gan", {}).get("seed"),
            "finetune": adapted.get("seed"),  # of whatever came after f and the GAN
        },
    }


def _translation(method: str, finetune: dict[str, Any]) -> str:
    """How the images are translated: 'both' is a method of f, its images are task-informed."""
    if method != "both":
        return method
    return "task_informed" if finetune["alpha"] > 0 else "cyclegan_matched"


def _labels(
    job: StageJob, segmenter: dict[str, Any], finetune: dict[str, Any]
) -> dict[str, int | None]:
    """The number of labelled real images that were used, and the draw; None where there is none.

    Of the matched control too: it sees the same images, without their labels.
    """
    split = PackedSplit(job.inputs["real"], "train")
    train, _ = train_and_selection(split, job.science.selection_fraction)
    if job.science.method == "oracle":
        return {"labels": len(train), "draw": None}
    used = finetune or segmenter
    if "labels" not in used:
        return {"labels": None, "draw": None}
    return {"labels": label_count(train, used["labels"]), "draw": used["draw"]}


def _confusions(scored: _Set, predictor: Predictor, classes: ClassSet) -> Tensor:
    """The confusion matrix of every image of a set. A collective."""
    return predict.confusions(
        predictor,
        scored.split,
        scored.indices,
        class_table(scored.split, classes),
        len(classes.classes),
        full_size=scored.full_size,
    )


def _row(
    origin: dict[str, Any], classes: ClassSet, scored: _Set, found: Tensor, *, uint8: bool
) -> dict[str, Any]:
    """One row of results.json: a whole set, from ONE confusion matrix."""
    confusion = found.sum(0)
    return {
        "input": scored.name,
        **origin,
        "uint8": uint8,
        "classes": classes.name,
        "images": len(scored.indices),
        "miou": scores.mean_iou(confusion),
        "per_class": dict(zip(classes.classes, scores.class_iou(confusion), strict=True)),
        "confusion": confusion.tolist(),
    }


def _single_images(scored: _Set, found: Tensor) -> list[dict[str, Any]]:
    """Key and mIoU of every single image, to find those that gain most and least by it.

    The mean is over the classes that occur in the image or are predicted there.
    """
    return [
        {"key": scored.split.keys[index], "miou": scores.mean_iou(confusion)}
        for index, confusion in zip(scored.indices.tolist(), found, strict=True)
    ]
