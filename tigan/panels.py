"""Pictures of single val images for the report: which ones, and what every method makes of them.

They are drawn when the report is made, from the packed data and the weights as they stand; of
what is not there any more, or is not what was scored, the picture is left out and named.
"""

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from data_prep.config import ClassSet
from data_prep.labels import colour_table
from data_prep.shards import PackedSplit
from tigan import finished, predict
from tigan.data import class_table
from tigan.pictures import Pixels, pixels, png
from tigan.report_nodes import Node

# Key of a panel column -> its caption; also their order.
PANEL_CAPTIONS = {
    "real": "Real image",
    "cyclegan_input": "Translated, CycleGAN",
    "informed_input": "Translated, task-informed",
    "source_prediction": "Prediction, source only",
    "cyclegan_prediction": "Prediction, CycleGAN",
    "informed_prediction": "Prediction, task-informed",
    "ground_truth": "Ground truth",
}
# The methods of the columns, by the first part of a column's key.
ROLES = ("source", "cyclegan", "informed")
# Wider pictures are scaled down for the page: seven of them share a line.
MOST_PIXELS = 640
# What reading a damaged or missing file raises: torch.load has no exception of its own.
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Shown:
    """A val image to show; `place` is 'best', 'median' or 'worst', the mIoUs are in [0, 1]."""

    key: str
    place: str
    informed: float
    control: float

    @property
    def gain(self) -> float:
        """mIoU of the task-informed translation less that of its control, of this image."""
        return self.informed - self.control

    @property
    def caption(self) -> str:
        """'best gain: 41.2 % against 30.1 % of the control (+11.1)'."""
        gain = f"{100 * self.gain:+.1f}".replace("-", "−")
        return (
            f"{self.place} gain: {100 * self.informed:.1f} % against {100 * self.control:.1f} % "
            f"of the control ({gain})"
        )


def choose(informed: Node, control: Node, count: int, problems: list[str]) -> list[Shown]:
    """The images of the best, the median and the worst gain, a third of `count` each.

    Informed and control are evaluate nodes whose scores.json has the mIoU of every val image.
    What `count` leaves over after the division goes to the best, then to the median; equal gains
    stand in the order of their keys. Of fewer images than `count` each stands there once; where
    the scores cannot be read there is none, and `problems` says why.
    """
    found: list[Shown] = []
    with _noting(problems):
        with_task, without = _image_scores(informed), _image_scores(control)
        keys = sorted(with_task.keys() & without.keys())
        if len(keys) < max(len(with_task), len(without)):
            problems.append(
                f"{informed.name} and {control.name} scored different images: panels are chosen "
                f"from the {len(keys)} that both have; run the older one again (--force evaluate)"
            )
        order = sorted(keys, key=lambda key: without[key] - with_task[key])
        found += [
            Shown(key, place, with_task[key], without[key])
            for place, members in _places(order, count).items()
            for key in members
        ]
    return found


