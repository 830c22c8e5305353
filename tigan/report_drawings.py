"""Which figures of results the report has, and what is in them."""

from data_prep.config import ClassSet
from tigan import report_choices, report_figures, report_text
from tigan.report_figures import Drawing
from tigan.report_pairs import class_gains, differences
from tigan.report_rows import (
    CONTROL,
    INFORMED,
    REAL,
    SELECTION,
    Group,
    headline,
    headlines,
    over_labels,
    summarise,
)

# The methods of the label-efficiency curve, and those without labels or with all: its lines.
_CURVE_METHODS = (INFORMED, CONTROL, "finetuned_segmenter", "both")
_MOST_BARS = 12
_REFERENCES = ("source_only", "cyclegan", "adaptsegnet", "oracle")


def draw_all(
    groups: list[Group], chosen_on: list[Group], classes: ClassSet, names: dict[str, str]
) -> dict[str, Drawing]:
    """Name -> figure, as far as there is something to show.

    `chosen_on`: the groups on the selection split; `names`: input -> what the images are called.
    """
    found: dict[str, Drawing | None] = {
        "methods": _methods(groups, classes),
        "labels": _labels(groups, classes),
    }
    weights = report_choices.weights_map(groups, chosen_on)
    if weights is not None:
        titles = (names[SELECTION], names[REAL])
        axis = report_text.axis_name(classes)
        found["alpha_gamma"] = report_figures.map_figure(weights, titles, axis)
    informed = headline(groups, INFORMED)
    by_class = class_gains(informed, groups) if informed else {}
    if informed is not None and by_class:
        gain = summarise(differences(informed, groups))
        axis = report_text.axis_name(classes, "gain in IoU (percentage points)")
        mean = gain.mean if gain else None
        found["class_gains"] = report_figures.class_gains_figure(by_class, mean, axis)
    return {name: drawing for name, drawing in found.items() if drawing is not None}


def _methods(groups: list[Group], classes: ClassSet) -> Drawing | None:
    """The methods on real val; of many lines those that stand for each method."""
    finished = [group for group in groups if group.input == REAL and group.members]
    if len(finished) > _MOST_BARS:
        finished = headlines(finished)
    if not finished:
        return None
    lines = [
        (report_text.full_name(group), group.method, [member.miou for member in group.members])
        for group in finished
    ]
    return report_figures.methods_figure(lines, report_text.axis_name(classes))


def _labels(groups: list[Group], classes: ClassSet) -> Drawing | None:
    """The label-efficiency curve at base settings; None where there is only one number."""
    series = []
    for method in _CURVE_METHODS:
        front = headline(groups, method)
        if front is not None:
            found = {int(g.labels or 0): g.stats for g in over_labels(groups, front) if g.stats}
            name = report_text.METHOD_NAMES[method]
            series.append(report_figures.Series(name, list(found), list(found.values()), method))
    if len({count for one in series for count in one.labels}) < 2:
        return None
    references = [
        (report_text.METHOD_NAMES[method], method, group.stats.mean)
        for method in _REFERENCES
        if (group := headline(groups, method)) is not None and group.stats is not None
    ]
    return report_figures.labels_figure(series, references, report_text.axis_name(classes))
