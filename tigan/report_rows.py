"""What the report counts: result rows, their groups of replicates, and statistics."""

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tigan.report_nodes import METHODS, Node, natural, node_order, rank

CONTROL = "cyclegan_matched"
INFORMED = "task_informed"
INPUTS = ("synthia_val", "cityscapes_val")
REAL = "cityscapes_val"
# Labelled real images that nothing trains on: choices are made there, results are not.
SELECTION = "cityscapes_selection"
SCRATCH = "scratch"
# Methods whose images go through a translator: they say nothing about synthetic images.
TRANSLATED = ("cyclegan", CONTROL, INFORMED, "both")
# Swept keys that have a column of their own, or are named as the start of f.
_COLUMNS = ("finetune.labels", "finetune.alpha", "finetune.gamma")
_START = "segmenter.pretrained"


@dataclass(frozen=True)
class Stats:
    """Mean, standard deviation (n - 1; None where n = 1) and the number of values."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Member:
    """One replicate: its row after the uint8 round trip, and the mIoU without it, in [0, 1]."""

    row: dict[str, Any]
    node: Node
    without_uint8: float | None

    @property
    def miou(self) -> float:
        return float(self.row["miou"])

    @property
    def replicate(self) -> dict[str, int | None]:
        """The seeds and the draw."""
        return {**self.row["seeds"], "draw": self.row.get("draw")}

    @property
    def start(self) -> str:
        """What the training of f began with: 'scratch', or the name of a file of weights."""
        return str(self.row.get("segmenter", SCRATCH))


@dataclass
class Group:
    """All replicates of one line of the table; `pending` counts those that are not finished.

    `repeated` are those of other nodes that a member is the same replicate as: they do not count.
    """

    input: str
    method: str
    labels: int | str | None
    alpha: float | str | None
    gamma: float | str | None
    settings: dict[str, str]
    start: str = SCRATCH
    members: list[Member] = field(default_factory=list)
    repeated: list[Member] = field(default_factory=list)
    pending: int = 0

    @property
    def stats(self) -> Stats | None:
        """mIoU over the replicates; None where none is finished."""
        return summarise(member.miou for member in self.members)

    @property
    def weights(self) -> tuple[Any, Any]:
        """(alpha, gamma)."""
        return (self.alpha, self.gamma)


def summarise(values: Iterable[float | None]) -> Stats | None:
    """Statistics of the values that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Stats(statistics.fmean(known), deviation, len(known))


def all_rows(nodes: Iterable[Node]) -> list[dict[str, Any]]:
    """The rows of all finished evaluate nodes, method by method, with their swept `settings`."""
    return [
        {**row, "settings": _settings(node)}
        for node in sorted(nodes, key=node_order)
        for row in node.rows
    ]


def group_rows(nodes: Iterable[Node], *, selection: bool = False) -> list[Group]:
    """The lines of the table: one per input, method, start of f, labels, alpha, gamma and setting.

    The rows with the uint8 round trip lead (it is what an image file gives); a row without it
    goes to the row of its own node. Of nodes that hold the same replicate the first one counts,
    in `node_order`. Nodes that are not finished count as `pending`, in a line of their own where
    nothing of the setting is finished yet. With `selection`: the groups on the selection split,
    which is for choices and never among the results.
    """
    groups: dict[str, Group] = {}
    nodes = sorted((node for node in nodes if node.stage == "evaluate"), key=node_order)
    for node in nodes:
        for row in node.rows:
            if row["uint8"] and (row["input"] == SELECTION) == selection:
                member = _member(node, row)
                new = _new_group(member)
                group = groups.setdefault(_group_key(new), new)
                is_known = any(m.replicate == member.replicate for m in group.members)
                (group.repeated if is_known else group.members).append(member)
    for node in nodes:
        if node.done is None and not selection:
            _add_pending(groups, node)
    for group in groups.values():
        group.members.sort(key=lambda member: _replicate_order(member.replicate))
    return sorted(groups.values(), key=_group_order)


