"""`index.json` of a packed data set: which shards there are, what they hold, what made them."""

import json
from pathlib import Path
from typing import Any

import xxhash
from pydantic import Field, ValidationError

from data_prep.atomic import write_json
from data_prep.config import PackConfig, StrictModel
from data_prep.listing import SourceKind

FORMAT_VERSION = 1
INDEX_NAME = "index.json"


class ShardError(ValueError):
    """A packed data set is unfinished, damaged or made otherwise; the message is complete."""


class Recipe(StrictModel):
    """All that decides the bytes of a packed data set; every shard carries a copy."""

    source: SourceKind = Field(description="layout of the data set that was packed")
    fingerprint: str = Field(description="of the packed files, see data_prep.listing.fingerprint")
    pack: PackConfig


class ShardEntry(StrictModel):
    """One shard file, complete and verified when it was written."""

    file: str = Field(description="file name inside the packed directory")
    bytes: int = Field(ge=1, description="size of the file")
    xxh3_64: str = Field(description="digest of the whole file, 16 hex digits")
    keys: list[str] = Field(min_length=1, description="samples, in the order of the shard's rows")


class PackedIndex(StrictModel):
    """The content of `index.json`."""

    format_version: int
    recipe: Recipe
    splits: dict[str, list[ShardEntry]] = Field(description="split -> its shards, in order")


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(text.encode())


def file_digest(path: Path) -> str:
    """xxh3_64 of a whole file, as 16 hex digits."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(8 << 20):
            digest.update(block)
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
    content = index.model_dump()
    write_json(packed_dir / INDEX_NAME, {**content, "index_xxh3_64": _digest(content)})


def read_index(packed_dir: Path) -> PackedIndex:
    """Read and check `index.json`. Raises `ShardError` (missing, damaged, another version)."""
    path = packed_dir / INDEX_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShardError(
            f"{path}: not there: packing has not finished (or this is not a packed data set); "
            "run `python -m data_prep.pack` on it"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
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
