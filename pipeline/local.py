"""The local engine: runs the plan's nodes as processes of this machine, several side by side."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from data_prep.config import REPO_ROOT
from pipeline import paths, progress
from pipeline.dag import priorities
from pipeline.display import Display
from pipeline.nodes import Node
from pipeline.plan import Plan, freeze, is_finished
from pipeline.profiles import LocalProfile, Resources, find_mpiexec
from pipeline.stopping import EXIT_PREEMPTED

_SAVE_S = 60.0
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What an outer launcher may have left in the environment: a stage would take itself for a rank.
_FOREIGN = (
    *("PMI", "OMPI_", "SLURM_", "TIGAN_", "TORCHELASTIC_"),
    *("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"),
)

Command = Callable[[Node, Resources, Path], list[str]]


@dataclass
class Job:
    """A node at work."""

    node: Node
    process: subprocess.Popen[bytes]
    log: Path
    slots: int
    started: float


@dataclass
class Outcome:
    """How the run ended: node names, and the log of each failure."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, Path] = field(default_factory=dict)
    interrupted: bool = False


def stage_command(node: Node, resources: Resources, stage_dir: Path) -> list[str]:
    """The command that runs one node: one process, MPI ranks for packing, else torchrun."""
    module = ["-m", "pipeline.stages", str(stage_dir)]
    if resources.ranks == 1:
        return [sys.executable, *module]
    if node.stage.startswith("pack_"):
        mpiexec = find_mpiexec()
        assert mpiexec is not None, "the plan makes sure of it"
        return [mpiexec, "-n", str(resources.ranks), sys.executable, *module]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc-per-node", str(resources.ranks), *module]


