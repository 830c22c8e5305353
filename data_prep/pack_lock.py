"""One packing per directory: a lock whose holder shows every few seconds that it is alive.

It keeps two packings from doing the same work. That the shards are right does not hang on it: each
is written under a name of its own and renamed, and two packings of one recipe make the same bytes.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_prep.lock import Holder, exclusive
from data_prep.processes import identity, is_alive

LOCK_NAME = ".packing.json"
_BEAT_S = 5.0
# Many beats: a loaded file server may hold one up, or show it late.
_SILENT_S = 60.0
_DYING_S = 5.0


class PackingElsewhereError(RuntimeError):
    """Another packing is at work in the directory. No wrong input: later it may be gone."""


@contextmanager
def packing(out_dir: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold `out_dir` for one packing. Raises `PackingElsewhereError` where another is at work.

    On this machine a dead holder is known at once. One of another machine is watched for a
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

    def refused(holder: Holder) -> PackingElsewhereError:
        return PackingElsewhereError(
            f"{out_dir}: process {holder.get('pid')} on {holder.get('host')} is packing into it; "
            "wait for it or stop it, or choose another directory"
        )

    with exclusive(path, is_held, refused) as own, _heartbeat(path, own):
        yield


def _lives_on(holder: Holder) -> bool:
    """Whether a process of this machine stays alive; a killed one may take a moment to be gone."""
    until = time.monotonic() + _DYING_S
    while is_alive(holder):
        if time.monotonic() >= until:
            return True
        time.sleep(0.1)
    return False


def _read(path: Path) -> Holder | None:
    """The lock's content, {} where there is none, None where it cannot be read just now."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):  # a file server's hiccup, or caught while it was rewritten
        return None
    return value if isinstance(value, dict) else None


def _shows_life(path: Path, holder: Holder) -> bool:
    """Whether the lock changes while it is watched; its content, since clocks differ."""
    until = time.monotonic() + _SILENT_S
    while time.monotonic() < until:
        time.sleep(1.0)
        now = _read(path)
        if now is not None and now != holder:
            return bool(now)
    return False


@contextmanager
def _heartbeat(path: Path, own: Holder) -> Iterator[None]:
    """Rewrite the lock with a new count every few seconds, for as long as it is ours."""
    stop = threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(_BEAT_S):
            now = _read(path)
            if now is not None and now.get("token") != own["token"]:
                return
            if now is not None:
                count += 1
                # In place, which needs no space: a full disk must not look like a dead process.
                with suppress(OSError), path.open("r+", encoding="utf-8") as file:
                    file.write(json.dumps({**own, "beat": f"{count:09d}"}))

    thread = threading.Thread(target=beat, daemon=True, name="packing lock")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_BEAT_S)  # not for ever: the file system may hang
