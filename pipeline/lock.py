"""One driver per run directory: a lock file that names its holder.

Not flock: it is often off on GPFS and Lustre, and says nothing about who holds it.
"""

import json
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import paths
from pipeline.done import read_json
from pipeline.progress import identity, is_alive


class LockError(RuntimeError):
    """Another driver is at work in the run directory; the message is complete."""


def holder(run_dir: Path) -> dict[str, Any] | None:
    """The driver that holds the run directory; None where there is none, or it has died."""
    content = read_json(run_dir / paths.LOCK)
    return content if content and is_alive(content) else None


@contextmanager
def driver_lock(run_dir: Path) -> Iterator[None]:
    """Hold the run directory. Raises `LockError` where a living driver does.

    The lock of a process of this machine that has died is taken over.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / paths.LOCK
    own = {**identity(), "token": uuid.uuid4().hex}
    while not _try_create(path, own):
        content = read_json(path)
        if content and is_alive(content):
            raise LockError(
                f"{run_dir}: the driver with process id {content['pid']} on {content['host']} is "
                f"at work here; wait for it, stop it with --cancel, or choose another --run-dir "
                f"(if that machine is gone, delete {path})"
            )
        _remove_stale(path, content)
    try:
        yield
    finally:
        if read_json(path) == own:
            path.unlink()


def _try_create(path: Path, content: dict[str, Any]) -> bool:
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


def _remove_stale(path: Path, content: dict[str, Any]) -> None:
    """Remove a dead driver's lock, unless another driver was quicker and it is that one's now."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if read_json(aside) != content:
        os.link(aside, path)
    aside.unlink()


def cancel(run_dir: Path) -> str:
    """Ask the driver of `run_dir` to stop; returns what to tell. Raises `LockError` elsewhere."""
    content = holder(run_dir)
    if content is None:
        return f"{run_dir}: no driver is at work here"
    if content["host"] != identity()["host"]:
        raise LockError(
            f"{run_dir}: its driver runs on {content['host']} (process id {content['pid']}); give "
            "--cancel there"
        )
    os.kill(content["pid"], signal.SIGTERM)
    return f"{run_dir}: asked the driver (process id {content['pid']}) to save and stop"
