"""The MPI communicator of a packing run, and protection from ranks that do not know each other."""

import os
import sys
import traceback
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


def abort_all(comm: Communicator, error: BaseException) -> None:
    """Print `error` and end every rank, exit code 1.

    The other ranks may already wait in a collective call; an exception on this one alone would
    leave them there until the time limit.
    """
    if isinstance(error, (ValueError, RuntimeError, OSError)):  # their messages say all
        print(f"error (rank {comm.rank}): {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
        sys.stderr.flush()
    comm.Abort(1)