def _places(order: Sequence[str], count: int) -> dict[str, Sequence[str]]:
    """Best, median and worst of `order`, best first; together `count` or all, none twice."""
    number = len(order)
    best, median, worst = ((min(count, number) + extra) // 3 for extra in (2, 1, 0))
    # Where few are left in the middle, the true median may be among the best.
    start = min(max((number - median) // 2, best), number - worst - median)
    return {
        "best": order[:best],
        "median": order[start : start + median],
        "worst": order[number - worst :],
    }


def _image_scores(node: Node) -> dict[str, float]:
    """Key -> mIoU of every val image. Raises OSError and ValueError, which name the file."""
    path = node.path / "scores.json"
    try:
        images = json.loads(path.read_text(encoding="utf-8")).get("images", [])
        found = {str(image["key"]): float(image["miou"]) for image in images}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{node.name}/scores.json: damaged ({error}); run the stage again (--force evaluate)"
        ) from None
    if not found:
        raise ValueError(
            f"{node.name}/scores.json: has no scores of single images, by which panels are "
            "chosen; run the stage again (--force evaluate)"
        )
    return found


def draw(
    shown: Sequence[Shown],
    methods: Mapping[str, Node],
    nodes: Sequence[Node],
    classes: ClassSet,
    problems: list[str],
) -> list[dict[str, Any]]:
    """One line per image: {'key', 'caption', 'pictures': {column of PANEL_CAPTIONS: PNG bytes}}.

    `methods` has evaluate nodes by ROLES ('informed' decides which data are shown; a role may be
    absent), `nodes` are all nodes of the run. Pictures are at the packed size, at most 640 pixels
    wide. What cannot be read, and weights or data that are not those that were scored, go to
    `problems`, and their pictures are left out; without the data there is no line. No collective:
    one rank draws, on its own device.
    """
    known = {node.name: node for node in nodes if node.done is not None}
    pictures: dict[str, dict[str, bytes]] = {one.key: {} for one in shown}
    if shown:
        with _noting(problems):
            data = finished.input_of(known, methods["informed"], "real")
            split = PackedSplit(data.path, "val")
            _add_data(pictures, split, classes)
            for role in ROLES:
                if role in methods:
                    with _noting(problems, methods[role].name):
                        _add_method(pictures, split, role, methods[role], known, classes)
    return [
        {
            "key": one.key,
            "caption": one.caption,
            "pictures": {c: pictures[one.key][c] for c in PANEL_CAPTIONS if c in pictures[one.key]},
        }
        for one in shown
        if pictures[one.key]
    ]


@contextmanager
def _noting(problems: list[str], name: str = "") -> Iterator[None]:
    """Errors of reading become a line of `problems`."""
    try:
        yield
    except _UNREADABLE as error:
        # torch's messages have several lines.
        text = " ".join(str(error).split()) or type(error).__name__
        is_named = not name or text.startswith(f"{name}: ")
        problems.append(f"panels: {text if is_named else f'{name}: {text}'}")


def _weights(known: dict[str, Node], node: Node, role: str, file: str) -> Path:
    """The directory of the weights that `node` was scored with. Raises ValueError for others."""
    found = finished.input_of(known, node, role)
    finished.checked(found, file)
    return found.path


def _add_data(pictures: dict[str, dict[str, bytes]], split: PackedSplit, classes: ClassSet) -> None:
    """The real images and their labels."""
    colours, table = colour_table(classes), class_table(split, classes)
    for key, index in _indices(pictures, split):
        pictures[key]["real"] = _png(split.image(index))
        pictures[key]["ground_truth"] = _png(colours[table[split.labels(index)]], labels=True)


def _indices(keys: Mapping[str, Any], split: PackedSplit) -> Iterator[tuple[str, int]]:
    """Those of `keys` that the split holds, with their sample numbers."""
    numbers = {key: index for index, key in enumerate(split.keys)}
    missing = [key for key in keys if key not in numbers]
    if missing:
        raise ValueError(f"{split.packed_dir}/val: has no image {missing[0]}, which was scored")
    return ((key, numbers[key]) for key in keys)


@torch.no_grad()
def _add_method(
    pictures: dict[str, dict[str, bytes]],
    split: PackedSplit,
    role: str,
    node: Node,
    known: dict[str, Node],
    classes: ClassSet,
) -> None:
    """What a method's f sees, where it is translated, and its predictions."""
    colours = colour_table(classes)
    finished.input_of(known, node, "real")  # or its scores would be of other images
    weights = _weights(known, node, "segmenter", predict.SEGMENTER_WEIGHTS)
    segmenter, generator = predict.load_segmenter(weights, classes), None
    if "translator" in node.config.get("inputs", {}):
        weights = _weights(known, node, "translator", predict.TRANSLATOR_WEIGHTS)
        _, generator = predict.load_generator(weights)
    for key, index in _indices(pictures, split):
        image = predict.image_tensor(split.image(index))
        if generator is not None:
            image = predict.translate(generator, image, uint8=True)
            pictures[key][f"{role}_input"] = _png(pixels(image))
        size = (split.height, split.width)
        predicted = predict.classes_at(segmenter.logits, image, size).cpu().numpy()
        pictures[key][f"{role}_prediction"] = _png(colours[predicted], labels=True)


def _png(picture: Pixels, *, labels: bool = False) -> bytes:
    """RGB uint8 [H, W, 3] as a PNG file's bytes, at most MOST_PIXELS wide."""
    height, width = picture.shape[:2]
    if width > MOST_PIXELS:
        size = (MOST_PIXELS, max(1, round(height * MOST_PIXELS / width)))
        # Averaging would make up colours between two classes.
        mode = cv2.INTER_NEAREST_EXACT if labels else cv2.INTER_AREA
        picture = np.asarray(cv2.resize(picture, size, interpolation=mode), np.uint8)
    return png(picture)
