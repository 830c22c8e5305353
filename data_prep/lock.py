"""A lock file that names its holder; the lock of a process that has died is taken over.

Not flock: it is often off on GPFS and Lustre, and says nothing about who holds it.
"""

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_prep.atomic import read_json
from data_prep.processes import identity

Holder = dict[str, Any]


@contextmanager
def exclusive(
    path: Path, is_held: Callable[[Holder], bool], refused: Callable[[Holder], Exception]
) -> Iterator[Holder]:
    """Hold the lock file `path`; yields its content: an `identity` with a token of its own.

    Raises `refused(holder)` where there is a lock and `is_held(holder)` says that it counts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = {**identity(), "token": uuid.uuid4().hex}
    while not _try_create(path, own):
        holder = read_json(path, must_read=True)
        if holder and is_held(holder):
            raise refused(holder)
        _remove_stale(path, holder)
    try:
        yield own
    finally:
        if read_json(path).get("token") == own["token"]:
            path.unlink()


def _try_create(path: Path, content: Holder) -> bool:
    """Create the lock with its content in one step (a hard link); False where there is one."""
    temporary = path.with_name(f".{path.name}.{content['token']}")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def _remove_stale(path: Path, holder: Holder) -> None:
    """Remove a dead process's lock, unless another was quicker and it is that one's now."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if read_json(aside).get("token") != holder.get("token"):
        with suppress(FileExistsError):  # somebody holds it again
            os.link(aside, path)
    aside.unlink()
