"""The report's text and tables as plain values; the template only lays them out."""

from typing import Any

from data_prep.config import ClassSet
from data_prep.labels import class_shares
from data_prep.shards import PackedSplit
from tigan.report_nodes import Node
from tigan.report_rows import (
    CONTROL,
    INPUTS,
    REAL,
    Group,
    Member,
    Stats,
    difference,
    headline,
    summarise,
)

METHOD_NAMES = {
    "source_only": "source only",
    "cyclegan": "CycleGAN",
    "cyclegan_matched": "CycleGAN + matched extra steps (α = 0)",
    "task_informed": "task-informed",
    "finetuned_segmenter": "segmenter finetuned",
    "oracle": "oracle",
    "adaptsegnet": "AdaptSegNet",
}
_MINUS = "−"


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


def number(value: float | str | None) -> str | None:
    """10.0 as '10'; text (of a point's label) and None as they are."""
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
    """What the val sets are called; rendered stand-ins are never called by the real names."""
    names = {node.name for node in nodes}
    synthia = "MiniCity (Synthia style) val" if "render_synthia" in names else "Synthia val"
    real = "MiniCity (Cityscapes style) val" if "render_cityscapes" in names else "Cityscapes val"
    return dict(zip(INPUTS, (synthia, real), strict=True))


def method_name(group: Group) -> str:
    """The method in words, with the swept settings that have no column."""
    name = METHOD_NAMES.get(group.method, group.method.replace("_", " "))
    return ", ".join([name, *(f"{key} = {value}" for key, value in group.settings.items())])


def full_name(group: Group) -> str:
    """`method_name` with labels, alpha and gamma, for figures and column heads."""
    if not group.alpha:
        return method_name(group)
    return f"{method_name(group)}, {group.labels} labels, {weights_name(group)}"


def weights_name(group: Group) -> str:
    """'α = 0.5, γ = 10'."""
    return f"α = {number(group.alpha)}, γ = {number(group.gamma)}"


def controls(groups: list[Group]) -> list[Member]:
    """All finished replicates of the matched control."""
    return [member for group in groups if group.method == CONTROL for member in group.members]


def differences(group: Group, groups: list[Group]) -> list[float | None]:
    """Of every replicate: its mIoU less the matched control's; None where that makes no sense."""
    if group.method in ("source_only", CONTROL):
        return [None] * len(group.members)
    return [difference(member, controls(groups)) for member in group.members]


def summary(groups: list[Group], names: dict[str, str]) -> str:
    """The main figures in one sentence, or what is missing of it."""
    if not any(group.members for group in groups):
        return "No method has been evaluated yet, so there is no figure to report."
    source, synthetic = headline(groups, "source_only"), headline(groups, "source_only", INPUTS[0])
    parts = []
    if synthetic is not None:
        parts.append(
            f"The frozen segmenter f, trained on synthetic images only, reaches "
            f"{spread(synthetic.stats)} % mIoU on {names[INPUTS[0]]}"
        )
    domain = f"On {names[REAL]} it" if parts else f"On {names[REAL]} the frozen segmenter f"
    parts.append(f"{domain} reaches {_clause(source)} without translation (source only)")
    gan, control = headline(groups, "cyclegan"), headline(groups, CONTROL)
    informed = headline(groups, "task_informed")
    parts[-1] += (
        f", {_clause(gan)} after CycleGAN, {_clause(control)} after CycleGAN with the same extra "
        f"steps but no task loss (the matched control) and {_clause(informed)} after "
        "task-informed finetuning"
    )
    if informed is not None:
        parts[-1] += f" with {informed.labels} labelled images"
        change = summarise(differences(informed, groups))
        if change is not None:
            parts[-1] += (
                f"; that is {signed_spread(change)} points against the matched control "
                f"({_replicates(change.n)})"
            )
    return ". ".join(parts) + "."


def _clause(group: Group | None) -> str:
    return "(not finished)" if group is None else f"{spread(group.stats)} %"


def _replicates(n: int) -> str:
    return "one replicate" if n == 1 else f"mean ± standard deviation over n = {n} replicates"


