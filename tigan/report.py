"""Stage 'report': results.json and one self-contained page, of whatever is finished by now."""

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_prep import atomic
from data_prep.config import ClassSet, load_class_set
from tigan import (
    distributed,
    model_card,
    panels,
    report_choices,
    report_drawings,
    report_figures,
    report_summary,
    report_tables,
    report_text,
)
from tigan.config import ReportStage, StageJob, StageResult
from tigan.report_curves import StageCurves, read_curves
from tigan.report_figures import Drawing
from tigan.report_nodes import METHODS, STAGES, Node, read_nodes
from tigan.report_pairs import CONFIDENCE, differences, members_of, partners
from tigan.report_rows import (
    CONTROL,
    INFORMED,
    INPUTS,
    REAL,
    Group,
    all_rows,
    group_rows,
    headline,
    repeats,
    summarise,
)

RESULTS = "results.json"
PAGE = "index.html"
# Longer lists of stages are folded away.
_MOST_STAGES = 30


@dataclass(frozen=True)
class _Content:
    """What the nodes hold, read once: results, the groups that choices are made on, curves."""

    classes: ClassSet
    nodes: list[Node]
    groups: list[Group]
    chosen_on: list[Group]
    curves: list[StageCurves]
    names: dict[str, str]  # input -> what the images are called


def run(job: StageJob) -> StageResult:
    """Read all nodes, finished or not; write results.json, the page, model card and figures.

    In the place of an earlier report: its figures that are not drawn any more are removed. The
    first rank does it, on its own device. Raises `ConfigError` for an unknown class set;
    damaged inputs are named on the page instead.
    """
    science: ReportStage = job.science
    classes = load_class_set(science.classes)
    if not distributed.group().is_first:
        return StageResult([])
    nodes = read_nodes(job.inputs)
    curves, problems = read_curves(nodes)
    problems = [node.problem for node in nodes if node.problem] + problems
    content = _Content(
        classes,
        nodes,
        group_rows(nodes),
        group_rows(nodes, selection=True),
        curves,
        report_text.input_names(nodes),
    )
    problems += repeats(content.groups)
    drawings = report_drawings.draw_all(content.groups, content.chosen_on, classes, content.names)
    page = _page(science, content, drawings, problems)
    rows = all_rows(nodes)
    atomic.write_json(job.stage_dir / RESULTS, {"rows": rows})
    written = _write_figures(job.stage_dir, drawings, curves)
    card = model_card.text(science.title, classes, nodes, content.groups)
    atomic.write_text(job.stage_dir / model_card.FILE, card)
    atomic.write_text(job.stage_dir / PAGE, page)
    for path in (job.stage_dir / "figures").glob("*"):
        if path.suffix in (".svg", ".pdf") and f"figures/{path.name}" not in written:
            path.unlink()
    outputs = [PAGE, RESULTS, model_card.FILE, *written]
    return StageResult(outputs, _main_figures(content.groups, len(rows)))


def _main_figures(groups: list[Group], rows: int) -> dict[str, float | int | str]:
    """The number of rows, the mean mIoU of each method's headline, and the task loss's gain."""
    found: dict[str, float | int | str] = {"rows": rows}
    wanted = [("miou_synthia_val", "source_only", INPUTS[0])]
    for key, method, name in wanted + [(f"miou_{method}", method, REAL) for method in METHODS]:
        group = headline(groups, method, name)
        if group is not None and group.stats is not None:
            found[key] = group.stats.mean
    informed = headline(groups, INFORMED)
    change = summarise(differences(informed, groups)) if informed else None
    if change is not None:
        found["gain_task_informed"] = change.mean
    return found


def _write_figures(
    stage_dir: Path, drawings: dict[str, Drawing], curves: list[StageCurves]
) -> list[str]:
    """The results as SVG and PDF, the training curves as SVG; returns the relative paths."""
    written = []
    for name, drawing in drawings.items():
        atomic.write_text(stage_dir / f"figures/{name}.svg", drawing.svg)
        with atomic.replacing(stage_dir / f"figures/{name}.pdf") as temporary:
            temporary.write_bytes(drawing.pdf)
        written += [f"figures/{name}.svg", f"figures/{name}.pdf"]
    for stage in curves:
        for number, (title, svg) in enumerate(stage.panels, 1):
            safe = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")
            written.append(f"figures/{stage.stage}_{number}_{safe}.svg")
            atomic.write_text(stage_dir / written[-1], svg)
    return written


