"""One reader per source layout: which images there are, and how their files are read.

Both layouts are read strictly. A 16-bit Synthia label file opened by a careless reader becomes
all zeros without a warning, so file headers are checked before anything is decoded.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import xxhash

from data_prep.labels import SourceKind, UInt8, known_ids

# Seed of the Synthia train/val split. Never change it: it decides what 'val' means.
SPLIT_SEED = 20160601
SHOWN = 3  # examples in an error message


class SourceError(ValueError):
    """The data set on disk is not as its layout says; the message is complete as it stands."""


@dataclass(frozen=True)
class Item:
    """One labelled image. `key` is unique in its data set: 0000012, aachen_000000_000019."""

    key: str
    image_path: Path
    label_path: Path


@dataclass(frozen=True)
class Source:
    """A data set on disk: per split its items, sorted by key; `base` is the layout's top folder."""

    kind: SourceKind
    base: Path
    splits: dict[str, list[Item]]


def city_of(key: str) -> str:
    """The city (or drive) of a Cityscapes key: aachen_000000_000019 -> aachen."""
    return key.rsplit("_", 2)[0]


def open_source(kind: SourceKind, root: Path, val_images: int = 0) -> Source:
    """List a data set. File names only are read, no content.

    `val_images` is for Synthia, which has no split of its own: so many images, drawn by a fixed
    permutation, are 'val'. Raises `SourceError` where the root is missing or empty, is in another
    layout, or holds images and labels that do not belong together.
    """
    if kind == "cityscapes" and val_images:
        raise SourceError(
            f"val_images: {val_images}, but the Cityscapes layout has a val split of its own; "
            "set val_images to 0"
        )
    if not root.is_dir():
        raise SourceError(
            f"{root}: no such directory; expected the root of a data set in the {kind} layout"
        )
    if kind == "synthia":
        base, items = _list_synthia(root)
        return Source(kind, base, _hold_out(base, items, val_images))
    splits = {split: _list_cityscapes(root, split) for split in ("train", "val")}
    return Source(kind, root, splits)


def _holds(folder: Path) -> str:
    """What stands in a folder, for error messages."""
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return "it is empty"
    return f"it holds {', '.join(names[:8])}" + (f" and {len(names) - 8} more" * (len(names) > 8))


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    """Key -> path of the visible files in `folder` whose names end in `suffix`."""
    return {
        path.name.removesuffix(suffix): path
        for path in folder.iterdir()
        if path.name.endswith(suffix) and not path.name.startswith(".")  # '._x.png' of macOS
    }


def _pair(images: dict[str, Path], labels: dict[str, Path], where: Path) -> list[Item]:
    """Join images and labels by key. Raises `SourceError` where one lacks the other."""
    problems = []
    for what, keys in (
        ("images without a label", sorted(images.keys() - labels.keys())),
        ("labels without an image", sorted(labels.keys() - images.keys())),
    ):
        if keys:
            shown = ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
            problems.append(f"{len(keys)} {what} ({shown})")
    if problems:
        raise SourceError(
            f"{where}: {' and '.join(problems)}, of {len(images)} images and {len(labels)} "
            "labels; complete the data set (a download or unpacking may have been cut short)"
        )
    return [Item(key, images[key], labels[key]) for key in sorted(images)]


def _list_synthia(root: Path) -> tuple[Path, list[Item]]:
    """SYNTHIA-RAND-CITYSCAPES, whose top folder some users strip."""
    nested = root / "RAND_CITYSCAPES"
    base = nested if nested.is_dir() else root
    image_dir, label_dir = base / "RGB", base / "GT" / "LABELS"
    if image_dir.is_dir() and not label_dir.is_dir():
        for unofficial in (base / "GT" / "parsed_LABELS", base / "parsed_LABELS"):
            if unofficial.is_dir():
                raise SourceError(
                    f"{unofficial}: an unofficial 8-bit export with an unclear id system, which "
                    "is not read; expected the data set's own 16-bit GT/LABELS"
                )
    if not image_dir.is_dir() or not label_dir.is_dir():
        raise SourceError(
            f"{base}: not in the Synthia layout: expected RGB/ and GT/LABELS/ (or both inside "
            f"RAND_CITYSCAPES/), {_holds(base)}"
        )
    images, labels = _files(image_dir, ".png"), _files(label_dir, ".png")
    if not images and not labels:
        raise SourceError(f"{image_dir}: no .png images in it: {_holds(image_dir)}")
    return base, _pair(images, labels, base)


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
    if not val_images:
        return {"train": items}
    order = np.argsort(np.random.PCG64(SPLIT_SEED).random_raw(len(items)), kind="stable")
    held_out = {int(i) for i in order[:val_images]}
    return {
        "train": [item for i, item in enumerate(items) if i not in held_out],
        "val": [item for i, item in enumerate(items) if i in held_out],
    }


def _list_cityscapes(root: Path, split: str) -> list[Item]:
    """One split of Cityscapes, all cities; 'test' has no labels and is never asked for."""
    image_root, label_root = root / "leftImg8bit" / split, root / "gtFine" / split
    for folder in (image_root, label_root):
        if not folder.is_dir():
            raise SourceError(
                f"{root}: not in the Cityscapes layout: expected {folder.relative_to(root)}/ "
                f"with a folder per city, {_holds(root)}"
            )
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for top, suffix, found in (
        (image_root, "_leftImg8bit.png", images),
        (label_root, "_gtFine_labelIds.png", labels),
    ):
        for city in sorted(path for path in top.iterdir() if path.is_dir()):
            for key, path in _files(city, suffix).items():
                if city_of(key) != city.name:
                    raise SourceError(
                        f"{path}: expected the name CITY_SEQUENCE_FRAME{suffix} with the city "
                        f"of its folder, {city.name!r}"
                    )
                found[key] = path
    if not images and not labels:
        raise SourceError(
            f"{image_root}: no CITY/*_leftImg8bit.png in it: {_holds(image_root)}; expected the "
            "Cityscapes layout"
        )
    return _pair(images, labels, root)


def fingerprint(root: Path, kind: SourceKind) -> str:
    """What a data set is, wherever it lies: xxh3_128 (32 hex digits) of names and sizes.

    Hashes the path relative to the layout's top folder and the size in bytes of every file that
    would be packed, in sorted order; contents are not read. Raises as `open_source`.
    """
    source = open_source(kind, root)
    items = [item for split in source.splits.values() for item in split]
    digest = xxhash.xxh3_128(kind.encode())
    paths = [path for item in items for path in (item.image_path, item.label_path)]
    for name, path in sorted((path.relative_to(source.base).as_posix(), path) for path in paths):
        digest.update(f"{name}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()


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
