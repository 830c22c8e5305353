"""Take a run's results elsewhere: `python -m tigan.export`.

Predictions: those of one evaluate node for every real val image, as PNGs of Cityscapes label ids
at the size of the ground truth, with the 8-bit round trip of translated images. They are named so
that Cityscapes' own scorer finds them:

    python -m tigan.export --run runs/NAME OUT_DIR
    CITYSCAPES_DATASET=ROOT CITYSCAPES_RESULTS=OUT_DIR csEvalPixelLevelSemanticLabeling

Its mean is over 19 classes. With class set cityscapes19 every figure is that of the report. A class
set with fewer (synthia16, synthia13) ignores the pixels of the others; the official scorer counts
them as errors of the class that was predicted there, and gives the missing classes an IoU of 0. So
its figures are those of the report only where the ground truth holds no such pixel: of Cityscapes
itself they are lower. A class of several label ids is written as the first, and agrees with the
official scorer only where the others do not occur.

Programs (`--programs`): the same node's networks as torch.export files, translator.pt2 and
segmenter.pt2, which need nothing but PyTorch (torch.export.load); see `write_programs`.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_prep import atomic
from data_prep.config import load_class_set
from data_prep.labels import regular_ids
from data_prep.shards import PackedSplit
from tigan import distributed, finished, predict
from tigan.networks import FrozenSegmenter, Generator
from tigan.pictures import write_png
from tigan.report_nodes import Node

RECORD = "export.json"
_EVERY_S = 5.0  # between lines of progress

Tell = Callable[[str], None]
Nodes = dict[str, Node]


def write_predictions(
    run_dir: Path, out_dir: Path, *, evaluate: str | None = None, tell: Tell = print
) -> tuple[int, int]:
    """Write KEY_labelIds.png for every real val image; (written, already there).

    `evaluate` names an evaluate node, by default a task-informed one. Files that are there
    already are kept: a call that was interrupted is given again. Raises ValueError for a run
    without such a node, for other data or weights than were scored, and for an `out_dir` that
    holds something else.
    """
    nodes = finished.read_run(run_dir)
    node = finished.evaluation(nodes, evaluate)
    record = {"made": "predictions"} | _record(nodes, node)
    finished.check_folder(out_dir, RECORD, record)
    ids = regular_ids(load_class_set(node.config["science"]["classes"]))
    segmenter, generator = _networks(nodes, node)
    predictor: predict.Predictor = segmenter.logits
    if generator is not None:
        predictor = predict.translated(segmenter, generator, uint8=True)
    split = PackedSplit(finished.input_of(nodes, node, "real").path, "val")
    tell(f"{len(split)} real val images of {node.name}")
    atomic.write_json(out_dir / RECORD, record)
    written, told = 0, time.monotonic()
    for index, key in enumerate(split.keys):
        path = out_dir / f"{key}_labelIds.png"
        if not path.exists():
            image = predict.image_tensor(split.image(index))
            seen = predict.classes_at(predictor, image, split.original_size(index))
            write_png(path, ids[seen.cpu().numpy()])
            written += 1
        if time.monotonic() - told > _EVERY_S:
            told = time.monotonic()
            tell(f"{index + 1:,} of {len(split):,} images")
    return written, len(split) - written


def _record(nodes: Nodes, node: Node) -> dict[str, Any]:
    """What a result is made of: the evaluate node, and the digests of its weights."""
    found: dict[str, Any] = {"evaluate": node.name, "classes": node.config["science"]["classes"]}
    files = {"segmenter": predict.SEGMENTER_WEIGHTS, "translator": predict.TRANSLATOR_WEIGHTS}
    for role, file in files.items():
        if role in node.config["inputs"]:
            found[role] = finished.checked(finished.input_of(nodes, node, role), file)
    return found


def _networks(nodes: Nodes, node: Node) -> tuple[FrozenSegmenter, Generator | None]:
    """f of an evaluate node, and where it translates G_S."""
    classes = load_class_set(node.config["science"]["classes"])
    segmenter = predict.load_segmenter(finished.input_of(nodes, node, "segmenter").path, classes)
    if "translator" not in node.config["inputs"]:
        return segmenter, None
    _, generator = predict.load_generator(finished.input_of(nodes, node, "translator").path)
    return segmenter, generator


class _Translator(nn.Module):
    """G_S with the range of image files: [n, 3, H, W] in [0, 1] -> the same."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, images: Tensor) -> Tensor:
        return predict.translate(self.generator, images, uint8=False)


