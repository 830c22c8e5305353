"""The stop flag: a signal sets it, the ranks agree on it at a step boundary, then all save."""

import os
import signal
from types import FrameType

from tigan import distributed

# Slurm's preemption and time limit come as SIGTERM and SIGUSR2, Ctrl-C as SIGINT.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)

_requested = False
_owner = 0


class Preempted(Exception):
    """The stage was asked to stop and has saved its state; start it again to go on."""


def install() -> None:
    """Let the signals set the flag of this process (and of no forked child)."""
    global _owner, _requested
    _owner, _requested = os.getpid(), False
    for number in SIGNALS:
        signal.signal(number, _request)


def _request(number: int, frame: FrameType | None) -> None:
    global _requested
    # Slurm signals every process of the step; a forked loader worker inherits this handler.
    if os.getpid() == _owner:
        _requested = True


def ignore() -> None:
    """Ignore the signals from now on: in loader workers, and while the result is recorded."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def agreed() -> bool:
    """Whether any rank was asked to stop; the same answer on all ranks. A collective."""
    return bool(distributed.agree_max(int(_requested)))
