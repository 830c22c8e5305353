"""The training curves of every stage, as SVG text."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tigan import metrics
from tigan.report_figures import INK, drawing, method_colour, svg_text
from tigan.report_nodes import Node
from tigan.report_text import METHOD_NAMES

STAGES = ("segmenter", "gan", "finetune", "finetune_segmenter", "adaptsegnet", "oracle")
# Those of the methods, in another order.
_POINT_COLOURS = (
    "#c8401e",
    "#8484f4",
    "#25a755",
    "#af54b5",
    "#d97c0f",
    "#7d7d7d",
    "#51754d",
    "#b583b2",
)
_LINE_STYLES = ("-", "--", ":", "-.")
# More points than there are colours are coloured by what they train.
MOST_POINTS = len(_POINT_COLOURS)
# At most so many dots along a curve; more lines are averaged in equal bins of images.
MOST_BINS = 150
_FEWEST_BINS = 20
# Which values share a panel, and what the panel is called.
_PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("curve", "mIoU on held-out images (%)", ("miou",)),
    ("train", "Cross-entropy", ("cross_entropy",)),
    ("train", "Adversarial (LSGAN), generators", ("lsgan_synthetic", "lsgan_real")),
    (
        "train",
        "Adversarial (LSGAN), discriminators",
        ("discriminator_synthetic", "discriminator_real"),
    ),
    ("train", "Adversarial, outputs on real images", ("adversarial",)),
    ("train", "Discriminator of outputs", ("discriminator",)),
    ("train", "Cycle consistency (L1)", ("cycle_real", "cycle_synthetic")),
    ("train", "Identity (L1)", ("identity_real", "identity_synthetic")),
    ("train", "Gradient norms at G(I)", ("gradient_lsgan", "gradient_task")),
    ("train", "Learning rate", ("learning_rate",)),
    ("speed", "Share of the time spent waiting for data", ("data_wait",)),
)


# The metrics lines of one point, and the colour of its curves.
_Run = tuple[list[dict[str, Any]], str]


@dataclass(frozen=True)
class StageCurves:
    """What the page shows of one stage: (title, SVG) panels, and (name, colour) of its legend.

    `bins` is the most dots of a curve, `points` the number of points that have curves.
    """

    stage: str
    panels: list[tuple[str, str]]
    legend: list[tuple[str, str]]
    bins: int
    points: int


def read_curves(nodes: list[Node]) -> tuple[list[StageCurves], list[str]]:
    """The curves of each training stage that has any; and what could not be read."""
    found, problems = [], []
    for stage in STAGES:
        runs = []
        for node in nodes:
            if node.stage != stage:
                continue
            try:
                lines = _lines(node)
            except (OSError, ValueError) as error:
                problems.append(f"{node.name}/metrics.jsonl: {error}")
                continue
            if lines:
                runs.append((node, lines))
        curves = _stage_curves(stage, runs)
        if curves.panels:
            found.append(curves)
    return found, problems


def _lines(node: Node) -> list[dict[str, Any]]:
    """The metrics of a node. Raises OSError, and ValueError for lines that are none."""
    lines = metrics.read(node.path / "metrics.jsonl")
    for line in lines:
        if not isinstance(line, dict) or not {"images", "kind", "values"} <= line.keys():
            raise ValueError(f"expected images, kind and values in each line, found {line!r:.60}")
    return lines


def _stage_curves(stage: str, runs: list[tuple[Node, list[dict[str, Any]]]]) -> StageCurves:
    """A colour for every point; of many points one for each kind of training."""
    bins = max(_FEWEST_BINS, min(MOST_BINS, MOST_BINS * MOST_POINTS // max(len(runs), 1)))
    if len(runs) > MOST_POINTS:
        kinds = list(dict.fromkeys(_method(node) for node, _ in runs))
        legend = [(METHOD_NAMES.get(kind, kind), method_colour(kind)) for kind in kinds]
        coloured = [(lines, method_colour(_method(node))) for node, lines in runs]
    else:
        colours = [point_colour(number) for number in range(len(runs))]
        names = [node.point or "base" for node, _ in runs]
        legend = list(zip(names, colours, strict=True))
        coloured = [(lines, colour) for (_, lines), colour in zip(runs, colours, strict=True)]
    return StageCurves(stage, _panels(coloured, bins), legend, bins, len(runs))


def point_colour(number: int) -> str:
    """The colour of the `number`-th point of a stage, in its curves and their legend."""
    return _POINT_COLOURS[number % len(_POINT_COLOURS)]


def _method(node: Node) -> str:
    """The method that a training node serves first."""
    if node.stage == "finetune":
        science = node.config.get("science", {}).get("finetune")
        alpha = science.get("alpha") if isinstance(science, dict) else None
        return "task_informed" if alpha else "cyclegan_matched"
    if node.stage == "finetune_segmenter":
        return "both" if node.point.startswith("translated") else "finetuned_segmenter"
    return {"segmenter": "source_only", "gan": "cyclegan"}.get(node.stage, node.stage)


def _panels(runs: list[_Run], bins: int) -> list[tuple[str, str]]:
    """(title, SVG) of each panel of one stage; values that no panel names get one each."""
    known = {(kind, name) for kind, _, names in _PANELS for name in names}
    seen: dict[tuple[str, str], None] = {}
    for lines, _ in runs:
        for line in lines:
            seen.update(dict.fromkeys((line["kind"], name) for name in line["values"]))
    panels = list(_PANELS) + [
        (kind, name.replace("_", " "), (name,)) for kind, name in seen if (kind, name) not in known
    ]
    drawn = []
    for kind, title, names in panels:
        present = [name for name in names if (kind, name) in seen]
        if present:
            drawn.append((title, _panel(runs, kind, title, present, bins)))
    return drawn


def _panel(runs: list[_Run], kind: str, title: str, names: list[str], bins: int) -> str:
    """One panel: a colour for every run, a line style for every value."""
    many = len(runs) > MOST_POINTS
    with drawing(3.5, 2.3) as (figure, axes):
        for lines, colour in runs:
            for style, name in zip(_LINE_STYLES, names, strict=False):
                images, values = _binned(lines, kind, name, bins)
                scale = 100.0 if name == "miou" else 1.0
                axes.plot(
                    images, values * scale, style, color=colour, marker="o" * (kind == "curve"),
                    markersize=1.5 if many else 2.5, linewidth=0.7 if many else 1.1,
                    alpha=0.6 if many else 1.0,
                )  # fmt: skip
        if len(names) > 1:
            for style, name in zip(_LINE_STYLES, names, strict=False):
                axes.plot([], [], style, color=INK, linewidth=1.1, label=_short(name))
            axes.legend(fontsize=7, handlelength=2.4)
        axes.set_title(title)
        axes.set_xlabel("images seen")
        axes.margins(x=0.02)
        return svg_text(figure)


def _short(name: str) -> str:
    """`lsgan_real` as `real`: the panel's title says the rest."""
    return name.partition("_")[2].replace("_", " ") or name


def _binned(lines: Iterable[Mapping[str, Any]], kind: str, name: str, bins: int) -> tuple[Any, Any]:
    """(images, values) of one value, f64 arrays; long training curves as means of `bins` bins."""
    found = [
        (line["images"], line["values"][name])
        for line in lines
        if line["kind"] == kind and name in line["values"]
    ]
    pairs = np.array(found, np.float64).reshape(-1, 2)
    if len(pairs) > bins:
        pairs = np.array([part.mean(axis=0) for part in np.array_split(pairs, bins)])
    return pairs[:, 0], pairs[:, 1]
