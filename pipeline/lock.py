"""One driver per run directory: a lock file that names its holder."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.atomic import read_json
from data_prep.lock import exclusive
from data_prep.processes import identity, is_alive
from pipeline import paths


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
    path = run_dir / paths.LOCK

    def refused(content: dict[str, Any]) -> LockError:
        return LockError(
            f"{run_dir}: the driver with process id {content['pid']} on {content['host']} is "
            f"at work here; wait for it, stop it with --cancel, or choose another --run-dir "
            f"(if that machine is gone, delete {path})"
        )

    with exclusive(path, is_alive, refused):
        yield


def cancel(run_dir: Path) -> str:
    """Ask the driver of `run_dir` to stop; returns what to tell. Raises `LockError` elsewhere."""
    content = holder(run_dir)
    if content is None:
        return f"{run_dir}: no driver is at work here"
    if content["host"] != identity()["host"]:
        raise LockError(
            f"{run_dir}: its driver runs on {content['host']} (process id {content['pid']}); give "
            f"--cancel there (if that machine is gone, delete {run_dir / paths.LOCK})"
        )
    os.kill(content["pid"], signal.SIGTERM)
    return f"{run_dir}: asked the driver (process id {content['pid']}) to save and stop"
