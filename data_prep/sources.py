"""The labelled images of a data set on disk: its splits, and how the files are read.

A 16-bit Synthia label file opened by a careless reader becomes all zeros without a warning, so
file headers are checked before anything is decoded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data_prep.histograms import histogram
from data_prep.labels import UInt8, known_ids
from data_prep.listing import SHOWN, Item, Source, SourceError, SourceKind, list_source

Size = tuple[int, int]  # height, width

# Bits per channel, and colour types of PNG: 0 grey, 2 RGB, 6 RGBA.
IMAGE_FORMAT = (8, (2, 6))
LABEL_FORMATS: dict[SourceKind, tuple[int, tuple[int, ...]]] = {
    "synthia": (16, (2,)),
    "cityscapes": (8, (0,)),
}
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"

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


def parse_header(path: Path, start: bytes, end: bytes) -> PngHeader:
    """The header in a PNG file's first 26 bytes; `end` are its last 12.

    Raises `SourceError` where it is no PNG, or does not end as one: most files that a download or
    a full disk cut short are found so, without decoding them.
    """
    if len(start) < 26 or start[:8] != _PNG_START or start[12:16] != b"IHDR":
        found = "an empty file" if not start else f"a file that starts with {start[:8]!r}"
        raise SourceError(f"{path}: not a PNG file: found {found}; fetch it again")
    if end != _PNG_END:
        raise _damaged(path)
    width, height = (int.from_bytes(start[at : at + 4], "big") for at in (16, 20))
    return PngHeader(width, height, start[24], start[25])


def read_header(path: Path) -> PngHeader:
    """Read a PNG file's header. Raises `SourceError` as `parse_header`, and `OSError`."""
    with _named(path), path.open("rb") as file:
        start = file.read(26)
        file.seek(max(0, file.seek(0, 2) - 12))
        return parse_header(path, start, file.read(12))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of reading name the file; those of `read` alone do not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _damaged(path: Path) -> SourceError:
    return SourceError(
        f"{path}: damaged PNG file (cut short, changed, or with bytes after its end); fetch it "
        "again"
    )


def _require(path: Path, header: PngHeader, expected: tuple[int, tuple[int, ...]]) -> None:
    bit_depth, colours = expected
    if header.bit_depth != bit_depth or header.colour_type not in colours:
        raise SourceError(
            f"{path}: expected a PNG of {bit_depth} bits and colour type "
            f"{' or '.join(map(str, colours))}, found {header.bit_depth} bits and colour type "
            f"{header.colour_type}; use the data set's own files, not a converted copy"
        )


def check_headers(kind: SourceKind, items: Sequence[Item]) -> tuple[list[Size], list[str]]:
    """Sizes of the images, and one line for each item whose files cannot be right.

    Reads the first and last bytes of every file: pixel format, size and end are known before
    anything is written, over the whole data set.
    """
    sizes, problems = [], []
    for item in items:
        try:
            sizes.append(_check_pair(kind, item))
        except SourceError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{error.filename}: cannot be read ({error.strerror})")
    return sizes, problems


def _check_pair(kind: SourceKind, item: Item) -> Size:
    """Height and width of an image. Raises `SourceError` where it and its label do not fit."""
    image, label = read_header(item.image_path), read_header(item.label_path)
    _require(item.image_path, image, IMAGE_FORMAT)
    _require(item.label_path, label, LABEL_FORMATS[kind])
    if image[:2] != label[:2]:
        raise SourceError(
            f"{item.image_path} has {image.width} x {image.height} pixels, but {item.label_path} "
            f"{label.width} x {label.height}; use the data set's own files"
        )
    return image.height, image.width


def refusal(problems: Sequence[str], images: int) -> SourceError:
    """One error for `problems`, each of one of `images` images; the first few are shown."""
    if len(problems) == 1:
        return SourceError(problems[0])
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    listed = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
    return SourceError(f"{len(problems)} of {images} images cannot be packed:{listed}{more}")


def _decode(path: Path, expected: tuple[int, tuple[int, ...]], flags: int) -> np.ndarray:
    """Pixels as cv2 gives them. Raises `SourceError`; other formats are never converted."""
    with _named(path):
        content = path.read_bytes()
    _require(path, parse_header(path, content[:26], content[-12:]), expected)
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    if pixels is None:
        raise _damaged(path)
    return pixels


def read_image(path: Path) -> UInt8:
    """Read an 8-bit colour PNG: uint8 [H, W, 3], RGB. Raises `SourceError`."""
    image = _decode(path, IMAGE_FORMAT, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def read_labels(kind: SourceKind, path: Path) -> UInt8:
    """Read a label file: uint8 [H, W], the source's own ids. Raises `SourceError`.

    Synthia: 16-bit RGB PNG, class id in the red channel (cv2's last), instance id in the green.
    Cityscapes: 8-bit grey `_labelIds.png`.
    """
    ids = _decode(path, LABEL_FORMATS[kind], cv2.IMREAD_UNCHANGED)
    if kind == "synthia":
        ids = cv2.extractChannel(ids, 2)
    counts = histogram(ids, values=max(256, int(ids.max()) + 1))
    unknown = np.setdiff1d(np.flatnonzero(counts), known_ids(kind))
    if unknown.size:
        raise SourceError(
            f"{path}: unknown label ids {', '.join(map(str, unknown[:8]))} "
            f"({counts[unknown].sum()} of {ids.size} pixels); expected ids of the {kind} label "
            "system; where they are your own, name them in a class set in configs/classes"
        )
    return ids.astype(np.uint8)
