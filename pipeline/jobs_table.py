"""The tables of a run on Slurm: what would be submitted, and how far what was submitted is."""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import batches, paths, progress, slurm
from pipeline.arrange import Batch
from pipeline.batches import BatchRecord
from pipeline.nodes import Graph, Node
from pipeline.plan import Plan
from pipeline.profiles import SlurmLayout, SlurmProfile
from pipeline.slurm import Ended, Queued
from pipeline.stale import State
from pipeline.status import align

_LISTED = 12  # points of one stage and state that are listed one by one
_NAME_WIDTH = 22


def submission_table(plan: Plan, todo: Sequence[Batch], profile: SlurmProfile) -> list[str]:
    """One row per batch: jobs, shape, time limit, estimated node-hours, what it waits for."""
    rows = [["stage", "jobs", "nodes x tasks x cpus", "limit", "node-h", "waits for"]]
    total, is_bound = 0.0, False
    for batch in todo:
        layout = profile.layout(batch.stage)
        hours = [_node_hours(plan, unit, layout) for unit in batch.units]
        known = [estimate for estimate in hours if estimate is not None]
        longest = len(batch.units) * layout.nodes * layout.time_min / 60
        total += sum(known) if len(known) == len(hours) else longest
        is_bound |= len(known) < len(hours)
        shown = f"~{sum(known):.3g}" if len(known) == len(hours) else f"<={longest:.3g}"
        tasks = layout.points_per_node if layout.points_per_node > 1 else layout.tasks_per_node
        shape = f"{layout.nodes} x {tasks} x {layout.cpus_per_task}"
        waits = sorted({f"{term.kind} {_target(term.on.batch, todo)}" for term in batch.after})
        jobs, limit = str(len(batch.units)), progress.duration(60 * layout.time_min)
        rows.append([batch.stage, jobs, shape, limit, shown, ", ".join(waits)])
    word = "up to" if is_bound else "about"
    return [
        *align(rows),
        f"{word} {total:.3g} node-hours: ~ from images_per_s in the profile (assumed until "
        "measured), <= if every job took its whole time limit, once",
    ]


def _target(number: int, todo: Sequence[Batch]) -> str:
    return todo[number].stage if number >= 0 else "a live job"


def _node_hours(plan: Plan, unit: Sequence[str], layout: SlurmLayout) -> float | None:
    """Node-hours of a job by its images and the profile's rate; None where not known."""
    images = [_images(plan.graph[name]) for name in unit]
    if layout.images_per_s is None or None in images:
        return None
    return layout.nodes * max(int(i or 0) for i in images) / layout.images_per_s / 3600


def _images(node: Node) -> int | None:
    """Images that a training stage goes through."""
    own = node.science.get("segmenter" if node.stage == "oracle" else node.stage)
    return own.get("images") if isinstance(own, dict) else None


@dataclass(frozen=True)
class Row:
    """One node's state."""

    name: str
    stage: str
    state: str
    note: str = ""
    job: str = ""
    images: str = "-"
    eta: str = "-"
    saved: str = "-"
    restarts: int = 0


@dataclass(frozen=True)
class Seen:
    """What Slurm said, at one time."""

    queue: Mapping[str, Queued]
    ended: Mapping[str, Ended] | None  # None: no accounting


def ask(records: Sequence[BatchRecord]) -> Seen:
    """Ask Slurm for the jobs of a run: two commands, whatever their number.

    Raises `SlurmError` where the queue cannot be read.
    """
    ids = [record.job for record in records if record.job is not None]
    return Seen(slurm.queue(), slurm.accounting(ids))


def rows(
    graph: Graph,
    states: Mapping[str, State],
    run_dir: Path,
    records: Sequence[BatchRecord],
    seen: Seen,
) -> list[Row]:
    """One row per node."""
    latest = batches.latest_jobs(records)
    in_queue = batches.live_jobs(records, seen.queue)
    live = {name: seen.queue[job] for name, (job, _) in in_queue.items()}
    stuck = _stuck(graph, states, live, latest)
    found = []
    for name, node in graph.items():
        job = latest[name][0] if name in latest else ""
        ended = (seen.ended or {}).get(job)
        state, note = _state(run_dir / name, states[name], live.get(name), ended, job)
        if state == "ended":
            note += f" (log: {paths.slurm_dir(run_dir) / job}.log)"
        if name in stuck:
            state, note = "blocked", f"can never run: needs {stuck[name]}"
        found.append(_row(node, run_dir / name, state, note, job, live.get(name)))
    return found


