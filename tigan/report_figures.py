"""The report's figures as SVG and PDF: same numbers, same bytes. No pyplot, so no global state.

They have no background. INK and GRID are used for nothing but text, axes and grid, so that
`dark` can exchange them; the colours of the data are legible on white and on a dark page.
"""

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter

from tigan.report_choices import Weights, WeightsMap
from tigan.report_rows import Stats

# Contrast of 3:1 or more on white and on the dark page, and told apart with any colour vision:
# found by a search over simulated ones (Machado et al. 2009).
METHOD_COLOURS = {
    "source_only": "#7d7d7d",
    "cyclegan": "#b583b2",
    "cyclegan_matched": "#8484f4",
    "task_informed": "#c8401e",
    "finetuned_segmenter": "#25a755",
    "both": "#d97c0f",
    "adaptsegnet": "#51754d",
    "oracle": "#af54b5",
}
_MARKERS = {"task_informed": "o", "cyclegan_matched": "s", "finetuned_segmenter": "^", "both": "D"}
_DASHES = {
    "source_only": (0, (1, 1.5)),
    "cyclegan": (0, (5, 2)),
    "adaptsegnet": (0, (5, 1.5, 1, 1.5)),
    "oracle": (0, (9, 2)),
}
_OTHER = "#a0703c"
INK = "#1f2328"
GRID = "#e4e4e4"
_ON_DARK = {INK: "#dfe3e7", GRID: "#353b42"}
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "tigan",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # TrueType: text stays text, and every printer takes it
    "text.parse_math": False,  # names are text, also with a dollar sign in them
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_WIDTH = 6.4  # inches


@dataclass(frozen=True)
class Drawing:
    """A figure in both formats."""

    svg: str
    pdf: bytes


@dataclass(frozen=True)
class Series:
    """mIoU in [0, 1] against the number of labels."""

    name: str
    labels: list[int]
    stats: list[Stats]
    method: str = ""


def method_colour(method: str) -> str:
    """The colour of a method, `#rrggbb`."""
    return METHOD_COLOURS.get(method, _OTHER)


def dark(svg: str) -> str:
    """A figure of this module for a dark page."""
    for light, exchanged in _ON_DARK.items():
        svg = svg.replace(light, exchanged)
    return svg


