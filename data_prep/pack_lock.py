"""One packing per directory: a lock whose holder shows every few seconds that it is alive."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_prep.atomic import read_json, write_json
from data_prep.index import ShardError
from data_prep.lock import Holder, exclusive
from data_prep.processes import identity, is_alive

LOCK_NAME = ".packing.json"
_BEAT_S = 5.0
# Several beats: a loaded file server may show them late.
_SILENT_S = 30.0
_DYING_S = 2.0


@contextmanager
def packing(out_dir: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold `out_dir` for one packing. Raises `ShardError` where another is at work there.

    On this machine a dead holder is known at once. One of another machine is watched for half a
    minute: a packing that was killed with its node must not keep its successor out.
    """
    path = out_dir / LOCK_NAME

    def is_held(holder: Holder) -> bool:
        if holder.get("host") == identity()["host"]:
            return is_alive(holder) and _lives_on(holder)
        tell(
            f"{path}: held by process {holder.get('pid')} on {holder.get('host')}; waiting "
            f"{_SILENT_S:.0f} s to see whether it is alive"
        )
        return _shows_life(path, holder)

    def refused(holder: Holder) -> ShardError:
        return ShardError(
            f"{out_dir}: process {holder.get('pid')} on {holder.get('host')} is packing into it; "
            "wait for it or stop it, or choose another directory"
        )

    with exclusive(path, is_held, refused) as own, _heartbeat(path, own):
        yield


def _lives_on(holder: Holder) -> bool:
    """Whether a process of this machine is alive; a killed one may take a moment to be gone."""
    until = time.monotonic() + _DYING_S
    while is_alive(holder):
        if time.monotonic() >= until:
            return True
        time.sleep(0.1)
    return False


def _shows_life(path: Path, holder: Holder) -> bool:
    """Whether the lock changes while it is watched; its content, since clocks differ."""
    until = time.monotonic() + _SILENT_S
    while time.monotonic() < until:
        time.sleep(1.0)
        now = read_json(path)
        if now != holder:
            return bool(now)
    return False


@contextmanager
def _heartbeat(path: Path, own: Holder) -> Iterator[None]:
    """Rewrite the lock with a new count every few seconds, for as long as it is ours."""
    stop = threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(_BEAT_S) and read_json(path).get("token") == own["token"]:
            count += 1
            with suppress(OSError):  # the packing itself will tell what is wrong
                write_json(path, {**own, "beat": count})

    thread = threading.Thread(target=beat, daemon=True, name="packing lock")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
