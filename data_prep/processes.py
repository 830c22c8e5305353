"""Who a process is: what locks and records name, so that others can tell whether it still runs."""

import os
import socket
from pathlib import Path
from typing import Any


def process_start(pid: int) -> int:
    """When a process of this machine started, in ticks since boot; 0 where it cannot be told.

    With the process id it names a process for good: ids alone are used again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0
    # Fields after the command's closing parenthesis: state is the third, starttime the 22nd.
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


def identity(pid: int | None = None) -> dict[str, Any]:
    """Host, pid and start of a process of this machine; of this one by default.

    `job` is there in a Slurm job only: whether that runs, the queue tells.
    """
    job = {"job": os.environ["TIGAN_JOB"]} if pid is None and "TIGAN_JOB" in os.environ else {}
    pid = os.getpid() if pid is None else pid
    return {"host": socket.gethostname(), "pid": pid, "process_start": process_start(pid), **job}


def is_alive(process: dict[str, Any]) -> bool:
    """Whether the process of an `identity` still runs; one of another host is taken to."""
    if process.get("host") != socket.gethostname():
        return bool(process.get("host"))
    pid = process.get("pid")
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return process_start(pid) == process.get("process_start")
