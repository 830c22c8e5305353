"""Completion records: a stage's outputs count only under a valid `done.json`."""

import os
from pathlib import Path

import xxhash
from pydantic import Field, ValidationError

from data_prep import atomic
from data_prep.config import StrictModel
from pipeline import paths


class OutputRecord(StrictModel):
    """One output of a stage. A folder counts by its listing: see `digest_of`."""

    digest: str = Field(description="xxh3-128 of a file's bytes, or of a folder's listing")
    size: int = Field(ge=0, description="bytes; of a folder, the sum over its files")


class DoneRecord(StrictModel):
    """The content of `done.json`."""

    stage: str
    point: str
    science_hash: str = Field(description="what was to be learned, see pipeline.hashing")
    stage_version: int
    inputs: dict[str, str | None] = Field(
        description="role -> output digest of the input that was read; null: it was not finished "
        "(report only)"
    )
    output_digest: str = Field(description="over all outputs; what the next stages record")
    outputs: dict[str, OutputRecord] = Field(description="path relative to the stage directory")
    figures: dict[str, float | int | str] = Field(description="figures worth showing")
    versions: dict[str, str] = Field(description="of Python and the libraries that matter")
    seconds: float = Field(ge=0, description="wall time, over restarts")
    world_size: int = Field(ge=1, description="ranks of the last attempt")
    threads: int = Field(ge=1, description="threads per rank of the last attempt")
    restarts: int = Field(ge=0, description="attempts after the first")


def digest_of(path: Path) -> OutputRecord:
    """Digest and size of an output.

    A file counts by its bytes. A folder counts by its sorted listing (relative path and size):
    the rendered data sets are thousands of small files, made by a seeded function, and reading
    them all again would take longer than many a stage. Raises OSError where `path` is missing.
    """
    digest = xxhash.xxh3_128()
    if path.is_dir():
        listing = _listing(path)
        for name, size in listing:
            digest.update(f"{name}\0{size}\n".encode())
        return OutputRecord(digest=digest.hexdigest(), size=sum(size for _, size in listing))
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return OutputRecord(digest=digest.hexdigest(), size=path.stat().st_size)


def _listing(folder: Path) -> list[tuple[str, int]]:
    """Sorted (relative path, bytes) of all files under `folder`."""
    found: list[tuple[str, int]] = []
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.startswith("."):  # a file manager's, or a temporary file of a killed process
                continue
            path = Path(parent, name)
            found.append((path.relative_to(folder).as_posix(), path.stat().st_size))
    return sorted(found)


def combined(outputs: dict[str, OutputRecord]) -> str:
    """One digest over all outputs: what the stages that read them record."""
    together = "".join(f"{name}\0{outputs[name].digest}\n" for name in sorted(outputs))
    return xxhash.xxh3_128_hexdigest(together.encode())


def write_done(stage_dir: Path, record: DoneRecord) -> None:
    """Write `done.json`: the last thing that a stage does."""
    atomic.write_json(stage_dir / paths.DONE, record.model_dump())


def load_done(stage_dir: Path) -> DoneRecord | None:
    """`done.json` as it stands; None where it is missing or damaged.

    Raises OSError where it is there, but cannot be read now: the stage is not to be made anew.
    """
    try:
        text = (stage_dir / paths.DONE).read_text(encoding="utf-8")
        return DoneRecord.model_validate_json(text)
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, ValidationError):
        return None


def read_done(stage_dir: Path, expected_hash: str) -> DoneRecord | None:
    """The record of a finished stage; None unless it is valid for `expected_hash`.

    Valid means: the science hash fits and every output is there with its recorded size. The
    digests are not read again (a plan must take seconds also where the outputs are terabytes).
    Those of weights are, by the stages that read them (`damaged_weights`); shards carry digests
    of their own, which their reader checks.
    """
    record = load_done(stage_dir)
    if record is None or record.science_hash != expected_hash:
        return None
    try:
        if all(_size(stage_dir / name) == out.size for name, out in record.outputs.items()):
            return record
    except (FileNotFoundError, NotADirectoryError):
        pass
    return None


def damaged_weights(stage_dir: Path, record: DoneRecord) -> list[Path]:
    """The files of weights (*.pt) of a finished stage that are not as its record says."""
    return [
        stage_dir / name
        for name, output in record.outputs.items()
        if name.endswith(".pt") and digest_of(stage_dir / name) != output
    ]


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder. Raises OSError where it is missing."""
    return sum(size for _, size in _listing(path)) if path.is_dir() else path.stat().st_size
