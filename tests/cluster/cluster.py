"""The private Slurm test cluster as pytest fixtures use it: start, stop, crash a node, wait."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_UP = Path(__file__).with_name("up.sh")
_DOWN = Path(__file__).with_name("down.sh")
# Debian keeps the daemons in /usr/sbin, which an ordinary user's PATH may lack.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "unshare")
_ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db")
_POLL_S = 0.1


@dataclass(frozen=True)
class Cluster:
    """Four virtual nodes, jwb0001 to jwb0004, whose state, logs and sockets lie in `folder`."""

    folder: Path
    conf: Path

    def stop(self) -> None:
        """End every job and daemon of this cluster; harmless when it is stopped already."""
        _script(_DOWN, str(self.folder))

    def kill_node(self, name: str) -> None:
        """Let a node crash: its slurmd and its jobs' processes get SIGKILL.

        Slurm counts the node as lost, and requeues its job, some 10 to 20 s after SlurmdTimeout.
        """
        _script(_DOWN, str(self.folder), "--node", name)

    def start_node(self, name: str) -> None:
        """Start a killed node again and wait until Slurm counts it as up.

        Only once the loss was noticed: Slurm believes that the job on a node which is back
        before that still runs.
        """
        _script(_UP, str(self.folder), "--node", name)

    def freeze_node(self, name: str) -> None:
        """Let a node hang, slurmd and jobs: to Slurm it is as lost, but its processes live."""
        for pid in self._processes(name):
            os.kill(pid, signal.SIGSTOP)

    def thaw_node(self, name: str, *, daemon: bool) -> None:
        """Let what hangs there go on; without its `daemon`, Slurm cannot reach the jobs."""
        for pid, command in self._processes(name).items():
            if daemon or command != "slurmd":
                os.kill(pid, signal.SIGCONT)

    def _processes(self, name: str) -> dict[int, str]:
        """Process id -> command, of all that runs on a node."""
        below: dict[int, dict[int, str]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                pid, _, rest = path.read_text().partition(" (")
                command, _, fields = rest.rpartition(") ")
                below.setdefault(int(fields.split()[1]), {})[int(pid)] = command
        found: dict[int, str] = {}
        front = [int((self.folder / "run" / f"{name}.pid").read_text())]
        while front:
            children = below.get(front.pop(), {})
            found |= children
            front += children
        return found

    def env(self) -> dict[str, str]:
        """os.environ for clients of this cluster, without the variables of an outer job."""
        return _without_slurm() | {"SLURM_CONF": str(self.conf)}

    def run(self, *command: str) -> str:
        """Run a Slurm command on this cluster and return what it prints."""
        return _checked(command, self.env())

    def wait(self, job_id: str | int, states: set[str], timeout_s: float) -> str:
        """Wait until the job is in one of `states` (names such as COMPLETED), and return which."""
        deadline = time.monotonic() + timeout_s
        while True:
            state = self._state(str(job_id))
            if state in states:
                return state
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        queue = self.run("squeue", "--states=all")
        log = (self.folder / "log" / "slurmctld.log").read_text().splitlines()[-20:]
        raise TimeoutError(
            f"job {job_id} is {state} after {timeout_s} s, expected one of {sorted(states)}\n"
            + "\n".join([queue, *log])
        )

    def _state(self, job_id: str) -> str:
        for word in self.run("scontrol", "--oneliner", "show", "job", job_id).split():
            if word.startswith("JobState="):
                return word.removeprefix("JobState=")
        raise ValueError(f"scontrol show job {job_id} printed no JobState")


def missing(*, accounting: bool = False) -> str:
    """Why no cluster can be started here, in words for pytest.skip; empty if one can."""
    programs = _PROGRAMS + (_ACCOUNTING_PROGRAMS if accounting else ())
    absent = [name for name in programs if not shutil.which(name, path=_PATH)]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, slurmdbd, mariadb-server)"
    as_user = [] if os.geteuid() == 0 else ["--map-current-user", "--keep-caps"]
    spaces = ["unshare", *as_user, "--mount", "--uts", "--ipc", "--pid", "--mount-proc", "--fork"]
    mount = ["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    tried = subprocess.run([*spaces, *mount], capture_output=True, text=True)
    return f"name spaces are refused here: {tried.stderr.strip()}" if tried.returncode else ""


def start(
    folder: Path,
    *,
    accounting: bool = False,
    min_job_age: int = 300,
    slurmd_timeout: int = 15,
    kill_wait: int = 10,
) -> Cluster:
    """Start a cluster in `folder` (made if absent) and wait until its four nodes are idle."""
    options = [
        *(["--accounting"] if accounting else []),
        *("--min-job-age", str(min_job_age)),
        *("--slurmd-timeout", str(slurmd_timeout)),
        *("--kill-wait", str(kill_wait)),
    ]
    _script(_UP, str(folder), *options)
    folder = folder.resolve()
    return Cluster(folder, folder / "slurm.conf")


def _without_slurm() -> dict[str, str]:
    outer = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_")
    return {name: value for name, value in os.environ.items() if not name.startswith(outer)}


def _script(*command: Path | str) -> None:
    _checked(tuple(map(str, command)), _without_slurm())


def _checked(command: tuple[str, ...], env: dict[str, str]) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with exit code {done.returncode}\n"
            f"{done.stdout}{done.stderr}"
        )
    return done.stdout
