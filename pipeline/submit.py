"""The Slurm engine: hold a plan against the queue, cancel what cannot run, submit the rest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import batches, launch, paths, progress, slurm
from pipeline.arrange import Batch, arrange
from pipeline.batches import BatchRecord
from pipeline.plan import Plan, freeze
from pipeline.profiles import SlurmProfile
from pipeline.slurm import Queued


@dataclass
class Reconciled:
    """What is to be done about the jobs that Slurm still has."""

    keep: dict[str, str] = field(default_factory=dict)  # node -> job
    cancel: dict[str, str] = field(default_factory=dict)  # job -> why
    problems: list[str] = field(default_factory=list)


def reconcile(
    plan: Plan, records: Sequence[BatchRecord], queue: Mapping[str, Queued]
) -> Reconciled:
    """Which jobs of earlier commands go on, and which are to be cancelled and submitted anew.

    A job that waits is kept if it was submitted for what its nodes are now, and if each input
    that is not done has a job that is kept, for which it waits. A running one is never cancelled,
    but for a report of which parts are only being submitted.
    """
    live = batches.live_jobs(records, queue)
    jobs = {name: job for name, (job, _) in live.items() if name in plan.todo}
    waits = _Waits(plan, jobs)
    found = Reconciled()
    while True:  # a job that several points share is kept for all of them, or for none
        before = dict(found.cancel)
        found = _reconcile_jobs(plan, live, queue, jobs, waits, before)
        if found.cancel == before:
            break
    _reconcile_report(plan, live, found)
    _drop_unplanned(plan, live, queue, found)
    for job, queued in queue.items():
        token = queued.comment.removeprefix("tigan:")
        if any(record.token == token and record.job is None for record in records):
            base = job.partition("_")[0]
            found.cancel[base] = "submitted by a driver that was killed before it noted the id"
    return found


def _reconcile_jobs(
    plan: Plan,
    live: Mapping[str, tuple[str, BatchRecord]],
    queue: Mapping[str, Queued],
    jobs: Mapping[str, str],
    waits: "_Waits",
    cancelled: Mapping[str, str],
) -> Reconciled:
    """One round over the nodes that have a job; `cancelled` is what the round before found."""
    found = Reconciled(cancel=dict(cancelled))
    for name in plan.todo:
        job = jobs.get(name)
        if job is None or plan.graph[name].stage == "report" or job in found.cancel:
            continue
        if queue[job].state == "COMPLETING":  # cancelled, failed, or about to be requeued
            found.problems.append(f"{name}: job {job} is just ending; try again in a minute")
            continue
        why = _misfit(plan, name, live[name][1], queue[job], found.keep, waits)
        if not why:
            found.keep[name] = job
        elif queue[job].is_pending:
            found.cancel[job] = f"{name}: {why}"
        else:
            found.problems.append(
                f"{name}: job {job} is at work on it as it was before ({why}); wait for its end, "
                "or stop it with --cancel, then give this command again"
            )
    return found


class _Waits:
    """What the jobs in the queue wait for, as nodes; each answer is computed once."""

    def __init__(self, plan: Plan, jobs: Mapping[str, str]) -> None:
        self._above: dict[str, set[str]] = {}
        for name in plan.todo:  # in the graph's order: inputs first
            inputs = {i for i in plan.graph[name].inputs.values() if i in jobs}
            self._above[name] = inputs.union(*(self._above[i] for i in inputs))
        self._nodes: dict[str, set[str]] = {}
        for name, job in jobs.items():
            for identity in {job, job.partition("_")[0]}:
                self._nodes.setdefault(identity, set()).add(name)
        self._known: dict[str, set[str]] = {}

    def nodes(self, dependency: str) -> set[str]:
        """The nodes that a `--dependency` waits for, themselves or through others."""
        if dependency not in self._known:
            direct = set[str]().union(*(self._nodes.get(i, set()) for i in _ids(dependency)))
            self._known[dependency] = direct.union(*(self._above[name] for name in direct))
        return self._known[dependency]


def _misfit(
    plan: Plan,
    name: str,
    record: BatchRecord,
    queued: Queued,
    keep: Mapping[str, str],
    waits: _Waits,
) -> str:
    """Why a job that Slurm has is not the one that is needed; empty where it is."""
    if record.hashes[name] != plan.graph[name].hash:
        return "its configuration changed"
    if plan.states[name].kind == "stale":
        return plan.states[name].reason
    if not queued.is_pending or queued.restarts:  # it began, so its inputs were there
        return ""
    if queued.reason.startswith("DependencyNeverSatisfied"):
        return "an input failed"
    inputs = [i for i in plan.graph[name].inputs.values() if plan.states[i].kind != "done"]
    if anew := [above for above in inputs if above not in keep]:
        return f"its input {anew[0]} is submitted anew"
    if missed := [above for above in inputs if above not in waits.nodes(record.dependency)]:
        return f"it does not wait for {missed[0]}"
    return ""


def _ids(dependency: str) -> list[str]:
    """The job ids of `afterok:1,aftercorr:3`."""
    return [part for term in dependency.split(",") for part in term.split(":")[1:]]


def _reconcile_report(
    plan: Plan, live: Mapping[str, tuple[str, BatchRecord]], found: Reconciled
) -> None:
    """The report waits for all that is under way: with new jobs, it is submitted anew."""
    for name in (n for n in plan.todo if plan.graph[n].stage == "report"):
        if name not in live:
            continue
        job, record = live[name]
        others = {n for n in plan.todo if n != name}
        waits_for = {job.partition("_")[0] for job in _ids(record.dependency)}
        is_whole = all(
            other in found.keep and found.keep[other].partition("_")[0] in waits_for
            for other in others
        )
        if is_whole and record.hashes[name] == plan.graph[name].hash:
            found.keep[name] = job
        else:
            found.cancel[job] = f"{name}: what it shows is still being submitted"


def _drop_unplanned(
    plan: Plan,
    live: Mapping[str, tuple[str, BatchRecord]],
    queue: Mapping[str, Queued],
    found: Reconciled,
) -> None:
    """Cancel what waits for points that the configuration no longer has."""
    planned = {job for name, (job, _) in live.items() if name in plan.graph}
    for name, (job, _) in live.items():
        if job in planned:
            continue
        if queue[job].is_pending:
            found.cancel[job] = f"{name}: no longer in the configuration"
        else:
            plan.warnings.append(
                f"{name}: job {job} runs on, though no longer in the configuration"
            )


def problems(plan: Plan, profile: SlurmProfile, account: str | None) -> list[str]:
    """What stands in the way of submitting, besides the plan's own problems."""
    found = []
    if account is None and profile.account_required:
        found.append(
            f"no account: {profile.partition} charges one; give --account NAME, or set account in "
            "the profile, or $SBATCH_ACCOUNT"
        )
    if "%" in str(plan.run_dir.resolve()):
        found.append(
            f"--run-dir: {plan.run_dir.resolve()}: Slurm reads '%' in paths as a pattern; choose "
            "a path without it"
        )
    if not profile.environment_path.is_file():
        found.append(
            f"environment: no file {profile.environment_path}; expected a shell file in slurm/, or "
            "a path to one"
        )
    return found