def gap_table(groups: list[Group], names: dict[str, str]) -> list[dict[str, Any]]:
    """The domain-gap table: one block of lines per val set."""
    varying = _varying(groups)
    blocks: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        change = differences(group, groups)
        singles = [
            {
                "label": ", ".join(
                    f"{key} {member.replicate[key]}"
                    for key in varying
                    if member.replicate.get(key) is not None
                ),
                "miou": percent(member.miou),
                "change": "" if diff is None else points(diff),
            }
            for member, diff in zip(group.members, change, strict=True)
        ]
        blocks.setdefault(group.input, []).append(
            {
                "method": method_name(group),
                "kind": group.method,
                "labels": group.labels,
                "alpha": number(group.alpha),
                "gamma": number(group.gamma),
                "miou": spread(group.stats) if group.members else None,
                "n": len(group.members),
                "pending": group.pending,
                "singles": singles,
                "change": signed_spread(summarise(change)),
                "float": spread(summarise(member.without_uint8 for member in group.members)),
            }
        )
    return [{"input": names.get(key, key), "lines": lines} for key, lines in blocks.items()]


def _varying(groups: list[Group]) -> list[str]:
    """The seeds (and the draw) that differ between any two replicates."""
    seen: dict[str, set[int]] = {}
    for group in groups:
        for member in group.members:
            for key, value in member.replicate.items():
                if value is not None:
                    seen.setdefault(key, set()).add(value)
    return [key for key, values in seen.items() if len(values) > 1]


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
    seeds = sorted({row["seeds"].get("segmenter") for row in rows} - {None})
    weights = sorted({str(row.get("segmenter", "scratch")) for row in rows})
    start = " or ".join("from scratch" if w == "scratch" else f"from weights {w}" for w in weights)
    found = [f"Images: {'; '.join(images)}."] if images else []
    found += [
        "Score: predictions are upsampled to the full size of the ground truth, counted in one "
        "confusion matrix over the whole set, and averaged over the classes (not over images).",
        f"Classes: class set {classes.name} with {len(classes.classes)} classes. Pixels of any "
        "other label are ignored; a class that neither occurs nor is predicted is left out of the "
        "mean.",
        "Translated images are rounded to 8 bits, as an image file would be, before f sees them; "
        "the last column gives the score without that rounding.",
    ]
    if seeds:
        plural = "seed" if len(seeds) == 1 else "seeds"
        found.append(
            f"f is trained {start} on synthetic images ({plural} "
            f"{', '.join(map(str, seeds))}) and then frozen; no row adapts it."
        )
    return found


def class_table(groups: list[Group], classes: ClassSet) -> dict[str, Any]:
    """Per-class IoU: one line per class, one column per group; the best translated one marked."""
    shown = [group for group in groups if group.members]
    names = list(classes.classes)
    for group in shown:
        for member in group.members:
            names += [name for name in member.row["per_class"] if name not in names]
    lines = []
    for name in names:
        means = []
        for group in shown:
            stats = summarise(member.row["per_class"].get(name) for member in group.members)
            means.append(None if stats is None else stats.mean)
        rivals = [
            mean
            for mean, group in zip(means, shown, strict=True)
            if mean is not None and group.method != "source_only"
        ]
        cells = [
            {
                "text": percent(mean),
                "best": len(rivals) > 1 and group.method != "source_only" and mean == max(rivals),
            }
            for mean, group in zip(means, shown, strict=True)
        ]
        lines.append({"name": name, "colour": classes.colours.get(name), "cells": cells})
    return {
        "groups": shown,
        "lines": lines,
        "means": [spread(group.stats) for group in shown],
    }


def data_table(nodes: list[Node], classes: ClassSet, problems: list[str]) -> list[dict[str, Any]]:
    """The packed splits: size, mean colour, share of each class; one column each.

    What cannot be read is added to `problems`.
    """
    columns = []
    for node in nodes:
        if not node.stage.startswith("pack_") or node.done is None:
            continue
        for name in ("train", "val"):
            try:
                split = PackedSplit(node.path, name)
            except ValueError as error:
                problems.append(f"{node.name}: {error}")
                continue
            statistics = split.statistics
            shares = class_shares(statistics.label_pixels, split.source, classes)
            columns.append(
                {
                    "title": f"{node.stage.removeprefix('pack_')} {name}",
                    "samples": f"{len(split):,}",
                    "size": f"{split.height} × {split.width}",
                    "mean": " ".join(f"{value:.3f}" for value in statistics.channel_mean),
                    "std": " ".join(f"{value:.3f}" for value in statistics.channel_std),
                    "shares": {key: f"{100 * share:.2f}" for key, share in shares.items()},
                }
            )
    return columns
