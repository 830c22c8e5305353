"""The report's tables as plain values; the template only lays them out."""

from collections.abc import Sequence
from typing import Any

from data_prep.config import ClassSet
from data_prep.labels import class_shares
from data_prep.shards import PackedSplit
from tigan.report_nodes import Node
from tigan.report_pairs import BASES, base_settings, differences, gains
from tigan.report_rows import (
    CONTROL,
    INFORMED,
    INPUTS,
    REAL,
    SCRATCH,
    Group,
    Member,
    headline,
    headlines,
    summarise,
)
from tigan.report_text import (
    BASE_NAMES,
    ends,
    full_name,
    method_name,
    number,
    percent,
    points,
    signed_spread,
    spread,
    weights_name,
)

# Longer tables show the lines that stand for each method, and all the rest folded away.
MOST_LINES = 24
MOST_COLUMNS = 10
# The poster's figures in %, and the classes that they are of: (images, start of f), as in
# `gap_table`. The last is AdaptSegNet's source only, over the 13 classes that it counts.
_PUBLISHED = {
    (INPUTS[0], "scratch"): ("64.8", "classes not stated"),
    (REAL, "scratch"): ("9.9", "classes not stated"),
    (REAL, "pretrained"): ("38.6", "13 classes"),
}
# Blocks of the gains: method, base, and what they are called.
_GAINS = (
    (INFORMED, CONTROL, "task-informed", "its matched control (α = 0)"),
    (INFORMED, "finetuned_segmenter", "task-informed", "f itself finetuned on the same labels"),
    ("both", "finetuned_segmenter", "both", "f itself finetuned on the same labels"),
)


def gap_table(groups: list[Group], names: dict[str, str]) -> list[dict[str, Any]]:
    """f without any translation: on synthetic and on real val, beside the published figures.

    A line for every start of f that was run; that of pretrained weights is there in any case.
    """
    sources = [g for g in groups if g.method == "source_only" and g.input in INPUTS]
    scratch = [g for g in sources if g.start == SCRATCH]
    lines = [
        _gap_line(name, "scratch", headline(scratch, "source_only", name), names) for name in INPUTS
    ]
    starts = list(dict.fromkeys(g.start for g in sources if g.start != SCRATCH and g.members))
    for start in starts or [""]:
        mine = [group for group in sources if group.start == start]
        group = headline(mine, "source_only")
        lines.append(_gap_line(REAL, "pretrained", group, names))
    return lines


def _gap_line(name: str, start: str, group: Group | None, names: dict[str, str]) -> dict[str, Any]:
    trained = "from scratch on the synthetic images"
    if start == "pretrained":
        trained = "on the synthetic images, backbone pretrained on ImageNet"
        trained += f" ({group.start})" if group else ""
    published, classes = _PUBLISHED[name, start]
    data = "Synthia val" if name == INPUTS[0] else "Cityscapes val"
    return {
        "images": names[name],
        "trained": trained,
        "miou": spread(group.stats) if group else None,
        "n": len(group.members) if group else 0,
        "published": published,
        "published_images": f"{data}, {classes}",
    }


def methods_table(groups: list[Group], names: dict[str, str]) -> dict[str, Any]:
    """Blocks of lines, one block per val set: `main`, and `all` where `main` does not hold all.

    `groups` is the number of all lines.
    """
    lines = [(group, _method_line(group, groups)) for group in groups]
    is_long = len(groups) > MOST_LINES
    kept = {id(group) for group in (headlines(groups) if is_long else groups)}
    return {
        "main": _blocks([pair for pair in lines if id(pair[0]) in kept], names),
        "all": _blocks(lines, names) if is_long else [],
        "groups": len(groups),
    }


def _blocks(lines: list[tuple[Group, dict[str, Any]]], names: dict[str, str]) -> list[Any]:
    blocks: dict[str, list[dict[str, Any]]] = {}
    for group, line in lines:
        blocks.setdefault(group.input, []).append(line)
    return [{"input": names.get(key, key), "lines": block} for key, block in blocks.items()]