class _Segmenter(nn.Module):
    """f: [n, 3, H, W] in [0, 1] -> logits [n, classes, H, W]."""

    def __init__(self, segmenter: FrozenSegmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Tensor:
        return self.segmenter.logits(images)


def write_programs(
    run_dir: Path, out_dir: Path, *, evaluate: str | None = None, tell: Tell = print
) -> list[str]:
    """Write translator.pt2 (where the node translates), segmenter.pt2 and export.json.

    `torch.export.load(path).module()(images)` runs one: images are float [n, 3, H, W] in [0, 1]
    at the packed size, which export.json has beside the classes; the translator gives images
    (round them to 1/255 for the scores' 8 bits), the segmenter logits [n, classes, H, W]. Returns
    the names of the files that were written; those that are there already are kept. Raises
    ValueError as `write_predictions`.
    """
    nodes = finished.read_run(run_dir)
    node = finished.evaluation(nodes, evaluate)
    classes = load_class_set(node.config["science"]["classes"])
    size = finished.size_of(finished.input_of(nodes, node, "real"))
    record = {"made": "programs"} | _record(nodes, node)
    record |= {
        "height": size[0],
        "width": size[1],
        "class_names": list(classes.classes),
        "class_colours": [classes.colours[name] for name in classes.classes],
    }
    finished.check_folder(out_dir, RECORD, record)
    segmenter, generator = _networks(nodes, node)
    modules: dict[str, nn.Module] = {"segmenter.pt2": _Segmenter(segmenter)}
    if generator is not None:
        modules["translator.pt2"] = _Translator(generator)
    tell(f"programs of {node.name} for images of {size[1]} x {size[0]} pixels")
    atomic.write_json(out_dir / RECORD, record)
    missing = [name for name in modules if not (out_dir / name).exists()]
    for name in missing:
        _write_program(out_dir / name, modules[name], size)
    return missing


def _write_program(path: Path, module: nn.Module, size: tuple[int, int]) -> None:
    """Trace a network at one image size, any number of images, and write it."""
    example = torch.zeros(2, 3, *size)
    shapes = ({0: torch.export.Dim("images", min=1)},)
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=shapes)
    for node in program.graph_module.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    # Through an open file: given a path, torch writes its name into the file.
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line of `python -m tigan.export`."""
    parser = argparse.ArgumentParser(
        prog="python -m tigan.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out_dir", type=Path, help="folder for the files")
    parser.add_argument("--run", type=Path, required=True, help="run directory, such as runs/NAME")
    parser.add_argument(
        "--evaluate", metavar="NODE", help="evaluate node (default: the task-informed one)"
    )
    parser.add_argument(
        "--programs", action="store_true", help="the networks instead of predictions"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (1: failed)."""
    return finished.command(partial(_export, parse_arguments(arguments)))


def _export(args: argparse.Namespace) -> int:
    """Make what was asked for, and say what was made."""

    def tell(line: str) -> None:
        print(line, flush=True)

    if args.programs:  # on the CPU, where any machine can load them
        names = write_programs(args.run, args.out_dir, evaluate=args.evaluate, tell=tell)
        print(f"written into {args.out_dir}: {', '.join(names) or 'nothing, all were there'}")
        return 0
    with distributed.session(threads=torch.get_num_threads()):
        written, kept = write_predictions(args.run, args.out_dir, evaluate=args.evaluate, tell=tell)
    print(f"{written} predictions written into {args.out_dir}, {kept} were there already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
