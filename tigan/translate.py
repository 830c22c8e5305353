"""Translate a folder of images with what a run has learned: `python -m tigan.translate`.

Every PNG or JPEG of IN_DIR (its subfolders too) becomes a PNG under the same relative path in
OUT_DIR. Images are first brought to the size that the run was trained at, as packing does it:
the generator's InstanceNorm takes its statistics over the whole image, so its result depends on
the scale that the image is shown at. What is written has that size; predictions have the size of
the image as it came. Colour is read as 8-bit RGB, turned as a camera's EXIF entry says.

Files that are there already are kept, unless they are older than their photograph: an interrupted
call is simply given again. OUT_DIR belongs to one IN_DIR and one translator: others are refused.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data_prep import atomic
from data_prep.config import load_class_set
from data_prep.labels import UInt8, colour_table, regular_ids
from tigan import distributed, finished, predict
from tigan.networks import FrozenSegmenter, Generator
from tigan.pictures import LEAST, Pixels, padded, pixels, read_image, resized, write_png
from tigan.report_nodes import Node

RECORD = "translate.json"
SUFFIXES = (".png", ".jpg", ".jpeg")
_EVERY_S = 5.0  # between lines of progress
# What a RuntimeError says where memory is short: CUDA, the CPU's allocator, cuDNN and cuBLAS, C++.
_NO_MEMORY = ("out of memory", "t allocate memory", "alloc_failed", "bad_alloc")

Tell = Callable[[str], None]


@dataclass
class Tally:
    """What became of the images of a call; `stretched` counts those of another shape."""

    done: int = 0
    skipped: int = 0
    stretched: int = 0
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Translator:
    """The networks at work: G_S, the size it sees (None: each image's own), and f where asked."""

    generator: Generator
    size: tuple[int, int] | None
    segmenter: FrozenSegmenter | None
    ids: UInt8
    colours: UInt8


def translate_folder(
    run_dir: Path,
    in_dir: Path,
    out_dir: Path,
    *,
    translator: str | None = None,
    predictions: bool = False,
    resize: bool = True,
    tell: Tell = print,
) -> Tally:
    """Translate all images of `in_dir`; with `predictions` also write what f sees in them.

    `translator` names a gan or finetune node of the run. With `resize` false every image goes
    through at its own size, reflected at the lower and right border to a multiple of 4 pixels.
    Predictions are NAME_labelIds.png (label ids of Cityscapes) and NAME_color.png. An image that
    cannot be read, or is too large for the memory, is named in the tally, the others are done.
    What is older than its image is made anew. Raises ValueError before anything is written: for a
    run without finished networks, folders that do not fit (OUT_DIR has another IN_DIR's images),
    no images.
    """
    nodes = finished.read_run(run_dir)
    node = finished.translator(nodes, translator)
    size = finished.size_of(finished.input_of(nodes, node, "real")) if resize else None
    todo = _outputs(in_dir, out_dir, predictions)
    record = {
        "translator": node.name,
        "weights": finished.checked(node, predict.TRANSLATOR_WEIGHTS),
        "size": None if size is None else list(size),
        "input": str(in_dir.resolve()),
    }
    f = _segmenter(nodes, node) if predictions else None
    seen = {} if f is None else {"segmenter": finished.checked(f, predict.SEGMENTER_WEIGHTS)}
    record = finished.check_folder(out_dir, RECORD, record, seen)
    networks = _load(node, size, f)
    shown = "each at its own size" if size is None else f"at {size[1]} x {size[0]} pixels"
    tell(f"{len(todo)} images with {node.name} of {run_dir}, {shown}")
    atomic.write_json(out_dir / RECORD, record)
    return _translate_all(networks, todo, tell)


def _outputs(in_dir: Path, out_dir: Path, predictions: bool) -> dict[Path, list[Path]]:
    """Image -> its output files, the translation first. Raises ValueError."""
    if not in_dir.is_dir():
        raise ValueError(f"{in_dir}: no such directory; expected a folder of images")
    if out_dir.resolve().is_relative_to(in_dir.resolve()):
        raise ValueError(
            f"{out_dir}: lies in {in_dir}, whose images are read; choose a folder outside of it"
        )
    kinds = (".png", "_labelIds.png", "_color.png") if predictions else (".png",)
    found: dict[Path, list[Path]] = {}
    owners: dict[Path, Path] = {}
    for image in _images(in_dir):
        stem = out_dir / image.relative_to(in_dir).with_suffix("")
        found[image] = [stem.with_name(stem.name + kind) for kind in kinds]
        for path in found[image]:
            if path in owners:
                raise ValueError(f"{image} and {owners[path]} would both become {path}; rename one")
            owners[path] = image
    if not found:
        raise ValueError(f"{in_dir}: no images in it; expected files {', '.join(SUFFIXES)}")
    return found


def _images(in_dir: Path) -> Iterator[Path]:
    """The images of a folder and its subfolders, sorted; no hidden files ('._x.png' of macOS)."""
    for path in sorted(in_dir.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def _load(node: Node, size: tuple[int, int] | None, f: Node | None) -> Translator:
    """The networks of a translator node and, where it is given, of a segmenter node."""
    _, generator = predict.load_generator(node.path)
    nothing = np.zeros(0, np.uint8)
    if f is None:
        return Translator(generator, size, None, nothing, nothing)
    classes = load_class_set(f.config["science"]["classes"])
    segmenter = predict.load_segmenter(f.path, classes)
    return Translator(generator, size, segmenter, regular_ids(classes), colour_table(classes))


def _segmenter(nodes: dict[str, Node], node: Node) -> Node:
    """f that a finetune node is for; of a gan node, which knows none, the run's first. ValueError.

    Its weights are not checked yet.
    """
    segmenters = [one for one in nodes.values() if one.stage == "segmenter"]
    if "segmenter" in node.config.get("inputs", {}):
        return finished.input_of(nodes, node, "segmenter")
    if not segmenters:
        raise ValueError("no segmenter is finished in this run: there is nothing to predict with")
    return segmenters[0]


def _translate_all(networks: Translator, todo: dict[Path, list[Path]], tell: Tell) -> Tally:
    """Translate image by image, and say every few seconds how far it is."""
    tally = Tally()
    started = told = time.monotonic()
    for number, (path, outputs) in enumerate(todo.items(), 1):
        _translate_one(networks, path, outputs, tally)
        if time.monotonic() - told > _EVERY_S:
            told = time.monotonic()
            rate = tally.done / (told - started)
            tell(f"{number:,} of {len(todo):,} images, {rate:.2f} images/s")
    return tally


def _translate_one(networks: Translator, path: Path, outputs: Sequence[Path], tally: Tally) -> None:
    """Write what is missing or too old of an image's outputs; a bad image goes to the tally."""
    try:
        missing = _missing(path, outputs)
        if not missing:
            tally.skipped += 1
            return
        image = read_image(path)
        if networks.size is None and min(image.shape[:2]) < LEAST:
            raise ValueError(f"smaller than {LEAST} x {LEAST} pixels")
        pictures = _fitting(networks, image)
    except (OSError, ValueError, MemoryError) as error:
        tally.failed.append(f"{path}: {error}")
        return
    tally.stretched += _is_stretched(image, networks.size)
    for output, picture in zip(outputs, pictures, strict=True):
        if output in missing:
            write_png(output, picture)
    tally.done += 1


def _missing(path: Path, outputs: Sequence[Path]) -> list[Path]:
    """Those outputs of an image that are not there, or are older than it. Raises OSError."""
    changed = path.stat().st_mtime_ns
    return [one for one in outputs if not one.exists() or one.stat().st_mtime_ns < changed]


def _fitting(networks: Translator, image: Pixels) -> list[Pixels]:
    """As `_translated`; ValueError where the memory is too small for the image."""
    try:
        return _translated(networks, image)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and all(
            words not in str(error).lower() for words in _NO_MEMORY
        ):
            raise
    advice = "use one with more"
    if networks.size is None:
        advice = "leave out --no-resize"
    elif networks.segmenter is not None:
        advice = "leave out --predict"  # predictions have the image's own size
    size = f"{image.shape[1]} x {image.shape[0]} pixels"
    raise ValueError(f"{size} are too large for the memory of this device: {advice}")


def _is_stretched(image: Pixels, size: tuple[int, int] | None) -> bool:
    """Whether bringing an image to `size` changes its width to height by more than 2 %."""
    height, width = image.shape[:2]
    return size is not None and abs(size[1] / size[0] * height / width - 1) > 0.02


@torch.no_grad()
def _translated(networks: Translator, image: Pixels) -> list[Pixels]:
    """The translation, and where f is there its label ids and their colours."""
    size = (image.shape[0], image.shape[1])
    if networks.size is None:
        tensor = padded(predict.image_tensor(image))
        shown = predict.translate(networks.generator, tensor, uint8=True)
        shown = shown[..., : size[0], : size[1]]
    else:
        tensor = predict.image_tensor(resized(image, networks.size))
        shown = predict.translate(networks.generator, tensor, uint8=True)
    if networks.segmenter is None:
        return [pixels(shown)]
    seen = predict.classes_at(networks.segmenter.logits, shown, size).cpu().numpy()
    return [pixels(shown), networks.ids[seen], networks.colours[seen]]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line of `python -m tigan.translate`."""
    parser = argparse.ArgumentParser(
        prog="python -m tigan.translate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("in_dir", type=Path, help="folder of images")
    parser.add_argument("out_dir", type=Path, help="folder for the translations")
    parser.add_argument("--run", type=Path, required=True, help="run directory, such as runs/NAME")
    parser.add_argument(
        "--translator", metavar="NODE", help="gan or finetune node (default: the task-informed one)"
    )
    parser.add_argument("--predict", action="store_true", help="also write what f sees")
    parser.add_argument("--no-resize", action="store_true", help="keep every image's own size")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (1: failed, or some images did)."""
    return finished.command(partial(_translate, parse_arguments(arguments)))


def _translate(args: argparse.Namespace) -> int:
    """Translate the folder, and say what became of its images."""
    with distributed.session(threads=torch.get_num_threads()):
        tally = translate_folder(
            args.run,
            args.in_dir,
            args.out_dir,
            translator=args.translator,
            predictions=args.predict,
            resize=not args.no_resize,
            tell=lambda line: print(line, flush=True),
        )
    for line in tally.failed:
        print(f"error: {line}", file=sys.stderr)
    if tally.stretched:
        print(f"{tally.stretched} images have another shape than the training images: stretched")
    print(
        f"{tally.done} images translated into {args.out_dir}, {tally.skipped} were there already, "
        f"{len(tally.failed)} failed"
    )
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
