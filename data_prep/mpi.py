"""The MPI communicator of a packing run, and protection from ranks that do not know each other."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

# What launchers tell a process about the number of ranks: PMI (MPICH, ParaStation) and Open MPI.
LAUNCHER_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


class Communicator(Protocol):
    """The few calls of mpi4py's communicator that packing needs."""

    rank: int
    size: int

    def bcast(self, value: Any, root: int = 0) -> Any: ...
    def gather(self, value: Any, root: int = 0) -> list[Any] | None: ...
    def Abort(self, errorcode: int = 0) -> None: ...
    def isend(self, value: Any, dest: int, tag: int = 0) -> Any: ...
    def iprobe(self, source: int = -1, tag: int = -1) -> bool: ...
    def recv(self, buf: Any = None, source: int = -1, tag: int = -1) -> Any: ...


class Alone:
    """A world of one process, for machines without an MPI library."""

    rank = 0
    size = 1

    def bcast(self, value: Any, root: int = 0) -> Any:
        """`value` itself."""
        return value

    def gather(self, value: Any, root: int = 0) -> list[Any]:
        """A list of the one value."""
        return [value]

    def Abort(self, errorcode: int = 0) -> None:
        """End the process."""
        sys.exit(errorcode)

    def isend(self, value: Any, dest: int, tag: int = 0) -> Any:
        """There is nobody to send to."""
        raise AssertionError(f"rank {dest} of 1")

    def iprobe(self, source: int = -1, tag: int = -1) -> bool:
        """Nobody sends anything."""
        return False

    def recv(self, buf: Any = None, source: int = -1, tag: int = -1) -> Any:
        """Nobody sends anything."""
        raise AssertionError("nothing to receive")


def expected_ranks() -> tuple[str, int]:
    """The number of ranks that the launcher started, and the variable that says so."""
    for name in (*LAUNCHER_SIZES, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        if os.environ.get(name, "").isdigit():
            return name, int(os.environ[name])
    return "", 1


def world() -> Communicator:
    """The world communicator; `Alone` where there is no MPI and only one process was started.

    Raises `RuntimeError` where MPI's size is not the number of ranks that were started. Under an
    srun whose MPI plug-in does not fit the MPI library, every rank is rank 0 of 1: each would
    believe itself alone and write all the shards.
    """
    name, expected = expected_ranks()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no MPI library
        if expected > 1:
            raise RuntimeError(
                f"mpi4py cannot be used ({error}), but {name}={expected} ranks were started; "
                "install mpi4py with an MPI library, or start one rank only"
            ) from None
        return Alone()
    comm: Communicator = MPI.COMM_WORLD
    if comm.size != expected and name:
        raise RuntimeError(
            f"MPI counts {comm.size} ranks, but {name}={expected} were started: the launcher and "
            "the MPI library do not fit. Under srun choose its plug-in, such as --mpi=pmi2 for "
            "MPICH and ParaStationMPI or --mpi=pmix for Open MPI; to run one process inside an "
            f"allocation, start it with `srun -n 1` or unset {name}"
        )
    return comm


class Tally:
    """Counts what all ranks have done, on rank 0, without making any of them wait.

    `report(done, total)` is called on rank 0, at most every `every_s` seconds and at the end.
    """

    _TAG = 7

    def __init__(
        self,
        comm: Communicator,
        total: int,
        report: Callable[[int, int], None] | None,
        every_s: float = 1.0,
    ) -> None:
        self._comm, self._total, self._report, self._every_s = comm, total, report, every_s
        self._done = 0
        self._last = -1
        self._told = time.monotonic()
        self._sent: list[Any] = []

    def add(self, count: int) -> None:
        """Count on this rank."""
        if self._comm.rank:
            # Small messages: they are on their way at once, and nobody waits for them.
            self._sent = [request for request in self._sent if not request.test()[0]]
            self._sent.append(self._comm.isend(count, 0, self._TAG))
            return
        self._done += count
        self._drain()
        if time.monotonic() - self._told >= self._every_s:
            self._tell()

    def finish(self) -> None:
        """Wait until all is counted; every rank calls it once it has added all of its own."""
        if self._comm.rank:
            for request in self._sent:
                request.wait()
            return
        while self._done < self._total:
            self._drain()
            if time.monotonic() - self._told >= self._every_s:
                self._tell()
            time.sleep(0.01)  # MPI's own waiting would use a whole core
        if self._last != self._total:
            self._tell()

    def _drain(self) -> None:
        while self._comm.iprobe(tag=self._TAG):
            self._done += self._comm.recv(tag=self._TAG)

    def _tell(self) -> None:
        self._told, self._last = time.monotonic(), self._done
        if self._report is not None:
            self._report(self._done, self._total)


def abort_all(
    comm: Communicator,
    error: BaseException,
    record_end: Callable[[BaseException], int] | None = None,
) -> None:
    """Tell of `error` and end every rank, with the exit code of `record_end` or 1.

    The other ranks may already wait in a collective call; an exception on this one alone would
    leave them there until the time limit.
    """
    code = 1
    if record_end is not None:
        code = record_end(error)
    elif isinstance(error, (ValueError, RuntimeError, OSError)):  # their messages say all
        print(f"error (rank {comm.rank}): {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(0.5)  # the launcher forwards what was printed, unless the end overtakes it
    comm.Abort(code)
