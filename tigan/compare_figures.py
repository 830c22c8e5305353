"""The figures of a comparison of runs: a colour for every run."""

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from tigan.compare_rows import Line
from tigan.report_curves import point_colour
from tigan.report_figures import INK, Drawing, drawing, drawn
from tigan.report_rows import Stats
from tigan.report_text import METHOD_NAMES

_WIDTH = 6.4  # inches
# Marker and dashes of the methods that have curves.
_LOOKS: dict[str, tuple[str, Any]] = {
    "task_informed": ("o", "-"),
    "cyclegan_matched": ("s", (0, (5, 2))),
    "finetuned_segmenter": ("^", (0, (1, 1.5))),
    "both": ("D", (0, (5, 1.5, 1, 1.5))),
}


def labels_figure(names: Sequence[str], lines: Sequence[Line], axis: str) -> Drawing | None:
    """The label-efficiency curves of all runs; None where no run has two numbers of labels.

    `lines` are those on real val, `names` what the runs are called. Error bars: deviation.
    """
    curves: dict[tuple[int, str, str], dict[int, Stats]] = {}
    for place in range(len(names)):
        for line in lines:
            stats = line.stats(place)
            if stats is not None and line.labels and line.method in _LOOKS:
                title = line.full_name(place)
                curves.setdefault((place, line.method, title), {})[line.labels] = stats
    counts = sorted({count for curve in curves.values() for count in curve})
    if all(len(curve) < 2 for curve in curves.values()):
        return None
    legend = _legend(names, list(curves))
    with drawing(_WIDTH, 3.6 + 0.13 * len(legend)) as (figure, axes):
        for number, ((place, method, _), curve) in enumerate(curves.items()):
            marker, dashes = _LOOKS[method]
            # A little beside each other, or the bars would hide one another.
            shift = 1.02 ** (number - (len(curves) - 1) / 2)
            axes.errorbar(
                [count * shift for count in curve],
                [100 * stats.mean for stats in curve.values()],
                [100 * (stats.deviation or 0.0) for stats in curve.values()],
                marker=marker, linestyle=dashes, markersize=4.5, capsize=3, linewidth=1.4,
                color=point_colour(place),
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(counts, labels=[str(count) for count in counts])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
        axes.set_xlabel("labelled real images (logarithmic)")
        axes.set_ylabel(textwrap.fill(axis, 48))
        figure.legend(handles=legend, loc="outside lower left", fontsize=7.5, handlelength=3.5)
        return drawn(figure)


def _legend(names: Sequence[str], curves: Sequence[tuple[int, str, str]]) -> list[Line2D]:
    """Colours for the runs, looks for the methods; every curve where a run has several of one."""
    if len({(place, method) for place, method, _ in curves}) < len(curves):
        return [
            _sample(f"{names[place]}: {title}", point_colour(place), *_LOOKS[method])
            for place, method, title in curves
        ]
    places = dict.fromkeys(place for place, _, _ in curves)
    methods = dict.fromkeys(method for _, method, _ in curves)
    runs = [_sample(names[place], point_colour(place), "", "-") for place in places]
    return runs + [_sample(METHOD_NAMES[method], INK, *_LOOKS[method]) for method in methods]


def _sample(name: str, colour: str, marker: str, dashes: Any) -> Line2D:
    """One entry of a legend."""
    return Line2D(
        [], [], color=colour, marker=marker, linestyle=dashes, markersize=4.5, linewidth=1.4,
        label=name,
    )  # fmt: skip


def methods_figure(names: Sequence[str], lines: Sequence[Line], axis: str) -> Drawing | None:
    """For each method a dot and its deviation of every run, at the most labels that most have."""
    shown = _one_each(lines)
    if not shown:
        return None
    titles = [
        textwrap.fill(line.title + (f", {line.labels} labels" if line.labels else ""), 34)
        for line in shown
    ]
    height = 0.9 + 0.16 * len(names) + sum(max(0.16 * len(names), 0.3) + 0.1 for _ in shown)
    with drawing(_WIDTH, height) as (figure, axes):
        for place, name in enumerate(names):
            offset = 0.7 * ((place + 0.5) / len(names) - 0.5)
            points = [(at + offset, line.stats(place)) for at, line in enumerate(shown)]
            known = [(at, stats) for at, stats in points if stats is not None]
            axes.errorbar(
                [100 * stats.mean for _, stats in known],
                [at for at, _ in known],
                xerr=[100 * (stats.deviation or 0.0) for _, stats in known],
                fmt="o", markersize=4.5, capsize=2.5, linewidth=1.2, color=point_colour(place),
                label=name,
            )  # fmt: skip
        axes.set_yticks(range(len(shown)), labels=titles)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(textwrap.fill(axis, 70))
        figure.legend(loc="outside lower left", fontsize=7.5)
        return drawn(figure)


def _one_each(lines: Sequence[Line]) -> list[Line]:
    """One line for each method: that which most runs have; of equals the one of most labels."""
    found: dict[str, Line] = {}

    def size(line: Line) -> tuple[int, int]:
        return (sum(bool(rows) for rows in line.rows), line.labels or 0)

    for line in lines:
        if line.method in METHOD_NAMES:
            found[line.method] = max(found.get(line.method, line), line, key=size)
    return list(found.values())