def partition_problems(plan: Plan, profile: SlurmProfile) -> list[str]:
    """An unknown partition; jobs that are larger or longer than it allows."""
    try:
        limits = slurm.partition_limits(profile.partition)
    except slurm.SlurmError as error:
        return [str(error)]
    found = []
    for stage in dict.fromkeys(plan.graph[name].stage for name in plan.todo):
        layout = profile.layout(stage)
        if limits.time_min is not None and layout.time_min > limits.time_min:
            found.append(
                f"{stage}: time_min {layout.time_min} is over the limit of partition "
                f"{profile.partition}, {limits.time_min}; lower it in the profile (longer "
                "trainings are requeued and go on)"
            )
        if limits.nodes is not None and layout.nodes > limits.nodes:
            found.append(
                f"{stage}: {layout.nodes} nodes are more than partition {profile.partition} gives "
                f"a job ({limits.nodes}); lower nodes in the profile"
            )
    return found


def strangers(plan: Plan, records: Sequence[BatchRecord], queue: Mapping[str, Queued]) -> list[str]:
    """Nodes on which something is at work that was not submitted by this driver.

    A process of `--partition local`, or a job of slurm/stage.sbatch.
    """
    own = {job for record in records for job in record.job_ids().values()}
    found = []
    for name in plan.todo:
        folder = plan.run_dir / name
        job = progress.read_state(folder).get("job")
        is_gone = job is not None and (job in own or job not in queue)
        if is_gone or not progress.is_running(folder):
            continue
        how = "--partition local" if job is None else "slurm/stage.sbatch"
        found.append(
            f"{name}: {progress.named(folder)} is at work on it, started by {how}; wait for its "
            f"end (if it is gone, delete {folder / paths.STATE})"
        )
    return found