def _page(
    science: ReportStage, content: _Content, drawings: dict[str, Drawing], problems: list[str]
) -> str:
    """index.html."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=report_text.duration,
        full_name=report_text.full_name,
        svg=_svg_uri,
        dark=report_figures.dark,
    )
    nodes, groups = content.nodes, content.groups
    shown, panel_nodes = _panels(science.panels, content, problems)
    data = report_tables.data_table(nodes, content.classes, problems)
    return environment.get_template("report.html.j2").render(
        title=science.title,
        rendered=[node.name for node in nodes if node.stage.startswith("render_")],
        nodes=nodes,
        unfinished=[node.name for node in nodes if node.done is None],
        most_stages=_MOST_STAGES,
        problems=list(dict.fromkeys(problems)),
        figures=drawings,
        data=data,
        class_colours=content.classes.colours,
        panel_captions=panels.PANEL_CAPTIONS,
        panels=shown,
        panel_nodes=panel_nodes,
        curves=content.curves,
        configurations=_configurations(nodes),
        versions=_versions(nodes),
        **_results(content),
        **_choices(groups, content),
    )


def _results(content: _Content) -> dict[str, Any]:
    """The template's values for tables and figures of results."""
    groups, names, classes = content.groups, content.names, content.classes
    columns = report_tables.shown_columns(groups)
    return {
        "summary": report_summary.summary(groups, names),
        "conditions": report_summary.conditions(groups, classes, names),
        "convention": report_text.convention(classes),
        "input_names": names,
        "gap": report_tables.gap_table(groups, names),
        "methods": report_tables.methods_table(groups, names),
        "singles": report_tables.singles_table(groups, names),
        "gains": report_tables.gain_table(groups),
        "confidence": f"{100 * CONFIDENCE:.0f} %",
        "class_table": report_tables.class_table(columns, classes),
        "all_columns": len(columns) == sum(bool(group.members) for group in groups),
        "informed": headline(groups, INFORMED),
    }


def _choices(groups: list[Group], content: _Content) -> dict[str, Any]:
    """The template's values for what was chosen on what."""
    found = report_choices.weights_map(groups, content.chosen_on)
    return {
        "choices": report_choices.statements(groups, content.chosen_on, content.names),
        "verdict": report_choices.verdict(found, content.names) if found else None,
        "map_labels": found.labels if found else None,
        "map_replicates": found.replicates if found else None,
        "tried": report_choices.tried(groups, content.chosen_on),
    }


def _panels(
    count: int, content: _Content, problems: list[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """One line of pictures per shown val image, and which nodes they are of.

    The task-informed headline's first replicate, and those of the same seeds beside it.
    """
    informed = headline(content.groups, INFORMED)
    if informed is None or count == 0:
        return [], []
    member = informed.members[0]
    chosen = {"informed": member.node}
    for role, method in (("control", CONTROL), ("source", "source_only"), ("cyclegan", "cyclegan")):
        if found := partners(member, members_of(content.groups, method)):
            chosen[role] = found[0].node
    control = chosen.pop("control", None)
    if control is None:
        problems.append(
            f"panels: {member.node.name} has no finished control of the same seeds, draw and "
            "labels, by which pictures are chosen"
        )
        return [], []
    shown = panels.choose(member.node, control, count, problems)
    lines = panels.draw(shown, chosen, content.nodes, content.classes, problems)
    for line in lines:
        uris = {key: _data_uri(png, "image/png") for key, png in line["pictures"].items()}
        line["pictures"] = uris
    return lines, [node.name for node in chosen.values()]


def _svg_uri(svg: str) -> str:
    return _data_uri(svg.encode("utf-8"), "image/svg+xml")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _configurations(nodes: list[Node]) -> list[dict[str, Any]]:
    """Per stage: the science keys that all points share, and a table of those that differ."""
    found = []
    for stage in STAGES:
        points = {
            node.point or "base": _flat(node.config["science"])
            for node in nodes
            if node.stage == stage and node.config.get("science")
        }
        if not points:
            continue
        keys = list(dict.fromkeys(key for flat in points.values() for key in flat))
        values = {key: [flat.get(key, "–") for flat in points.values()] for key in keys}
        found.append(
            {
                "stage": stage,
                "points": list(points),
                "shared": {k: v[0] for k, v in values.items() if len(set(v)) == 1},
                "differing": {k: v for k, v in values.items() if len(set(v)) > 1},
            }
        )
    return found


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested keys as dotted ones, values as text."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _versions(nodes: list[Node]) -> dict[str, str]:
    """Package -> the versions that the finished stages ran with, as a rule one."""
    seen: dict[str, set[str]] = {}
    for node in nodes:
        for name, version in (node.done or {}).get("versions", {}).items():
            seen.setdefault(name, set()).add(str(version))
    return {name: ", ".join(sorted(versions)) for name, versions in sorted(seen.items())}
