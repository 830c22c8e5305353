"""Tables: the plan, the state of a run, and the rows of its report. Only reads."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep import atomic
from pipeline import paths, progress
from pipeline.nodes import Graph
from pipeline.plan import Plan
from pipeline.profiles import Profile
from pipeline.stale import State


def plan_table(plan: Plan, profile: Profile) -> list[str]:
    """What a run would do: node, state, hash, ranks, what it waits for."""
    rows = [["node", "state", "hash", "ranks", "waits for"]]
    for name, node in plan.graph.items():
        state = plan.states[name]
        word = state.kind if name in plan.todo or state.kind == "done" else "not asked for"
        text = f"{word} ({state.reason})" if state.reason else word
        if name not in plan.todo:
            rows.append([name, text, (node.hash or "-")[:10], "", ""])
            continue
        resources = profile.resources(node.stage)
        ranks = str(resources.ranks)
        waits = [i for i in node.inputs.values() if i in plan.todo]
        shown = ", ".join(waits) if len(waits) <= 3 else f"{len(waits)} nodes"
        rows.append([name, text, (node.hash or "-")[:10], ranks, shown])
    return align(rows)


def stage_state(folder: Path, state: State) -> str:
    """done, running, preempted, failed, waiting or stale."""
    if state.kind in ("done", "stale"):
        return state.kind
    record = progress.read_state(folder)
    if record.get("state") == "failed":
        return "failed"
    if progress.is_running(folder):
        return "running"
    # 'running' of a process that is gone: it was killed, and goes on from its checkpoint.
    return "preempted" if record.get("state") in ("running", "preempted") else "waiting"


def status_table(graph: Graph, states: Mapping[str, State], run_dir: Path) -> list[str]:
    """One row per node: stage, state, process, images/total, rate, ETA, restarts."""
    rows = [["stage", "state", "job", "images", "rate", "ETA", "restarts"]]
    for name in graph:
        folder = paths.stage_dir(run_dir, name)
        word = stage_state(folder, states[name])
        reading = progress.last_reading(folder) if word != "stale" else None
        job = str(progress.read_state(folder).get("pid", "")) if word == "running" else ""
        images = f"{reading.images}/{reading.total}" if reading else "-"
        rate = f"{reading.rate:.3g}/s" if reading and reading.rate > 0 else "-"
        eta = progress.duration(reading.eta_s) if reading and word == "running" else "-"
        restarts = str(max(0, progress.attempts(folder) - 1))
        rows.append([name, word, job, images, rate, eta, restarts])
    return align(rows)


def failures(graph: Graph, states: Mapping[str, State], run_dir: Path) -> list[str]:
    """One line for each failed node: its error and its last log."""
    lines = []
    for name in graph:
        folder = paths.stage_dir(run_dir, name)
        if stage_state(folder, states[name]) == "failed":
            attempt = max(1, progress.attempts(folder))
            message = progress.read_state(folder).get("message", "")
            lines.append(f"{name}: {message} (log: {paths.log(folder, attempt)})")
    return lines


_GROUP = (
    *("input", "method", "segmenter", "labels", "alpha", "gamma"),
    *("settings", "uint8", "classes"),
)


def results_table(run_dir: Path) -> list[str]:
    """The report's rows, mean and deviation of the mIoU over seeds and draws; [] without any.

    Swept settings without a column of their own stand at the end of a line.
    """
    scored = atomic.read_json(paths.report_dir(run_dir) / "results.json").get("rows", [])
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in scored:
        row["settings"] = " ".join(f"{k}={v}" for k, v in (row.get("settings") or {}).items())
        groups.setdefault(tuple(row.get(key) for key in _GROUP), []).append(row["miou"])
    if not groups:
        return []
    rows = [["input", "method", "labels", "alpha", "gamma", "mIoU %", "runs", "classes", ""]]
    for key, scores in groups.items():
        values = dict(zip(_GROUP, key, strict=True))
        deviation = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        rows.append(
            [
                str(values["input"]),
                str(values["method"]) + ("" if values["uint8"] in (True, None) else " (float)"),
                *(
                    "-" if values[k] is None else f"{values[k]:g}"
                    for k in ("labels", "alpha", "gamma")
                ),
                f"{100 * statistics.fmean(scores):.1f}{deviation}",
                str(len(scores)),
                str(values["classes"]),
                values["settings"],
            ]
        )
    return align(rows)


def align(rows: list[list[str]]) -> list[str]:
    """Rows as lines of aligned columns. Never wrapped: they are searched and cut in log files."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