@contextmanager
def drawing(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of one panel, `width` x `height` inches, in the report's style."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def svg_text(figure: Figure) -> str:
    """The figure as SVG text, without date or version. Called inside `drawing`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue().decode("utf-8")


def drawn(figure: Figure) -> Drawing:
    """The figure in both formats, without date or version. Called inside `drawing`."""
    buffer = io.BytesIO()
    unsaid = dict.fromkeys(("CreationDate", "Creator", "Producer"))
    figure.savefig(buffer, format="pdf", metadata=unsaid)
    figure.set_layout_engine("none")  # once is enough, and both formats are laid out alike
    return Drawing(svg_text(figure), buffer.getvalue())


def methods_figure(lines: list[tuple[str, str, list[float]]], axis: str) -> Drawing:
    """Dots for single replicates, a bar for their mean: (label, method, mIoU values in [0, 1])."""
    # A line is not broken within "α = 0.5".
    labels = [textwrap.fill(label.replace(" = ", "\u00a0=\u00a0"), 34) for label, _, _ in lines]
    with drawing(_WIDTH, 0.7 + sum(0.22 + 0.13 * (1 + text.count("\n")) for text in labels)) as (
        figure,
        axes,
    ):
        for place, (_, method, values) in enumerate(lines):
            percent = [100 * value for value in values]
            colour = method_colour(method)
            axes.barh(place, float(np.mean(percent)), 0.62, color=colour, alpha=0.35, linewidth=0)
            axes.plot(percent, [place] * len(percent), "o", color=colour, markersize=4.5, alpha=0.9)
        axes.set_yticks(range(len(lines)), labels=labels)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(left=0)
        axes.set_xlabel(axis)
        return drawn(figure)


def labels_figure(
    series: list[Series], references: list[tuple[str, str, float]], axis: str = "mIoU (%)"
) -> Drawing:
    """The label-efficiency curve: mean and deviation of mIoU against the number of labels.

    `references` are (name, method, mIoU) of what has no number of labels.
    """
    with drawing(_WIDTH, 4.2) as (figure, axes):
        for number, one in enumerate(series):
            # A little beside each other, or the bars would hide one another.
            shift = 1.025 ** (number - (len(series) - 1) / 2)
            axes.errorbar(
                [count * shift for count in one.labels],
                [100 * stats.mean for stats in one.stats],
                [100 * (stats.deviation or 0.0) for stats in one.stats],
                marker=_MARKERS.get(one.method, "o"), markersize=4.5, capsize=3,
                color=method_colour(one.method), linewidth=1.4, label=one.name,
            )  # fmt: skip
        for name, method, miou in references:
            axes.axhline(
                100 * miou, linestyle=_DASHES.get(method, "--"), linewidth=1.2, label=name,
                color=method_colour(method),
            )  # fmt: skip
        counts = sorted({count for one in series for count in one.labels})
        axes.set_xscale("log")
        axes.set_xticks(counts, labels=[str(count) for count in counts])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
        axes.set_xlabel("labelled real images (logarithmic)")
        axes.set_ylabel(axis)
        figure.legend(loc="outside lower left", ncols=2, fontsize=7.5, handlelength=3)
        return drawn(figure)


def class_gains_figure(gains: Mapping[str, Stats], mean: float | None, axis: str) -> Drawing:
    """A dot and its deviation per class, in the order given; `mean` is the gain in mIoU.

    All in [-1, 1], drawn in percentage points.
    """
    with drawing(_WIDTH, 1.0 + 0.2 * len(gains)) as (figure, axes):
        axes.axvline(0, color=INK, linewidth=0.8)
        for place, stats in enumerate(gains.values()):
            colour = method_colour("task_informed" if stats.mean >= 0 else "cyclegan_matched")
            axes.barh(place, 100 * stats.mean, 0.5, color=colour, alpha=0.35, linewidth=0)
            axes.errorbar(
                100 * stats.mean, place, xerr=100 * (stats.deviation or 0.0), fmt="o",
                color=colour, markersize=4, capsize=2.5, linewidth=1.2,
            )  # fmt: skip
        if mean is not None:
            axes.axvline(
                100 * mean, linestyle=(0, (4, 2)), linewidth=1.1, color=method_colour("oracle"),
                label="mIoU",
            )  # fmt: skip
            figure.legend(loc="outside upper right")
        axes.set_yticks(range(len(gains)), labels=list(gains))
        axes.set_ylim(len(gains) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(axis)
        return drawn(figure)


def map_figure(found: WeightsMap, titles: tuple[str, str], axis: str) -> Drawing:
    """mIoU in % by alpha and gamma: on the selection split, where there is one, and on val.

    The choice, the best on the selection split, is framed in both.
    """
    panels = [(titles[0], found.selection)] if found.selection else []
    panels.append((titles[1], found.val))
    means = [100 * stats.mean for _, values in panels for stats in values.values()]
    width = max(2.2, 0.75 + 0.62 * len(found.gammas))
    with mpl.rc_context(_STYLE):
        figure = Figure(
            figsize=(len(panels) * width, 1.25 + 0.4 * len(found.alphas)), layout="constrained"
        )
        for number, (title, values) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), number + 1)
            _map_panel(axes, found, values, (min(means), max(means)))
            axes.set_title(textwrap.fill(title, int(width * 14)), fontsize=8)
            axes.set_xlabel("γ")
            axes.set_ylabel("α")
        figure.supxlabel(axis, fontsize=8, color=INK)
        return drawn(figure)


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance in [0, 1] of an sRGB colour in [0, 1], as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _map_panel(
    axes: Axes, found: WeightsMap, values: Mapping[Weights, Stats], limits: tuple[float, float]
) -> None:
    """One heat map: cells by alpha (rows) and gamma (columns); what was not run stays blank."""
    colours = mpl.colormaps["cividis"]
    for (alpha, gamma), stats in values.items():
        row, column = found.alphas.index(alpha), found.gammas.index(gamma)
        level = (100 * stats.mean - limits[0]) / max(limits[1] - limits[0], 1e-9)
        corner, shade = (column - 0.48, row - 0.48), colours(level)
        axes.add_patch(Rectangle(corner, 0.96, 0.96, facecolor=shade, linewidth=0))
        axes.text(
            column, row, f"{100 * stats.mean:.1f}", ha="center", va="center",
            color="white" if _luminance(shade) < 0.18 else "black",  # contrast 4.5 or more
        )  # fmt: skip
        if (alpha, gamma) == found.chosen:
            frame = Rectangle(corner, 0.96, 0.96, fill=False, linewidth=2.4, zorder=3)
            frame.set_edgecolor(method_colour("task_informed"))
            axes.add_patch(frame)
    axes.set_xlim(-0.55, len(found.gammas) - 0.45)
    axes.set_ylim(-0.55, len(found.alphas) - 0.45)
    axes.set_xticks(range(len(found.gammas)), labels=[f"{gamma:g}" for gamma in found.gammas])
    axes.set_yticks(range(len(found.alphas)), labels=[f"{alpha:g}" for alpha in found.alphas])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