def arranged(plan: Plan, profile: SlurmProfile, keep: Mapping[str, str]) -> list[Batch]:
    """The batches of what is to be submitted."""
    return arrange(
        plan.graph,
        [name for name in plan.todo if name not in keep],
        keep,
        lambda stage: profile.layout(stage).points_per_node,
        profile.max_array,
    )


def submit_all(
    plan: Plan,
    todo: Sequence[Batch],
    profile: SlurmProfile,
    account: str | None,
    say: Callable[[str], None],
) -> int:
    """Submit the batches in order; returns how many jobs. Raises `SlurmError`.

    Each id is recorded before the next submission: killed at any point, the driver finds on its
    next start what it had submitted, and by the token also a job whose id it never learnt.
    """
    ids: list[str] = []
    number = batches.next_number(batches.load_batches(plan.run_dir))
    for batch in todo:
        for name in batch.nodes:
            freeze(plan, plan.graph[name], profile)
        after = ",".join(term.text(ids, todo) for term in batch.after)
        token = batches.new_token(number + len(ids), batch.stage)
        record = launch.record_of(plan, batch, profile, token, after)
        batches.write_batch(plan.run_dir, record)
        job = launch.submit(record, profile, account, plan.run_dir)
        batches.write_batch(plan.run_dir, record.model_copy(update={"job": job}))
        ids.append(job)
        say(f"{batch.stage}: job {job}{_size(batch)}" + (f", {after}" if after else ""))
    return sum(len(batch.units) for batch in todo)


def _size(batch: Batch) -> str:
    """` (array of 20, 80 points)`; empty for a job of one node."""
    if len(batch.nodes) == 1:
        return ""
    array = f"array of {len(batch.units)}" if batch.is_array else ""
    points = f"{len(batch.nodes)} points" if len(batch.nodes) != len(batch.units) else ""
    return f" ({', '.join(part for part in (array, points) if part)})"


def cancel_run(run_dir: Path) -> list[str]:
    """Cancel all jobs of a run that Slurm still has; returns their ids. Raises `SlurmError`."""
    live = jobs_in_queue(run_dir)
    slurm.cancel(sorted({job.partition("_")[0] for job in live}))
    return live


def jobs_in_queue(run_dir: Path) -> list[str]:
    """The ids of all jobs of a run that Slurm still has. Raises `SlurmError`."""
    records, queue = batches.load_batches(run_dir), slurm.queue()
    tokens = {batches.comment(record.token) for record in records}
    own = {job: record for record in records for job in record.job_ids().values()}
    return [
        job
        for job, queued in queue.items()
        if queued.comment in tokens or (job in own and batches.is_job_of(own[job], queued))
    ]
