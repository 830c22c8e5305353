"""What the report counts: result rows, replicates, their statistics and differences."""

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tigan.report_nodes import METHODS, Node, node_order, rank

CONTROL = "cyclegan_matched"
INPUTS = ("synthia_val", "cityscapes_val")
REAL = "cityscapes_val"
# Swept keys that have a column of their own.
_COLUMNS = ("finetune.labels", "finetune.alpha", "finetune.gamma")
# Which stages' keys a method's score hangs on.
_OWNERS = {"source_only": ("segmenter",), "cyclegan": ("segmenter", "gan")}


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


@dataclass
class Group:
    """All replicates of one line of the table; `pending` counts those that are not finished."""

    input: str
    method: str
    labels: int | str | None
    alpha: float | str | None
    gamma: float | str | None
    settings: dict[str, str]
    members: list[Member] = field(default_factory=list)
    pending: int = 0

    @property
    def stats(self) -> Stats | None:
        """mIoU over the replicates; None where none is finished."""
        return summarise(member.miou for member in self.members)


def summarise(values: Iterable[float | None]) -> Stats | None:
    """Statistics of the values that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Stats(statistics.fmean(known), deviation, len(known))


def all_rows(nodes: Iterable[Node]) -> list[dict[str, Any]]:
    """The rows of all finished evaluate nodes, method by method."""
    return [row for node in sorted(nodes, key=node_order) for row in node.rows]


def group_rows(nodes: Iterable[Node]) -> list[Group]:
    """The lines of the table: one per input, method, labels, alpha, gamma and swept setting.

    The rows with the uint8 round trip lead (it is what an image file gives); a row without it
    goes to the row of its own node. Nodes that are not finished count as `pending`, in a line of
    their own where nothing of the setting is finished yet.
    """
    groups: dict[str, Group] = {}
    nodes = [node for node in nodes if node.stage == "evaluate"]
    for node in nodes:
        for row in node.rows:
            if row["uint8"]:
                group = _new_group(node, row)
                groups.setdefault(_group_key(group), group).members.append(_member(node, row))
    for node in nodes:
        if node.done is None:
            _add_pending(groups, node)
    for group in groups.values():
        group.members.sort(key=lambda member: _replicate_order(member.replicate))
    return sorted(groups.values(), key=_group_order)


def _new_group(node: Node, row: dict[str, Any]) -> Group:
    # At alpha = 0 there is no task loss, so its scale means nothing.
    used = bool(row.get("alpha"))
    return Group(
        str(row["input"]),
        str(row["method"]),
        row.get("labels"),
        row.get("alpha"),
        row.get("gamma") if used else None,
        {key: value for key, value in node.swept.items() if key not in _COLUMNS},
    )


def _group_key(group: Group) -> str:
    head = [group.input, group.method, group.labels, group.alpha, group.gamma]
    return json.dumps([*head, sorted(group.settings.items())])


def _member(node: Node, row: dict[str, Any]) -> Member:
    other = [r for r in node.rows if r["input"] == row["input"] and not r["uint8"]]
    return Member(row, node, float(other[0]["miou"]) if other else None)


def _add_pending(groups: dict[str, Group], node: Node) -> None:
    """Count an unfinished node in the groups of its setting, or make lines for it."""
    siblings = [
        group
        for group in groups.values()
        if group.method == node.method and any(m.node.swept == node.swept for m in group.members)
    ]
    if not siblings:
        swept = node.swept
        labels, alpha, gamma = (swept.get(key) for key in _COLUMNS)
        rest = {key: value for key, value in swept.items() if key not in _COLUMNS}
        for name in INPUTS if node.method == "source_only" else (REAL,):
            group = Group(name, node.method, labels, alpha, gamma, rest)
            siblings.append(groups.setdefault(_group_key(group), group))
    for group in siblings:
        group.pending += 1


def _replicate_order(replicate: Mapping[str, int | None]) -> list[int]:
    return [-1 if value is None else value for value in replicate.values()]


def _group_order(group: Group) -> tuple[Any, ...]:
    numbers = [float(value or 0) for value in (group.labels, group.alpha, group.gamma)]
    place = (rank(INPUTS, group.input), rank(METHODS, group.method), group.method)
    return (*place, *numbers, sorted(group.settings.items()))


def difference(member: Member, controls: Iterable[Member]) -> float | None:
    """mIoU of `member` less that of its matched control; None where no control is finished.

    The control has the same seeds and the same settings of all stages that both hang on; of
    several, those of the same draw and of the same number of drawn labels count, as their mean.
    """
    chosen = [control for control in controls if _comparable(member, control)]
    for same in (
        lambda c: c.row.get("draw") == member.row.get("draw"),
        lambda c: c.node.swept.get("finetune.labels") == member.node.swept.get("finetune.labels"),
    ):
        chosen = [control for control in chosen if same(control)] or chosen
    stats = summarise(control.miou for control in chosen)
    return None if stats is None else member.miou - stats.mean


def _comparable(member: Member, control: Member) -> bool:
    if member.row["input"] != control.row["input"]:
        return False
    for name, seed in member.row["seeds"].items():
        if seed is not None and control.row["seeds"].get(name) not in (None, seed):
            return False
    owners = _OWNERS.get(member.row["method"], ("segmenter", "gan", "finetune"))

    def common(node: Node) -> dict[str, str]:
        rest = {key: value for key, value in node.swept.items() if key not in _COLUMNS}
        return {key: value for key, value in rest.items() if key.partition(".")[0] in owners}

    return common(member.node) == common(control.node)


def headline(groups: Iterable[Group], method: str, name: str = REAL) -> Group | None:
    """The group that stands for a method: the one nearest to the base settings.

    It is not the best one: choosing by the reported val images would flatter the method.
    """
    mine = [g for g in groups if g.method == method and g.input == name and g.members]
    return min(mine, key=lambda group: len(group.members[0].node.swept), default=None)
