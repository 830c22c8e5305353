"""Stage 'report': results.json and one self-contained page, of whatever is finished by now."""

import base64
import re
from pathlib import Path
from typing import Any

import cv2
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_prep import atomic
from data_prep.config import ClassSet, load_class_set
from tigan import distributed, metrics, report_figures, report_tables
from tigan.config import ReportStage, StageJob, StageResult
from tigan.report_nodes import METHODS, STAGES, Node, read_nodes
from tigan.report_rows import INPUTS, REAL, Group, Stats, all_rows, group_rows, headline

RESULTS = "results.json"
PAGE = "index.html"
METHODS_FIGURE = "figures/methods.svg"
LABELS_FIGURE = "figures/labels.svg"
# Wider pictures are scaled down for the page: seven of them share a line.
MOST_PIXELS = 640
# Key of a panel column -> its caption; also their order.
PANEL_CAPTIONS = {
    "real": "Real image",
    "cyclegan_input": "Translated, CycleGAN",
    "informed_input": "Translated, task-informed",
    "source_prediction": "Prediction, source only",
    "cyclegan_prediction": "Prediction, CycleGAN",
    "informed_prediction": "Prediction, task-informed",
    "ground_truth": "Ground truth",
}


def run(job: StageJob) -> StageResult:
    """Read all nodes, finished or not; write results.json, figures/*.svg and index.html.

    Every rank reads, the first one writes. Raises `ConfigError` for an unknown class set; damaged
    inputs are named on the page instead.
    """
    science: ReportStage = job.science
    classes = load_class_set(science.classes)
    nodes = read_nodes(job.inputs)
    groups, rows = group_rows(nodes), all_rows(nodes)
    curves, problems = _curves(nodes)
    problems = [node.problem for node in nodes if node.problem] + problems
    figures = _figures(groups, curves)
    page = _page(science.title, classes, nodes, groups, curves, figures, problems)
    if distributed.group().is_first:
        atomic.write_json(job.stage_dir / RESULTS, {"rows": rows})
        for name, svg in figures.items():
            atomic.write_text(job.stage_dir / name, svg)
        atomic.write_text(job.stage_dir / PAGE, page)
    return StageResult([PAGE, RESULTS, *figures], _main_figures(groups, len(rows)))


def _main_figures(groups: list[Group], rows: int) -> dict[str, float | int | str]:
    """The number of rows, and the mean mIoU of the group that stands for each method."""
    found: dict[str, float | int | str] = {"rows": rows}
    wanted = [("miou_synthia_val", "source_only", INPUTS[0])]
    for key, method, name in wanted + [(f"miou_{method}", method, REAL) for method in METHODS]:
        group = headline(groups, method, name)
        if group is not None and group.stats is not None:
            found[key] = group.stats.mean
    return found


def _page(
    title: str,
    classes: ClassSet,
    nodes: list[Node],
    groups: list[Group],
    curves: list[dict[str, Any]],
    figures: dict[str, str],
    problems: list[str],
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
        duration=report_tables.duration, svg=_svg_uri, full_name=report_tables.full_name
    )
    names = report_tables.input_names(nodes)
    panels, shown = _panels(nodes, groups, problems)
    data = report_tables.data_table(nodes, classes, problems)
    return environment.get_template("report.html.j2").render(
        title=title,
        summary=report_tables.summary(groups, names),
        rendered=[node.name for node in nodes if node.stage.startswith("render_")],
        nodes=nodes,
        unfinished=[node.name for node in nodes if node.done is None],
        problems=problems,
        gap=report_tables.gap_table(groups, names),
        conditions=report_tables.conditions(groups, classes, names),
        methods_svg=figures.get(METHODS_FIGURE),
        labels_svg=figures.get(LABELS_FIGURE),
        class_table=report_tables.class_table(groups, classes),
        input_names=names,
        data=data,
        class_colours=classes.colours,
        panel_captions=PANEL_CAPTIONS,
        panels=panels,
        panel_nodes=shown,
        curves=curves,
        most_bins=report_figures.MOST_BINS,
        configurations=_configurations(nodes),
        versions=_versions(nodes),
    )


def _svg_uri(svg: str) -> str:
    return _data_uri(svg.encode("utf-8"), "image/svg+xml")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _figures(groups: list[Group], curves: list[dict[str, Any]]) -> dict[str, str]:
    """Path relative to the stage directory -> SVG text."""
    found = {
        METHODS_FIGURE: _methods_svg(groups),
        LABELS_FIGURE: _labels_svg(groups),
    }
    for stage in curves:
        for number, panel in enumerate(stage["panels"], 1):
            safe = re.sub(r"[^a-z0-9]+", "_", panel["title"].lower()).strip("_")
            found[f"figures/{stage['stage']}_{number}_{safe}.svg"] = panel["svg"]
    return {name: svg for name, svg in found.items() if svg}


