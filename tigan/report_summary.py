"""The report's sentences: the main figures, and the conditions under which they hold."""

from data_prep.config import ClassSet
from tigan.report_pairs import CONFIDENCE, gains
from tigan.report_rows import (
    CONTROL,
    INFORMED,
    INPUTS,
    REAL,
    SCRATCH,
    Group,
    headline,
    over_labels,
)
from tigan.report_text import METHOD_NAMES, convention, ends, signed_spread, spread

# Rows in which f itself is trained on, and the one of another segmenter.
_ADAPTED = ("finetuned_segmenter", "both", "adaptsegnet")
_ORACLE = "oracle"


def summary(groups: list[Group], names: dict[str, str]) -> str:
    """The main figures in a few sentences, or what is missing of them."""
    if not any(group.members for group in groups):
        return "No method has been evaluated yet, so there is no figure to report."
    source, synthetic = headline(groups, "source_only"), headline(groups, "source_only", INPUTS[0])
    informed = headline(groups, INFORMED)
    labels = informed.labels if informed else None
    control = _at_labels(groups, CONTROL, labels)
    if informed and control and control.labels != labels:
        control = None  # no fair one: with other images
    parts = []
    if synthetic is not None:
        parts.append(
            f"The segmenter f, trained on synthetic images only, reaches "
            f"{spread(synthetic.stats)} % mIoU on {names[INPUTS[0]]}"
        )
    subject = "it" if parts else "the segmenter f, trained on synthetic images only,"
    clauses = [
        f"{_clause(group)} {text}"
        for method, group, text in (
            ("source_only", source, "without translation (source only)"),
            ("cyclegan", headline(groups, "cyclegan"), "after CycleGAN"),
            (
                CONTROL,
                control,
                "after CycleGAN with the same extra steps but no task loss (the matched control)",
            ),
            (
                INFORMED,
                informed,
                f"after task-informed finetuning{_gain(groups, informed)}",
            ),
        )
        if any(one.method == method and one.input == REAL for one in groups)
    ]
    if clauses:
        parts.append(f"On {names[REAL]} {subject} reaches {_listed(clauses)}")
    others = [
        f"{_with_labels(group)} {spread(group.stats)} %"
        for method in (*_ADAPTED, _ORACLE)
        if (group := _at_labels(groups, method, labels)) is not None
    ]
    if others:
        parts.append(f"For comparison: {'; '.join(others)}")
    return ". ".join(parts) + "."


def _listed(clauses: list[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, [", ".join(clauses[:-1]), clauses[-1]]))


def _at_labels(groups: list[Group], method: str, labels: int | str | None) -> Group | None:
    """The headline of a method, or the group that has `labels` in its place."""
    front = headline(groups, method)
    if front is None:
        return None
    return next((g for g in over_labels(groups, front) if g.labels == labels), front)


def _with_labels(group: Group) -> str:
    """The method, with its number of labels where its name does not say it."""
    is_said = group.labels is None or group.method == _ORACLE
    return METHOD_NAMES[group.method] + ("" if is_said else f" ({group.labels} labelled images)")


def _gain(groups: list[Group], informed: Group | None) -> str:
    """The labels, and the gain against the control, of the task-informed headline."""
    if informed is None:
        return ""
    text = f" with {informed.labels} labelled images"
    found = [gain for gain in gains(groups, INFORMED, CONTROL) if gain.labels == informed.labels]
    if not found:
        return text
    text += f"; that is {signed_spread(found[0].change)} points against the matched control "
    if found[0].interval is None:
        return text + "(one replicate)"
    count, independent = found[0].change.n, found[0].independent
    as_of = f", of {independent} independent values," if independent < count else ""
    return text + (
        f"(mean ± standard deviation over n = {count} replicates; {100 * CONFIDENCE:.0f} % "
        f"confidence interval of the mean{as_of} {ends(found[0].interval, found[0].change.mean)})"
    )


def _clause(group: Group | None) -> str:
    return "(not finished)" if group is None else f"{spread(group.stats)} %"


def conditions(groups: list[Group], classes: ClassSet, names: dict[str, str]) -> list[str]:
    """What must be known to read the table, one sentence or two each."""
    rows = [member.row for group in groups for member in group.members]
    counts = {
        name: sorted({row["images"] for row in rows if row["input"] == name}) for name in INPUTS
    }
    images = [
        f"{names[name]}, all {' or '.join(map(str, counts[name]))} images"
        for name in INPUTS
        if counts[name]
    ]
    found = [f"Images: {'; '.join(images)}."] if images else []
    found += [
        f"Score: {convention(classes)}. Predictions are upsampled to the full size of the ground "
        "truth, counted in one confusion matrix over the whole set, and averaged over the classes "
        "(not over images).",
        "Pixels of any other label are ignored; a class that neither occurs nor is predicted is "
        "left out of the mean.",
        "Translated images are rounded to 8 bits, as an image file would be, before f sees them; "
        "the last column gives the score without that rounding.",
    ]
    return found + _class_counts(groups, names) + _segmenters(groups)


def _class_counts(groups: list[Group], names: dict[str, str]) -> list[str]:
    """Where rows of the same images are means over unequal numbers of classes; [] elsewhere."""
    found = []
    for name in INPUTS:
        rows = [m.row["per_class"] for g in groups if g.input == name for m in g.members]
        counts = {sum(iou is not None for iou in row.values()) for row in rows}
        if len(counts) > 1:
            found.append(
                f"On {names[name]} the rows are means over {min(counts)} to {max(counts)} classes: "
                "a class that does not occur there counts, as 0, in the rows that predict it."
            )
    return found


def _segmenters(groups: list[Group]) -> list[str]:
    """How the segmenter of each method came about."""
    members = [m for g in groups if g.method != _ORACLE for m in g.members]
    seeds = sorted({m.row["seeds"].get("segmenter") for m in members} - {None})
    starts = sorted({member.start for member in members}, key=lambda s: (s != SCRATCH, s))
    present = {group.method for group in groups}
    found = []
    if seeds:
        start = " or ".join("from scratch" if s == SCRATCH else f"from weights {s}" for s in starts)
        adapted = [METHOD_NAMES[method] for method in _ADAPTED if method in present]
        rest = "no row adapts it"
        if adapted:
            rest = f"only these rows train it on: {'; '.join(adapted)}"
        found.append(
            f"f is trained {start} on synthetic images ({'seed' if len(seeds) == 1 else 'seeds'} "
            f"{', '.join(map(str, seeds))}) and then frozen; {rest}."
        )
    if _ORACLE in present:
        found.append(
            "The oracle is a segmenter like f, trained on all labelled real train images but the "
            "selection split: a bound, not a rival."
        )
    return found
