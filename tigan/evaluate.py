"""Stage 'evaluate': one row of the poster's table, with and without the uint8 round trip."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep import atomic
from data_prep.config import ClassSet, load_class_set
from data_prep.labels import colour_table
from data_prep.shards import PackedSplit
from tigan import checkpoint, distributed, predict, scores
from tigan.config import EvaluateStage, StageJob, StageResult
from tigan.data import Indices, class_table
from tigan.networks import FrozenSegmenter, Generator
from tigan.predict import Predictor

SCORES = "scores.json"


def run(job: StageJob) -> StageResult:
    """Score f on the val sets at full-size ground truth; write scores.json and picture panels."""
    science: EvaluateStage = job.science
    classes = load_class_set(science.classes)
    segmenter = predict.load_segmenter(job.inputs["segmenter"], classes)
    real = PackedSplit(job.inputs["real"], "val")
    origin = _origin(job)
    if science.method == "source_only":
        synthetic = PackedSplit(job.inputs["synthetic"], "val")
        rows = [
            _row(job, classes, origin, "synthia_val", synthetic, segmenter.logits, uint8=True),
            _row(job, classes, origin, "cityscapes_val", real, segmenter.logits, uint8=True),
        ]
        generator = None
    else:
        _, generator = predict.load_generator(job.inputs["translator"])
        rows = [
            _row(
                job,
                classes,
                origin,
                "cityscapes_val",
                real,
                predict.translated(segmenter, generator, uint8=uint8),
                uint8=uint8,
            )
            for uint8 in (True, False)
        ]
    shown = predict.evenly(len(real), science.evaluate.panels)
    pictures: list[str] = []
    if distributed.group().is_first:
        pictures = _write_panels(job, classes, real, shown, segmenter, generator)
        atomic.write_json(
            job.stage_dir / SCORES,
            {"rows": rows, "panels": [real.keys[i] for i in shown]},
        )
    return StageResult(
        [SCORES, *pictures], {f"miou_{row['input']}_{_form(row)}": row["miou"] for row in rows}
    )


def _form(row: dict[str, Any]) -> str:
    return "uint8" if row["uint8"] else "float"


def _origin(job: StageJob) -> dict[str, Any]:
    """What the row says about where f and the translator come from: their own files know."""
    segmenter, _ = checkpoint.load_weights(job.inputs["segmenter"] / predict.SEGMENTER_WEIGHTS)
    translator: dict[str, Any] = {}
    if "translator" in job.inputs:
        translator, _ = checkpoint.load_weights(
            job.inputs["translator"] / predict.TRANSLATOR_WEIGHTS
        )
    finetune = translator.get("finetune", {})
    settings, method = segmenter["segmenter"], job.science.method
    from_scratch = settings["pretrained"] == "none"
    return {
        "segmenter": "scratch" if from_scratch else Path(settings["pretrained"]).stem,
        "translation": method if translator else "none",
        "method": method,
        # Of the matched control too: it sees the same images, without their labels.
        "labels": finetune.get("labels"),
        "draw": finetune.get("draw"),
        "alpha": finetune.get("alpha"),
        "gamma": finetune.get("gamma"),
        "seeds": {
            "segmenter": settings["seed"],
            "gan": translator.get("gan", {}).get("seed"),
            "finetune": finetune.get("seed"),
        },
    }


def _row(
    job: StageJob,
    classes: ClassSet,
    origin: dict[str, Any],
    name: str,
    split: PackedSplit,
    predictor: Predictor,
    *,
    uint8: bool,
) -> dict[str, Any]:
    """One row of results.json: a whole val set through one predictor."""
    confusion = predict.confusion(
        predictor,
        split,
        np.arange(len(split)),
        class_table(split, classes),
        len(classes.classes),
        full_size=True,
    )
    return {
        "input": name,
        **origin,
        "uint8": uint8,
        "classes": classes.name,
        "images": len(split),
        "miou": scores.mean_iou(confusion),
        "per_class": dict(zip(classes.classes, scores.class_iou(confusion), strict=True)),
        "confusion": confusion.tolist(),
    }


@torch.no_grad()
def _write_panels(
    job: StageJob,
    classes: ClassSet,
    split: PackedSplit,
    shown: Indices,
    segmenter: FrozenSegmenter,
    generator: Generator | None,
) -> list[str]:
    """Write panels/N_{input,prediction}.png, and {real,ground_truth} where nothing is translated.

    Returns the paths relative to the stage directory; N counts the shown val images.
    """
    colours = colour_table(classes)
    table = class_table(split, classes)
    written = []
    for number, index in enumerate(shown.tolist()):
        image = predict.image_tensor(split.image(index))
        fed = image if generator is None else predict.translate(generator, image, uint8=True)
        labels = table[split.labels(index)]
        predicted = predict.classes_at(segmenter.logits, fed, (labels.shape[0], labels.shape[1]))
        pictures = {
            "input": _pixels(fed),
            "prediction": colours[predicted.cpu().numpy()],
        }
        if generator is None:
            pictures |= {"real": split.image(index), "ground_truth": colours[labels]}
        for what, pixels in pictures.items():
            path = f"panels/{number}_{what}.png"
            with atomic.replacing(job.stage_dir / path) as temporary:
                cv2.imwrite(str(temporary), pixels[..., ::-1])
            written.append(path)
    return written


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """[1, 3, H, W] in [0, 1] -> u8 [H, W, 3]."""
    pixels = (image[0] * 255).round().clamp(0, 255).byte().cpu()
    return np.asarray(pixels.permute(1, 2, 0).numpy(), np.uint8)