def _methods_svg(groups: list[Group]) -> str:
    """The figure of the methods on real val; empty where nothing is finished."""
    lines = [
        (
            report_tables.full_name(group).replace(", α", ",\nα", 1),
            group.method,
            [member.miou for member in group.members],
        )
        for group in groups
        if group.input == REAL and group.members
    ]
    return report_figures.methods_figure(lines) if lines else ""


def _labels_svg(groups: list[Group]) -> str:
    """mIoU against the number of labels; empty where there is only one number."""
    series: dict[str, dict[int, Stats]] = {}
    for group in groups:
        if group.input == REAL and group.stats and isinstance(group.labels, int) and group.labels:
            settings = ", ".join(f"{key} = {value}" for key, value in group.settings.items())
            name = report_tables.weights_name(group) + (f"\n{settings}" if settings else "")
            series.setdefault(name, {})[group.labels] = group.stats
    if len({labels for one in series.values() for labels in one}) < 2:
        return ""
    references = []
    for method in METHODS[:-1]:
        group_or_none = headline(groups, method)
        if group_or_none is not None and group_or_none.stats is not None:
            references.append(
                (report_tables.METHOD_NAMES[method], method, group_or_none.stats.mean)
            )
    return report_figures.labels_figure(
        [
            report_figures.Series(name, sorted(one), [one[labels] for labels in sorted(one)])
            for name, one in series.items()
        ],
        references,
    )


def _panels(
    nodes: list[Node], groups: list[Group], problems: list[str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One line of pictures per shown val image, and which node each method's pictures are of."""
    chosen: dict[str, Node] = {}
    for role, method in (
        ("source", "source_only"),
        ("cyclegan", "cyclegan"),
        ("informed", "task_informed"),
    ):
        group = headline(groups, method)
        if group is not None:
            chosen[role] = group.members[0].node
    keys = list(dict.fromkeys(key for node in chosen.values() for key in node.panels))
    lines = []
    for key in keys:
        pictures = {}
        for column in PANEL_CAPTIONS:
            role, _, what = column.partition("_")
            if column in ("real", "ground_truth"):
                role, what = "source", column
            node = chosen.get(role)
            if node is not None and key in node.panels:
                path = node.path / "panels" / f"{node.panels.index(key)}_{what}.png"
                pictures[column] = _picture(path, f"{node.name}/panels/{path.name}", problems)
        lines.append({"key": key, "pictures": pictures})
    return lines, {role: node.name for role, node in chosen.items()}


def _picture(path: Path, name: str, problems: list[str]) -> str | None:
    """A picture as a data URI, scaled down where it is wide; None where it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        problems.append(f"{name}: {error.strerror}")
        return None
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        problems.append(f"{name}: not a picture")
        return None
    height, width = image.shape[:2]
    if width > MOST_PIXELS:
        size = (MOST_PIXELS, max(1, round(height * MOST_PIXELS / width)))
        # Averaging would make up colours between two classes.
        labels = path.stem.endswith(("prediction", "ground_truth"))
        image = cv2.resize(
            image, size, interpolation=cv2.INTER_NEAREST if labels else cv2.INTER_AREA
        )
        content = cv2.imencode(".png", image)[1].tobytes()
    return _data_uri(content, "image/png")


def _curves(nodes: list[Node]) -> tuple[list[dict[str, Any]], list[str]]:
    """Per training stage: its panels and the legend of its points; and what could not be read."""
    found, problems = [], []
    for stage in ("segmenter", "gan", "finetune"):
        runs = {}
        for node in nodes:
            if node.stage != stage:
                continue
            try:
                lines = metrics.read(node.path / "metrics.jsonl")
            except (OSError, ValueError) as error:
                problems.append(f"{node.name}/metrics.jsonl: {error}")
                continue
            if lines:
                runs[node.point or "base"] = lines
        panels = report_figures.curve_figures(list(runs.values()))
        if panels:
            legend = [(name, report_figures.point_colour(i)) for i, name in enumerate(runs)]
            found.append(
                {
                    "stage": stage,
                    "panels": [{"title": title, "svg": svg} for title, svg in panels],
                    "legend": legend,
                }
            )
    return found, problems


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
