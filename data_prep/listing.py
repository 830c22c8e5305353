"""Which images a data set on disk holds: both layouts, read strictly. File names only.

Neither numpy nor cv2 is loaded, so that a plan over the user's own data takes no longer than one
over rendered images.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

SourceKind = Literal["synthia", "cityscapes"]
SHOWN = 3  # examples in an error message
# Labelled images of the published data sets, split by split as they lie on disk.
PUBLISHED_COUNTS: dict[SourceKind, dict[str, int]] = {
    "synthia": {"train": 9400},
    "cityscapes": {"train": 2975, "val": 500},
}


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


def list_source(kind: SourceKind, root: Path) -> Source:
    """List a data set. File names only are read, no content.

    Synthia has no split of its own: all of it is 'train'. Raises `SourceError` where the root is
    missing or empty, is in another layout, or holds images and labels that do not belong together.
    """
    if not root.is_dir():
        raise SourceError(
            f"{root}: no such directory; expected the root of a data set in the {kind} layout"
        )
    if kind == "synthia":
        base, items = _list_synthia(root)
        return Source(kind, base, {"train": items})
    splits = {split: _list_cityscapes(root, split) for split in ("train", "val")}
    twice = sorted({i.key for i in splits["train"]} & {i.key for i in splits["val"]})
    if twice:
        raise SourceError(
            f"{root}: {len(twice)} images stand in both train and val ({shown(twice)}): scores on "
            "val would be of images that were trained on; take them out of one of the two"
        )
    return Source(kind, root, splits)


def missing_images(source: Source) -> str:
    """How the data set differs in number from the published one; '' where it does not."""
    published = PUBLISHED_COUNTS[source.kind]
    total = sum(published.values())
    found = {split: len(items) for split, items in source.splits.items()}
    if source.kind == "synthia":  # whose val split is ours
        found = {"train": sum(found.values())}
    if found == published:
        return ""

    def told(counts: dict[str, int]) -> str:
        return ", ".join(f"{number:,} in {split}" for split, number in counts.items())

    return (
        f"{source.base}: labelled images: {told(found)}; the published data set has "
        f"{told(published)}"
        + (": a download or unpacking may have been cut short" * (sum(found.values()) < total))
    )


def shown(names: list[str]) -> str:
    """The first few of `names`, for a message."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


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
            problems.append(f"{len(keys)} {what} ({shown(keys)})")
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


def fingerprint(source: Source) -> str:
    """What a data set is, wherever it lies: xxh3_128 (32 hex digits) of names and sizes.

    Hashes the path relative to the layout's top folder and the size in bytes of every file that
    would be packed, in sorted order; contents are not read. How it is split does not matter.
    """
    items = [item for split in source.splits.values() for item in split]
    digest = xxhash.xxh3_128(source.kind.encode())
    paths = [path for item in items for path in (item.image_path, item.label_path)]
    for name, path in sorted((path.relative_to(source.base).as_posix(), path) for path in paths):
        digest.update(f"{name}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()
