"""How a stage is asked to stop: the signals, the exit code, and the plain handlers."""

import os
import signal
from types import FrameType

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: stopped, to be started again
# Slurm's preemption and time limit come as SIGTERM and SIGUSR2, Ctrl-C as SIGINT.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Stopped(BaseException):
    """A signal asked this stage to stop. No Exception: nothing in between may swallow it."""


def stop_on_signals() -> None:
    """Let a signal end this process by `Stopped`, and its forked children at once."""
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked helper process: nothing to save
            os._exit(EXIT_PREEMPTED)
        raise Stopped

    for number in SIGNALS:
        signal.signal(number, stop)


def accept_signals() -> None:
    """Receive now what came while this process was being started (see `pipeline.task`)."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignore_signals() -> None:
    """What is being recorded must not be cut off."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
