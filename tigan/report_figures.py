"""The report's figures as SVG text: same numbers, same bytes. No pyplot, so no global state."""

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from tigan.report_rows import Stats

METHOD_COLOURS = {
    "source_only": "#6b6b6b",
    "cyclegan": "#3a76af",
    "cyclegan_matched": "#7fb3d9",
    "task_informed": "#c8553d",
}
_OTHER = "#8a6fa8"
# Okabe and Ito's palette: told apart with any colour vision.
_POINT_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "tigan",
    "svg.fonttype": "path",
    "text.parse_math": False,  # names are text, also with a dollar sign in them
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.facecolor": "white",
}
_LINE_STYLES = ("-", "--", ":", "-.")
# At most so many dots along a curve; more lines are averaged in equal bins of images.
MOST_BINS = 150
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
    ("train", "Cycle consistency (L1)", ("cycle_real", "cycle_synthetic")),
    ("train", "Identity (L1)", ("identity_real", "identity_synthetic")),
    ("train", "Gradient norms at G(I)", ("gradient_lsgan", "gradient_task")),
    ("train", "Learning rate", ("learning_rate",)),
    ("speed", "Share of the time spent waiting for data", ("data_wait",)),
)


@dataclass(frozen=True)
class Series:
    """mIoU in [0, 1] against the number of labels."""

    name: str
    labels: list[int]
    stats: list[Stats]


def point_colour(number: int) -> str:
    """The colour of the `number`-th point of a stage, in its curves and their legend."""
    return _POINT_COLOURS[number % len(_POINT_COLOURS)]


def method_colour(method: str) -> str:
    """The colour of a method, `#rrggbb`."""
    return METHOD_COLOURS.get(method, _OTHER)


@contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of one panel, `width` x `height` inches, in the report's style."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    """The figure as SVG text, without date or version. Called inside `_drawing`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().decode("utf-8")


def methods_figure(lines: list[tuple[str, str, list[float]]]) -> str:
    """Dots for single replicates, a bar for their mean: (label, method, mIoU values in [0, 1])."""
    with _drawing(6.4, 0.7 + 0.36 * len(lines)) as (figure, axes):
        for place, (_, method, values) in enumerate(lines):
            percent = [100 * value for value in values]
            colour = method_colour(method)
            axes.barh(place, float(np.mean(percent)), 0.62, color=colour, alpha=0.3, linewidth=0)
            axes.plot(percent, [place] * len(percent), "o", color=colour, markersize=4.5, alpha=0.9)
        axes.set_yticks(range(len(lines)), labels=[label for label, _, _ in lines])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(left=0)
        axes.set_xlabel("mIoU (%)")
        return _svg(figure)


def labels_figure(series: list[Series], references: list[tuple[str, str, float]]) -> str:
    """mIoU against the number of labels; `references` are (name, method, mIoU) without labels."""
    with _drawing(6.4, 3.8) as (figure, axes):
        for number, one in enumerate(series):
            means = [100 * stats.mean for stats in one.stats]
            deviations = [100 * (stats.deviation or 0.0) for stats in one.stats]
            colour = METHOD_COLOURS["task_informed"] if number == 0 else point_colour(number)
            axes.errorbar(
                one.labels, means, deviations, marker="o", markersize=4, capsize=3, color=colour,
                linewidth=1.3, label=one.name,
            )  # fmt: skip
        for name, method, miou in references:
            axes.axhline(
                100 * miou, linestyle="--", linewidth=1, color=method_colour(method), label=name
            )
        counts = sorted({count for one in series for count in one.labels})
        axes.set_xscale("log")
        axes.set_xticks(counts, labels=[str(count) for count in counts])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
        axes.set_xlabel("labelled real images")
        axes.set_ylabel("mIoU (%)")
        figure.legend(loc="outside lower left", ncols=2)
        return _svg(figure)


def curve_figures(runs: list[list[dict[str, Any]]]) -> list[tuple[str, str]]:
    """(title, SVG) of each panel of one stage; `runs` holds the metrics lines of each point."""
    known = {(kind, name) for kind, _, names in _PANELS for name in names}
    seen: dict[tuple[str, str], None] = {}
    for lines in runs:
        for line in lines:
            seen.update(dict.fromkeys((line["kind"], name) for name in line["values"]))
    panels = list(_PANELS) + [
        (kind, name.replace("_", " "), (name,)) for kind, name in seen if (kind, name) not in known
    ]
    drawn = []
    for kind, title, names in panels:
        present = [name for name in names if (kind, name) in seen]
        if present:
            drawn.append((title, _curve_panel(runs, kind, title, present)))
    return drawn


def _curve_panel(runs: list[list[dict[str, Any]]], kind: str, title: str, names: list[str]) -> str:
    """One panel: a colour for every point, a line style for every value."""
    with _drawing(3.5, 2.3) as (figure, axes):
        for number, lines in enumerate(runs):
            for style, name in zip(_LINE_STYLES, names, strict=False):
                images, values = _binned(lines, kind, name)
                scale = 100.0 if name == "miou" else 1.0
                axes.plot(
                    images, values * scale, style, color=point_colour(number), linewidth=1.1,
                    marker="o" if kind == "curve" else "", markersize=2.5,
                )  # fmt: skip
        if len(names) > 1:
            for style, name in zip(_LINE_STYLES, names, strict=False):
                axes.plot([], [], style, color="#444444", linewidth=1.1, label=_short(name))
            axes.legend(fontsize=7, handlelength=2.4)
        axes.set_title(title)
        axes.set_xlabel("images seen")
        axes.margins(x=0.02)
        return _svg(figure)


def _short(name: str) -> str:
    """`lsgan_real` as `real`: the panel's title says the rest."""
    return name.partition("_")[2].replace("_", " ") or name


def _binned(lines: Iterable[Mapping[str, Any]], kind: str, name: str) -> tuple[Any, Any]:
    """(images, values) of one value, f64 arrays; long training curves as means of bins."""
    found = [
        (line["images"], line["values"][name])
        for line in lines
        if line["kind"] == kind and name in line["values"]
    ]
    pairs = np.array(found, np.float64).reshape(-1, 2)
    if len(pairs) > MOST_BINS:
        pairs = np.array([part.mean(axis=0) for part in np.array_split(pairs, MOST_BINS)])
    return pairs[:, 0], pairs[:, 1]
