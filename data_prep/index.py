"""`index.json` of a packed data set: which shards there are, what they hold, what made them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import xxhash
from pydantic import Field, ValidationError

from data_prep.atomic import write_json
from data_prep.config import PackConfig, StrictModel
from data_prep.listing import SourceKind

FORMAT_VERSION = 2
INDEX_NAME = "index.json"
# Dataset -> offset of its first byte in the file, and number of bytes.
Extents = Mapping[str, tuple[int, int]]


class ShardError(ValueError):
    """A packed data set is unfinished, damaged or made otherwise; the message is complete."""


class Recipe(StrictModel):
    """All that decides the bytes of a packed data set; every shard carries a copy."""

    source: SourceKind = Field(description="layout of the data set that was packed")
    fingerprint: str = Field(description="of the packed files, see data_prep.listing.fingerprint")
    opencv: str = Field(description="version of the library that decoded and resized")
    pack: PackConfig


class ShardEntry(StrictModel):
    """One shard file, complete and verified when it was written."""

    file: str = Field(description="file name inside the packed directory")
    bytes: int = Field(ge=1, description="size of the file")
    xxh3_64: str = Field(description="digest of the whole file, 16 hex digits")
    rest_xxh3_64: str = Field(
        description="digest of the bytes outside `pixels`: HDF5's metadata, keys, digests, ..."
    )
    pixels: dict[str, tuple[int, int]] = Field(
        description="dataset of pixels -> its offset in the file and its number of bytes; these "
        "have a digest for every band of rows"
    )
    keys: list[str] = Field(min_length=1, description="samples, in the order of the shard's rows")


class SplitStatistics(StrictModel):
    """What the packed pixels of a split are like."""

    label_pixels: dict[str, int] = Field(description="label id -> number of pixels, 0 left out")
    channel_mean: list[float] = Field(description="of red, green, blue; values in 0..1")
    channel_std: list[float] = Field(description="standard deviation, the same way")


class PackedIndex(StrictModel):
    """The content of `index.json`."""

    format_version: int
    recipe: Recipe
    splits: dict[str, list[ShardEntry]] = Field(description="split -> its shards, in order")
    statistics: dict[str, SplitStatistics] = Field(description="split -> its statistics")


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(text.encode())


def _update(digest: xxhash.xxh3_64, file: BinaryIO, begin: int, end: int | None) -> None:
    """Add the bytes begin..end-1 of a file to a digest; to its end where `end` is None."""
    file.seek(begin)
    while begin != end:
        block = file.read(4 << 20 if end is None else min(4 << 20, end - begin))
        if not block:
            break
        digest.update(block)
        begin += len(block)


def file_digest(path: Path) -> str:
    """xxh3_64 of a whole file, as 16 hex digits."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        _update(digest, file, 0, None)
    return digest.hexdigest()


def seal(path: Path) -> str:
    """Append the digest of all bytes, 8 bytes big-endian; returns the digest of the whole file.

    A file that was sealed can be checked by itself, without an index. HDF5 takes no notice of
    bytes after the end that it has recorded.
    """
    digest = xxhash.xxh3_64()
    with path.open("r+b") as file:
        _update(digest, file, 0, None)
        end = digest.digest()
        file.seek(0, 2)
        file.write(end)
    digest.update(end)
    return digest.hexdigest()


def sealed_digest(path: Path) -> str | None:
    """The digest of the whole file, or None where its last 8 bytes are not that of the others."""
    digest, size = xxhash.xxh3_64(), path.stat().st_size
    with path.open("rb") as file:
        _update(digest, file, 0, max(0, size - 8))
        end = file.read(8)
    if end != digest.digest():
        return None
    digest.update(end)
    return digest.hexdigest()


def rest_digest(path: Path, pixels: Extents) -> str:
    """xxh3_64 of a file's bytes outside the extents `pixels`, as 16 hex digits."""
    digest, begin = xxhash.xxh3_64(), 0
    with path.open("rb") as file:
        for offset, size in sorted(pixels.values()):
            _update(digest, file, begin, offset)
            begin = offset + size
        _update(digest, file, begin, None)
    return digest.hexdigest()


def shard_recipe(recipe: Recipe, split: str, number: int) -> dict[str, Any]:
    """What the attribute `recipe` of shard `number` of `split` must hold."""
    return {
        "format_version": FORMAT_VERSION,
        **recipe.model_dump(),
        "split": split,
        "shard": number,
    }


def shard_name(split: str, number: int) -> str:
    """File name of a shard: train-00003.h5."""
    return f"{split}-{number:05d}.h5"


def write_index(packed_dir: Path, index: PackedIndex) -> None:
    """Write `index.json`, which makes the packed set complete; atomic."""
    content = json.loads(index.model_dump_json())  # tuples as lists, as they are read again
    write_json(packed_dir / INDEX_NAME, {**content, "index_xxh3_64": _digest(content)})


def read_index(packed_dir: Path) -> PackedIndex:
    """Read and check `index.json`.

    Raises `ShardError` (missing, damaged, another version) and `OSError` (cannot be read).
    """
    path = packed_dir / INDEX_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShardError(
            f"{path}: not there: packing has not finished (or this is not a packed data set); "
            "run `python -m data_prep.pack` on it"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(content, dict):
        raise _damaged(path, f"expected a mapping, found {type(content).__name__}")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise ShardError(
            f"{path}: format_version {version!r}, expected {FORMAT_VERSION}; pack the data set "
            "again into another directory with this version of the code"
        )
    recorded = content.pop("index_xxh3_64", None)
    if recorded != _digest(content):
        raise _damaged(path, "its content does not match its own digest")
    try:
        return PackedIndex.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, what: str) -> ShardError:
    return ShardError(
        f"{path}: damaged or edited: {what}; delete it and run `python -m data_prep.pack` again "
        "(complete shards are kept)"
    )


def recipe_differences(found: dict[str, Any], expected: dict[str, Any], prefix: str = "") -> str:
    """What differs between two recipes, as `key: found X, expected Y; ...`; '' where nothing."""
    parts = []
    for key in sorted(found.keys() | expected.keys()):
        left, right = found.get(key), expected.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            inner = recipe_differences(left, right, f"{prefix}{key}.")
            parts += [inner] if inner else []
        elif left != right:
            parts.append(f"{prefix}{key}: found {left!r}, expected {right!r}")
    return "; ".join(parts)