def _stuck(
    graph: Graph,
    states: Mapping[str, State],
    live: Mapping[str, Queued],
    submitted: Collection[str],
) -> dict[str, str]:
    """Submitted nodes that can never run -> the input that has ended without being done."""
    stuck: dict[str, str] = {}
    for name, node in graph.items():
        if states[name].kind == "done" or node.stage == "report" or name not in submitted:
            continue
        if name in live and (not live[name].is_pending or live[name].restarts):
            continue  # it has begun, so its inputs were there
        for above in node.inputs.values():
            if states[above].kind != "done" and (above not in live or above in stuck):
                stuck[name] = stuck.get(above, above)
                break
    return stuck


def _state(
    folder: Path, state: State, queued: Queued | None, ended: Ended | None, job: str
) -> tuple[str, str]:
    """A word for the state, and a note."""
    if state.kind == "done":
        return "done", ""
    record = progress.read_state(folder)
    if queued is not None:
        if not queued.is_pending:
            return "running", "" if queued.state == "RUNNING" else f"Slurm: {queued.state}"
        what = "requeued" if queued.restarts else "queued"
        return what, queued.reason if queued.reason not in ("None", "Dependency") else ""
    if state.kind == "stale":
        return "stale", state.reason
    if not job:
        return "waiting", "" if not progress.is_running(folder) else "at work by --partition local"
    if record.get("state") == "failed":
        log = paths.log(folder, max(1, progress.attempts(folder)))
        return "failed", f"{record.get('message')} (log: {log})"
    if ended is not None and ended.state not in ("COMPLETED", "PENDING", "RUNNING"):
        return "ended", f"Slurm: {ended.state}; the driver's command goes on from here"
    return "ended", "its job is gone and left no result; the driver's command goes on from here"


def _row(node: Node, folder: Path, state: str, note: str, job: str, queued: Queued | None) -> Row:
    reading = progress.last_reading(folder) if state not in ("stale", "waiting") else None
    is_at_work = state == "running"
    return Row(
        name=node.name,
        stage=node.stage,
        state=state,
        note=note,
        job=job if queued is not None else "",
        images=f"{_short(reading.images)}/{_short(reading.total)}" if reading else "-",
        eta=progress.duration(reading.eta_s) if reading and is_at_work else "-",
        saved=progress.duration(_checkpoint_age(folder)) if state != "done" else "-",
        restarts=max(0, progress.attempts(folder) - 1),
    )


def _short(images: int) -> str:
    """`980`, `12.3k`, `356k`, `1.92M`."""
    if images < 10_000:
        return str(images)
    return f"{images / 1e3:.3g}k" if images < 999_500 else f"{images / 1e6:.3g}M"


def _checkpoint_age(folder: Path) -> float | None:
    """Seconds since the newest checkpoint was written; None without any."""
    manifests = list((folder / "checkpoints").glob("*/manifest.json"))
    times = [path.stat().st_mtime for path in manifests]
    return max(0.0, time.time() - max(times)) if times else None


def status_lines(found: Sequence[Row], records: Sequence[BatchRecord], seen: Seen) -> list[str]:
    """The table, notes, and a summary; no line of the table over 80 characters."""
    listed, summed = _fold(found)
    table = [["stage", "state", "job", "images", "ETA", "saved", "re"]]
    for row in listed:
        name = row.name if len(row.name) <= _NAME_WIDTH else f"{row.name[:9]}…{row.name[-12:]}"
        cells = [row.job, row.images, row.eta, row.saved, str(row.restarts)]
        table.append([name, row.state, *cells])
    lines = align(table)
    lines += [f"{stage}: {count} more points {state}" for (stage, state), count in summed.items()]
    lines += [f"{row.name}: {row.state}: {row.note}" for row in listed if row.note]
    return [*lines, _summary(found, records, seen)]


def _fold(found: Sequence[Row]) -> tuple[list[Row], Counter[tuple[str, str]]]:
    """The rows to list, and how many more there are by stage and state."""
    listed: list[Row] = []
    seen: Counter[tuple[str, str]] = Counter()
    more: Counter[tuple[str, str]] = Counter()
    for row in found:
        key = (row.stage, row.state)
        seen[key] += 1
        if seen[key] <= _LISTED:
            listed.append(row)
        else:
            more[key] += 1
    return listed, more


def _summary(found: Sequence[Row], records: Sequence[BatchRecord], seen: Seen) -> str:
    counts = Counter(row.state for row in found)
    text = ", ".join(f"{count} {state}" for state, count in counts.items())
    if seen.ended is None:
        return f"{text}; node-hours: not known (no accounting on this cluster)"
    own = {record.job for record in records}
    hours = sum(e.node_hours for job, e in seen.ended.items() if job.partition("_")[0] in own)
    return f"{text}; {hours:.3g} node-hours used"


def is_active(found: Collection[Row]) -> bool:
    """Whether anything may still change by itself."""
    return any(row.state in ("running", "queued", "requeued") for row in found)