def stage_environment(threads: int) -> dict[str, str]:
    """The environment of a stage: our code on the path, its threads, no outer launcher's ranks."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
    before = env.get("PYTHONPATH")
    env["PYTHONPATH"] = f"{REPO_ROOT}{os.pathsep}{before}" if before else str(REPO_ROOT)
    env["OMP_NUM_THREADS"] = env["MKL_NUM_THREADS"] = str(threads)
    env["PYTHONUNBUFFERED"] = "1"
    # torchrun kills its ranks so many seconds after a stop; they need the time to save.
    env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "120"
    return env


class Scheduler:
    """Starts nodes as slots and inputs allow, watches them, stops them all on a signal."""

    def __init__(
        self,
        plan: Plan,
        profile: LocalProfile,
        display: Display,
        command: Command = stage_command,
        poll_s: float = 0.1,
    ) -> None:
        self._plan, self._profile, self._display = plan, profile, display
        self._command, self._poll_s = command, poll_s
        order = priorities(plan.graph, plan.todo)
        self._pending = sorted(plan.todo, key=lambda name: -order[name])
        self._running: dict[str, Job] = {}
        self._finished = {name for name, s in plan.states.items() if s.kind == "done"}
        self._outcome = Outcome()
        self._restarts: dict[str, int] = {}
        self._stops = 0  # signals received
        self._stops_served = 0

    def run(self) -> Outcome:
        """Run all there is to run; returns when nothing is running any more."""
        with self._signals():
            while True:
                self._serve_stops()
                self._reap()
                if not self._stops:
                    self._start_ready()
                if not self._running:
                    break
                self._display.tick({n: self._folder(n) for n in self._running})
                time.sleep(self._poll_s)
        self._outcome.interrupted = self._stops > 0
        return self._outcome

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Count Ctrl-C, SIGTERM and the terminal's end instead of dying of them."""

        def count(number: int, frame: FrameType | None) -> None:
            self._stops += 1

        before = {number: signal.signal(number, count) for number in _STOPS}
        try:
            yield
        except BaseException:
            self._end_all()  # ours is the fault: let them save, and leave no orphans
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end_all(self) -> None:
        """Ask the running stages to save and stop; kill those that do not in time."""
        for job in self._running.values():
            _signal_group(job.process.pid, signal.SIGTERM)
        end = time.monotonic() + _SAVE_S
        for job in self._running.values():
            try:
                job.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                _kill(job.process.pid)

    def _serve_stops(self) -> None:
        """First signal: the stages save and stop. Second: they are killed."""
        stops = min(self._stops, 2)
        if stops == self._stops_served:
            return
        self._stops_served = stops
        for job in self._running.values():
            if stops == 1:
                _signal_group(job.process.pid, signal.SIGTERM)
            else:
                _kill(job.process.pid)
        if stops == 1:
            self._display.line("stopping: the running stages save first (Ctrl-C again to kill)")

    def _start_ready(self) -> None:
        """Start pending nodes, the longest path first, as long as slots are free."""
        for name in list(self._pending):
            if not self._is_ready(name):
                continue
            resources = self._profile.resources(self._plan.graph[name].stage)
            used = sum(job.slots for job in self._running.values())
            if used + resources.slots > self._profile.parallel:
                return  # smaller ones behind it must not keep it waiting for ever
            self._pending.remove(name)
            self._start(name, resources)

    def _is_ready(self, name: str) -> bool:
        """Inputs are done; the report waits for any end of everything else."""
        if self._plan.graph[name].stage == "report":
            return not self._running and all(
                other == name or self._is_blocked(other) for other in self._pending
            )
        return self._finished.issuperset(self._plan.graph[name].inputs.values())

    def _is_blocked(self, name: str) -> bool:
        """Whether an input, near or far, has failed."""
        inputs = self._plan.graph[name].inputs.values()
        return any(i in self._outcome.failed or self._is_blocked(i) for i in inputs)

    def _folder(self, name: str) -> Path:
        return paths.stage_dir(self._plan.run_dir, name)

    def _start(self, name: str, resources: Resources) -> None:
        """Start one node in a session of its own, which a terminal's Ctrl-C does not reach."""
        node = self._plan.graph[name]
        folder = freeze(self._plan, node, self._profile)
        log = paths.log(folder, progress.attempts(folder) + 1)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(node, resources, folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=stage_environment(resources.threads),
            )
        # A new driver must see it, should this one be killed before the stage says so itself.
        progress.note_started(folder, process.pid)
        self._running[name] = Job(node, process, log, resources.slots, time.monotonic())
        self._display.started(name)

    def _reap(self) -> None:
        """Take note of the nodes that have ended."""
        for name, job in list(self._running.items()):
            code = job.process.poll()
            if code is not None:
                del self._running[name]
                self._end(name, job, code)

    def _end(self, name: str, job: Job, code: int) -> None:
        """Sort an ended node into done, to be started again, stopped, or failed."""
        folder = self._folder(name)
        seconds = time.monotonic() - job.started
        if is_finished(self._plan, job.node):
            self._finished.add(name)
            self._outcome.done.append(name)
            self._display.ended(name, "done", seconds)
            return
        state = progress.read_state(folder).get("state")
        if self._stops:
            self._display.ended(name, "stopped", seconds)
        elif (code == EXIT_PREEMPTED or state == "preempted") and self._may_restart(name):
            self._pending.insert(0, name)
            self._display.ended(name, "stopped by a signal; it goes on", seconds)
        else:
            if state != "failed":
                progress.write_state(folder, "failed", _meaning(code))
            self._outcome.failed[name] = job.log
            self._display.ended(name, f"FAILED ({_meaning(code)})", seconds)

    def _may_restart(self, name: str) -> bool:
        """Count a restart; False once there were too many."""
        self._restarts[name] = self._restarts.get(name, 0) + 1
        return self._restarts[name] <= self._profile.max_restarts


def _meaning(code: int) -> str:
    """An exit code in words."""
    if code == 0:
        return "ended without a valid done.json"
    if code == EXIT_PREEMPTED:
        return "stopped by signals too often"
    if code < 0:
        hint = "; out of memory?" if -code == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    return f"exit code {code}"


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Signal the process group that `pid` leads; nothing where it has ended."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def _kill(pid: int) -> None:
    """SIGKILL the group of `pid` and all below it: torchrun puts its ranks in sessions."""
    below = _descendants(pid)
    _signal_group(pid, signal.SIGKILL)
    for child in below:
        _signal_group(child, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """The process ids below `pid`, from /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found, front = [], [pid]
    while front:
        front = [child for parent in front for child in children.get(parent, [])]
        found += front
    return found