def _method_line(group: Group, groups: list[Group]) -> dict[str, Any]:
    change = summarise(differences(group, groups))
    base = BASE_NAMES[BASES[group.method]] if change else ""
    if change and change.n < len(group.members):
        base += f" ({change.n} of {len(group.members)})"
    return {
        "method": method_name(group),
        "kind": group.method,
        "labels": group.labels,
        "alpha": number(group.alpha),
        "gamma": number(group.gamma),
        "miou": spread(group.stats) if group.members else None,
        "n": len(group.members),
        "pending": group.pending,
        "change": signed_spread(change),
        "base": base,
        "float": spread(summarise(member.without_uint8 for member in group.members)),
    }


def singles_table(groups: list[Group], names: dict[str, str]) -> dict[str, Any]:
    """Every replicate: what it is, its seeds and draw where they differ, mIoU and difference."""
    varying = _varying(groups)
    lines = [
        {
            "images": names.get(group.input, group.input),
            "name": full_name(group),
            "seeds": [_known(member, key) for key in varying],
            "miou": percent(member.miou),
            "change": points(change),
        }
        for group in groups
        for member, change in zip(group.members, differences(group, groups), strict=True)
    ]
    return {"seeds": varying, "lines": lines}


def _known(member: Member, key: str) -> str:
    value = member.replicate.get(key)
    return "–" if value is None else str(value)


def _varying(groups: list[Group]) -> list[str]:
    """The seeds (and the draw) that differ between any two replicates."""
    seen: dict[str, set[int]] = {}
    for group in groups:
        for member in group.members:
            for key, value in member.replicate.items():
                if value is not None:
                    seen.setdefault(key, set()).add(value)
    return [key for key, values in seen.items() if len(values) > 1]


def gain_table(groups: list[Group]) -> list[dict[str, Any]]:
    """'Paired gains': a block per comparison that has pairs, one line per number of labels."""
    blocks = []
    for method, base, name, base_name in _GAINS:
        lines = [
            {
                "labels": gain.labels,
                "n": gain.change.n,
                "independent": gain.independent,
                "base": spread(gain.base),
                "method": spread(gain.method),
                "change": signed_spread(gain.change),
                "interval": ends(gain.interval, gain.change.mean),
            }
            for gain in gains(groups, method, base)
        ]
        front = headline(groups, method)
        if lines and front is not None:
            at = ", ".join(f"{k} = {v}" for k, v in base_settings(groups, method, base).items())
            title = f"{name} ({weights_name(front)}) against {base_name}{at and f' ({at})'}"
            blocks.append({"title": title, "lines": lines})
    return blocks


def shown_columns(groups: list[Group]) -> list[Group]:
    """The finished groups, or, where they are too many, those that stand for each method."""
    finished = [group for group in groups if group.members]
    if len(finished) <= MOST_COLUMNS:
        return finished
    return [group for group in headlines(finished) if group.input == REAL]


def class_table(groups: Sequence[Group], classes: ClassSet) -> dict[str, Any]:
    """Per-class IoU: one line per class, one column per group; the best one of real val marked."""
    names = list(classes.classes)
    for group in groups:
        for member in group.members:
            names += [name for name in member.row["per_class"] if name not in names]
    lines = []
    for name in names:
        means = [_class_mean(group, name) for group in groups]
        rivals = [
            mean
            for mean, group in zip(means, groups, strict=True)
            if mean is not None and _competes(group)
        ]
        cells = [
            {
                "text": percent(mean),
                "best": len(rivals) > 1 and _competes(group) and mean == max(rivals) > 0,
            }
            for mean, group in zip(means, groups, strict=True)
        ]
        lines.append({"name": name, "colour": classes.colours.get(name), "cells": cells})
    return {"groups": groups, "lines": lines, "means": [spread(group.stats) for group in groups]}


def _class_mean(group: Group, name: str) -> float | None:
    stats = summarise(member.row["per_class"].get(name) for member in group.members)
    return None if stats is None else stats.mean


def _competes(group: Group) -> bool:
    """Whether a column is among those of which the best is marked: not the bounds."""
    return group.input == REAL and group.method not in ("source_only", "oracle")


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
