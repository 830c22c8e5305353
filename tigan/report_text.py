"""Numbers and names as the report writes them."""

import math

from data_prep.config import ClassSet
from data_prep.listing import PUBLISHED_COUNTS, SourceKind
from data_prep.shards import PackedSplit
from tigan.report_nodes import Node
from tigan.report_rows import INPUTS, SCRATCH, SELECTION, Group, Stats

METHOD_NAMES = {
    "source_only": "source only",
    "cyclegan": "CycleGAN",
    "cyclegan_matched": "CycleGAN + matched extra steps (α = 0)",
    "task_informed": "task-informed",
    "finetuned_segmenter": "f itself finetuned on the labels",
    "both": "both: task-informed images, f finetuned on them",
    "adaptsegnet": "AdaptSegNet (no labels)",
    "oracle": "oracle: trained on all real labels",
}
# How a difference to a method is called in a table.
BASE_NAMES = {"source_only": "source only", "cyclegan_matched": "control"}
_MINUS = "−"
_LAYOUTS: tuple[tuple[SourceKind, str, str], ...] = (
    ("synthia", "Synthia", "synthetic images"),
    ("cityscapes", "Cityscapes", "real images"),
)


def percent(value: float | None) -> str:
    """0.3127 as '31.3'; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """A signed difference in percentage points: '+3.0'; a dash for None."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", _MINUS)


def spread(stats: Stats | None) -> str:
    """'31.7 ± 0.6', or '31.7' for a single value; a dash for None."""
    if stats is None:
        return "–"
    return percent(stats.mean) + _deviation(stats)


def signed_spread(stats: Stats | None) -> str:
    """'+3.0 ± 0.2'; a dash for None."""
    return "–" if stats is None else points(stats.mean) + _deviation(stats)


def _deviation(stats: Stats) -> str:
    return "" if stats.deviation is None else f" ± {100 * stats.deviation:.1f}"


def ends(interval: tuple[float, float] | None, mean: float) -> str:
    """An interval in percentage points: '+1.2 to +4.8'; a dash for None.

    Where it is not about the `mean` that stands beside it, it says what it is about.
    """
    if interval is None:
        return "–"
    centre = sum(interval) / 2
    about = "" if math.isclose(centre, mean, abs_tol=1e-9) else f" (about {points(centre)})"
    return f"{points(interval[0])} to {points(interval[1])}{about}"


def number(value: float | str | None) -> str | None:
    """10.0 as '10'; text (of a label) and None as they are."""
    return value if value is None or isinstance(value, str) else f"{value:g}"


def duration(seconds: float) -> str:
    """'48 s', '3 min 05 s', '7 h 20 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def input_names(nodes: list[Node]) -> dict[str, str]:
    """What the images are called; rendered and other data are never called by the real names."""
    known = {node.name: node for node in nodes}
    synthia, real = (
        f"MiniCity ({layout} style)"
        if f"render_{kind}" in known
        else f"{other} ({layout} layout)"
        if holds_other_data(known.get(f"pack_{kind}"), kind)
        else layout
        for kind, layout, other in _LAYOUTS
    )
    return {
        INPUTS[0]: f"{synthia} val",
        INPUTS[1]: f"{real} val",
        SELECTION: f"the selection split of {real} train",
    }


def holds_other_data(pack: Node | None, kind: SourceKind) -> bool:
    """Whether a pack has another number of images than the published data set of its layout.

    False where that cannot be said: it is not finished, or cannot be read.
    """
    if pack is None or pack.done is None:
        return False
    try:
        counts = {split: len(PackedSplit(pack.path, split)) for split in ("train", "val")}
    except ValueError:  # the table of the data says what is wrong
        return False
    if kind == "synthia":  # whose val split is ours
        counts = {"train": sum(counts.values())}
    return counts != PUBLISHED_COUNTS[kind]


def convention(classes: ClassSet) -> str:
    """The classes that an mIoU is of, as every caption states it."""
    return f"class set {classes.name} ({len(classes.classes)} classes)"


def axis_name(classes: ClassSet, what: str = "mIoU (%)") -> str:
    """An axis label with the same information, for figures that leave the page."""
    return f"{what}, {len(classes.classes)} classes ({classes.name})"


def method_name(group: Group) -> str:
    """The method in words, with the start of f and the swept settings that have no column."""
    name = METHOD_NAMES.get(group.method, group.method.replace("_", " "))
    if group.method == "both" and group.alpha == 0:
        name = name.replace("task-informed images", "the control's images (α = 0)")
    start = [] if group.start == SCRATCH else [f"f started from {group.start}"]
    return ", ".join([name, *start, *(f"{k} = {v}" for k, v in group.settings.items())])


def full_name(group: Group) -> str:
    """`method_name` with labels, alpha and gamma, for figures and column heads."""
    parts = [method_name(group)]
    if group.labels is not None and group.method != "oracle":  # its name says all of them
        parts.append(f"{number(group.labels)} labels")
    if group.alpha:
        parts.append(weights_name(group))
    return ", ".join(parts)


def weights_name(group: Group) -> str:
    """'α = 0.5, γ = 10'."""
    return f"α = {number(group.alpha)}, γ = {number(group.gamma)}"
