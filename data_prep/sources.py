"""The labelled images of a data set on disk: its splits, and how the files are read.

A 16-bit Synthia label file opened by a careless reader becomes all zeros without a warning, so
file headers are checked before anything is decoded.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data_prep.labels import UInt8, known_ids
from data_prep.listing import SHOWN, Item, Source, SourceError, SourceKind, list_source

# Seed of the Synthia train/val split. Never change it: it decides what 'val' means.
SPLIT_SEED = 20160601


def open_source(kind: SourceKind, root: Path, val_images: int = 0) -> Source:
    """List a data set, and split it. File names only are read, no content.

    `val_images` is for Synthia, which has no split of its own: so many images, drawn by a fixed
    permutation, are 'val'. Raises `SourceError` as `list_source`, and where `val_images` does not
    fit.
    """
    if kind == "cityscapes" and val_images:
        raise SourceError(
            f"val_images: {val_images}, but the Cityscapes layout has a val split of its own; "
            "set val_images to 0"
        )
    source = list_source(kind, root)
    if not val_images:
        return source
    return replace(source, splits=_hold_out(source.base, source.splits["train"], val_images))


def _hold_out(base: Path, items: list[Item], val_images: int) -> dict[str, list[Item]]:
    """Split Synthia: the items with the `val_images` smallest random numbers are 'val'.

    The numbers are PCG64's raw stream, which numpy keeps stable over its versions (unlike
    `Generator.permutation`); item i in sorted order gets the i-th. Both splits stay sorted, and a
    smaller 'val' is a part of a larger one.
    """
    if val_images >= len(items):
        raise SourceError(
            f"val_images: {val_images} of {len(items)} images in {base} would leave none for "
            "training; expected fewer"
        )
    order = np.argsort(np.random.PCG64(SPLIT_SEED).random_raw(len(items)), kind="stable")
    held_out = {int(i) for i in order[:val_images]}
    return {
        "train": [item for i, item in enumerate(items) if i not in held_out],
        "val": [item for i, item in enumerate(items) if i in held_out],
    }


class PngHeader(NamedTuple):
    """The IHDR chunk, PNG specification 11.2.1. Colour type: 0 grey, 2 RGB, 3 palette, 6 RGBA."""

    width: int
    height: int
    bit_depth: int
    colour_type: int


def read_header(path: Path) -> PngHeader:
    """Read a PNG file's header. Raises `SourceError` where it is no PNG."""
    with path.open("rb") as file:
        start = file.read(26)
    if len(start) < 26 or start[:8] != b"\x89PNG\r\n\x1a\n" or start[12:16] != b"IHDR":
        found = "an empty file" if not start else f"a file that starts with {start[:8]!r}"
        raise SourceError(f"{path}: not a PNG file: found {found}; fetch it again")
    width, height = (int.from_bytes(start[at : at + 4], "big") for at in (16, 20))
    return PngHeader(width, height, start[24], start[25])


def _require(path: Path, header: PngHeader, bit_depth: int, colours: tuple[int, ...]) -> None:
    if header.bit_depth != bit_depth or header.colour_type not in colours:
        raise SourceError(
            f"{path}: expected a PNG of {bit_depth} bits and colour type "
            f"{' or '.join(map(str, colours))}, found {header.bit_depth} bits and colour type "
            f"{header.colour_type}; use the data set's own files, not a converted copy"
        )


def original_sizes(items: Iterable[Item]) -> list[tuple[int, int]]:
    """[height, width] of each item, from the file headers.

    Raises `SourceError`, with a count and the first few, where image and label differ in size.
    """
    sizes, differing = [], []
    for item in items:
        image, label = read_header(item.image_path), read_header(item.label_path)
        sizes.append((image.height, image.width))
        if image[:2] != label[:2]:
            differing.append(
                f"{item.image_path} {image.width}x{image.height} but {item.label_path} "
                f"{label.width}x{label.height}"
            )
    if differing:
        raise SourceError(
            f"{len(differing)} of {len(sizes)} pairs differ in size (width x height): "
            + "; ".join(differing[:SHOWN])
            + ("; ..." if len(differing) > SHOWN else "")
        )
    return sizes


def read_image(path: Path) -> UInt8:
    """Read an 8-bit colour PNG: uint8 [H, W, 3], RGB. Raises `SourceError`."""
    _require(path, read_header(path), 8, (2, 6))
    image = cv2.imread(os.fspath(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise SourceError(f"{path}: damaged PNG file (cut short, or changed bytes); fetch it again")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def read_labels(kind: SourceKind, path: Path) -> UInt8:
    """Read a label file: uint8 [H, W], the source's own ids. Raises `SourceError`.

    Synthia: 16-bit RGB PNG, class id in the red channel (cv2's last), instance id in the green.
    Cityscapes: 8-bit grey `_labelIds.png`.
    """
    if kind == "synthia":
        _require(path, read_header(path), 16, (2,))
    else:
        _require(path, read_header(path), 8, (0,))
    ids = cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED)
    if ids is None:
        raise SourceError(f"{path}: damaged PNG file (cut short, or changed bytes); fetch it again")
    if kind == "synthia":
        ids = ids[..., 2]
    found = np.flatnonzero(np.bincount(ids.reshape(-1)))
    unknown = np.setdiff1d(found, known_ids(kind))
    if unknown.size:
        raise SourceError(
            f"{path}: unknown label ids {', '.join(map(str, unknown[:8]))}; expected ids of the "
            f"{kind} label system; where they are your own, name them in a class set in "
            "configs/classes"
        )
    return ids.astype(np.uint8)