def repeats(groups: Iterable[Group]) -> list[str]:
    """What two nodes hold and was counted once, one line each, for the page."""
    return [
        f"counted once: {first.node.name} and {member.node.name} are the same replicate"
        for group in groups
        for member in group.repeated
        for first in group.members
        if first.replicate == member.replicate
    ]


def _member(node: Node, row: dict[str, Any]) -> Member:
    other = [r for r in node.rows if r["input"] == row["input"] and not r["uint8"]]
    return Member(row, node, float(other[0]["miou"]) if other else None)


def _new_group(member: Member) -> Group:
    row = member.row
    # At alpha = 0 there is no task loss, so its scale means nothing.
    used = bool(row.get("alpha"))
    return Group(
        str(row["input"]),
        str(row["method"]),
        row.get("labels"),
        row.get("alpha"),
        row.get("gamma") if used else None,
        _settings(member.node),
        member.start,
    )


def _settings(node: Node) -> dict[str, str]:
    """The swept settings that have no column of their own."""
    return {k: v for k, v in node.swept.items() if k not in (*_COLUMNS, _START)}


def _group_key(group: Group) -> str:
    head = [group.input, group.method, group.start, group.labels, group.alpha, group.gamma]
    return json.dumps([*head, sorted(group.settings.items())])


def _add_pending(groups: dict[str, Group], node: Node) -> None:
    """Count an unfinished node in the groups of its setting, or make lines for it."""
    siblings = [
        group
        for group in groups.values()
        if group.method == node.method and any(m.node.swept == node.swept for m in group.members)
    ]
    if not siblings:
        labels, alpha, gamma = (node.swept.get(key) for key in _COLUMNS)
        for name in (REAL,) if node.method in TRANSLATED else INPUTS:
            group = Group(name, node.method, labels, alpha, gamma, _settings(node), _start(node))
            siblings.append(groups.setdefault(_group_key(group), group))
    for group in siblings:
        group.pending += 1


def _start(node: Node) -> str:
    """The start of f as far as the label of a node that is not finished says it."""
    value = node.swept.get(_START, "none")
    return SCRATCH if value == "none" else Path(value).stem


def _replicate_order(replicate: Mapping[str, int | None]) -> list[int]:
    return [-1 if value is None else value for value in replicate.values()]


def _group_order(group: Group) -> tuple[Any, ...]:
    place = (rank(INPUTS, group.input), rank(METHODS, group.method), group.method)
    start = (group.start != SCRATCH, group.start)
    numbers = [_number_order(value) for value in (group.labels, group.alpha, group.gamma)]
    return (*place, *start, *numbers, sorted(group.settings.items()))


def _number_order(value: float | str | None) -> tuple[bool, float, list[Any]]:
    """Numbers by size, then what a label holds in their place, such as 'all'."""
    if isinstance(value, str):
        try:
            return (False, float(value), [])
        except ValueError:
            return (True, 0.0, natural(value))
    return (False, float(value or 0), [])


def headline(groups: Iterable[Group], method: str, name: str = REAL) -> Group | None:
    """The group that stands for a method: the fewest keys changed; of equals the first.

    It is not the best one: choosing by the reported val images would flatter the method.
    """
    mine = [g for g in groups if g.method == method and g.input == name and g.members]
    return min(mine, key=lambda group: len(group.members[0].node.swept), default=None)


def headlines(groups: Iterable[Group]) -> list[Group]:
    """The group that stands for each input, method and start of f; those not finished too."""
    found: dict[tuple[str, str, str], Group] = {}

    def distance(group: Group) -> tuple[bool, int]:
        swept = group.members[0].node.swept if group.members else {}
        return (not group.members, len(swept))

    for group in groups:
        key = (group.input, group.method, group.start)
        found[key] = min(found.get(key, group), group, key=distance)
    return list(found.values())


def over_labels(groups: Iterable[Group], one: Group) -> list[Group]:
    """The finished groups that differ from `one` in the number of labels only, by that number."""
    return sorted(
        (
            group
            for group in groups
            if (group.input, group.method, group.start) == (one.input, one.method, one.start)
            and group.weights == one.weights
            and group.settings == one.settings
            and group.members
            and isinstance(group.labels, int)
        ),
        key=lambda group: int(group.labels or 0),
    )
