"""Write-then-rename: a file or folder under its final name is always complete."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def fsync_path(path: Path) -> None:
    """Force a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path, *, before_rename: Callable[[], None] | None = None) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success fsync it and rename it to `path`.

    On an exception the temporary file is removed and `path` is left as it was. `before_rename`
    may raise to forbid the rename (a process that lost its right to write, for example).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Node and process id keep two writers of one path from sharing a temporary file; the suffix
    # is kept, since some writers choose the format by it.
    writer = f"{os.uname().nodename}.{os.getpid()}"
    temporary = path.with_name(f".{path.stem}.{writer}.tmp{path.suffix}")
    try:
        yield temporary
        fsync_path(temporary)
        if before_rename is not None:
            before_rename()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically; keys keep their order.

    NaN and infinities are refused (ValueError): they are not JSON, and a browser stops at them.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, *, must_read: bool = False) -> dict[str, Any]:
    """A small JSON file of ours; empty where it is missing or damaged.

    With `must_read`, for where an empty answer would have work done again: raises OSError where
    the file is there, but cannot be read now.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    except OSError:
        if must_read:
            raise
        return {}
    return value if isinstance(value, dict) else {}
