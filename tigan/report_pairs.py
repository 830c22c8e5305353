"""Paired differences: what is compared with what, and how sure the mean of the pairs is."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tigan.report_nodes import Node
from tigan.report_rows import (
    CONTROL,
    INFORMED,
    Group,
    Member,
    Stats,
    headline,
    over_labels,
    summarise,
)

# Method -> the method that its difference is taken to.
BASES = {
    "cyclegan": "source_only",
    CONTROL: "source_only",
    INFORMED: CONTROL,
    "finetuned_segmenter": "source_only",
    "both": CONTROL,
    "adaptsegnet": "source_only",
    "oracle": "source_only",
}
# Which stages' keys a method's score hangs on, where not all of the first three.
_OWNERS = {
    "source_only": ("segmenter",),
    "cyclegan": ("segmenter", "gan"),
    "finetuned_segmenter": ("segmenter", "finetune_segmenter"),
    "both": ("segmenter", "gan", "finetune", "finetune_segmenter"),
    "adaptsegnet": ("segmenter", "adaptsegnet"),
    "oracle": ("segmenter",),
}
# Not compared as settings: the columns, and what means nothing to a control at alpha = 0.
_IGNORED = ("finetune.labels", "finetune.alpha", "finetune.gamma", "finetune.alpha_scales")
# Share of intervals that hold the true mean, over many experiments.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gain:
    """Pairs of a method and its base at one number of labels; mIoU in [0, 1].

    `interval` is that of the mean of the differences (None where there is one pair only), taken
    over as many values as are `independent`: see `clustered`.
    """

    labels: int
    base: Stats
    method: Stats
    change: Stats
    independent: int
    interval: tuple[float, float] | None


def partners(member: Member, candidates: Iterable[Member]) -> list[Member]:
    """Those of `candidates` that `member` is compared with: same images, seeds, draw and labels.

    Where one of the two has no such seed, draw or number of labels, it does not count. The
    settings of all stages that both hang on must be equal.
    """
    return [other for other in candidates if _is_partner(member, other)]


def _is_partner(member: Member, other: Member) -> bool:
    mine, its = ({**m.replicate, "labels": m.row.get("labels")} for m in (member, other))
    clash = any(
        value is not None and its.get(key) not in (None, value) for key, value in mine.items()
    )
    if clash or (member.row["input"], member.start) != (other.row["input"], other.start):
        return False
    owners = set(_owners(member)) & set(_owners(other))

    def common(node: Node) -> dict[str, str]:
        rest = {key: value for key, value in node.swept.items() if key not in _IGNORED}
        return {key: value for key, value in rest.items() if key.partition(".")[0] in owners}

    return common(member.node) == common(other.node)


def _owners(member: Member) -> tuple[str, ...]:
    return _owners_of(str(member.row["method"]))


def _owners_of(method: str) -> tuple[str, ...]:
    return _OWNERS.get(method, ("segmenter", "gan", "finetune"))


def difference(member: Member, candidates: Iterable[Member]) -> float | None:
    """mIoU of `member` less the mean of its partners'; None where none is finished."""
    stats = summarise(other.miou for other in partners(member, candidates))
    return None if stats is None else member.miou - stats.mean


def members_of(groups: Iterable[Group], method: str) -> list[Member]:
    """All finished replicates of a method, on any images and at any settings."""
    return [member for group in groups if group.method == method for member in group.members]


def differences(
    group: Group, groups: Sequence[Group], base: str | None = None
) -> list[float | None]:
    """Of every replicate: its mIoU less that of its partners; None without any.

    The partners are of the method `base`; where it is not given, of the one in BASES. They have
    the `base_settings`.
    """
    base = base or BASES.get(group.method, "")
    wanted = base_settings(groups, group.method, base)
    alike = [g for g in groups if _not_shared(g, group.method) == wanted]
    candidates = members_of(alike, base)
    return [difference(member, candidates) for member in group.members]


def base_settings(groups: Iterable[Group], method: str, base: str) -> dict[str, str]:
    """The swept settings of `base` that `method` has no part in: those of the headline of `base`.

    At any others, however bad, its replicates would be partners as well.
    """
    front = headline(groups, base)
    return _not_shared(front, method) if front else {}


def _not_shared(group: Group, method: str) -> dict[str, str]:
    """The group's settings of stages that `method` does not hang on."""
    return {
        key: value
        for key, value in group.settings.items()
        if key.partition(".")[0] not in _owners_of(method)
    }


def gains(groups: Sequence[Group], method: str, base: str) -> list[Gain]:
    """`method` against `base`, per number of labels, at the base settings of `method`.

    Only pairs count: a replicate whose partner is not finished is in no column.
    """
    front = headline(groups, method)
    if front is None:
        return []
    found = [_gain(group, groups, base) for group in over_labels(groups, front)]
    return [gain for gain in found if gain is not None]


def _gain(group: Group, groups: Sequence[Group], base: str) -> Gain | None:
    """One line of `gains`; None where there is no pair."""
    changes = differences(group, groups, base)
    pairs = [(m, d) for m, d in zip(group.members, changes, strict=True) if d is not None]
    own = summarise(member.miou for member, _ in pairs)
    other = summarise(member.miou - change for member, change in pairs)
    change = summarise(change for _, change in pairs)
    means = clustered([(member.replicate, change) for member, change in pairs])
    if own is None or other is None or change is None or means is None:
        return None
    return Gain(int(group.labels or 0), other, own, change, means.n, interval(means))


def clustered(pairs: Sequence[tuple[Mapping[str, int | None], float]]) -> Stats | None:
    """Statistics of what counts as independent among differences; None where there are none.

    `pairs` are (replicate: factor -> level, difference). Differences that share a level of a factor
    (a seed, or the draw) are not independent: those of 3 draws with 2 seeds each are no 6. So they
    are averaged within each level of one factor, and the k means count, with k - 1 degrees of
    freedom. Of the factors that vary it is the one that gives the widest `interval` (of equals the
    one with the fewest levels): the means over the others' levels do not hold what it does. Where
    all vary together, each difference is a level of its own.
    """
    found = []
    for factor in dict.fromkeys(name for replicate, _ in pairs for name in replicate):
        levels: dict[int | None, list[float]] = {}
        for replicate, change in pairs:
            levels.setdefault(replicate.get(factor), []).append(change)
        means = summarise(statistics.fmean(values) for values in levels.values())
        if means is not None and (ends := interval(means)) is not None:
            found.append((ends[1] - ends[0], -means.n, means))
    if found:
        return max(found, key=lambda one: one[:2])[2]
    return summarise([statistics.fmean(change for _, change in pairs)] if pairs else [])


def class_gains(group: Group, groups: Sequence[Group]) -> dict[str, Stats]:
    """Class -> IoU of `group` less that of its partners, over replicates; by falling mean.

    A class that neither occurs nor is predicted in one of a pair has no difference there.
    """
    found: dict[str, list[float]] = {}
    candidates = members_of(groups, BASES.get(group.method, ""))
    for member in group.members:
        others = partners(member, candidates)
        for name, iou in member.row["per_class"].items():
            base = summarise(other.row["per_class"].get(name) for other in others)
            if iou is not None and base is not None:
                found.setdefault(name, []).append(iou - base.mean)
    stats = {name: summarise(values) for name, values in found.items()}
    known = {name: one for name, one in stats.items() if one is not None}
    return dict(sorted(known.items(), key=lambda item: (-item[1].mean, item[0])))


def interval(change: Stats) -> tuple[float, float] | None:
    """The CONFIDENCE interval of a mean, by Student's t; None for a single value."""
    if change.deviation is None:
        return None
    half = student_t(CONFIDENCE, change.n - 1) * change.deviation / math.sqrt(change.n)
    return (change.mean - half, change.mean + half)


def student_t(share: float, degrees: int) -> float:
    """The t with |T| <= t at probability `share` (in [0, 1)), for 1 or more degrees of freedom.

    By bisection over `student_share`. Raises ValueError outside of these ranges.
    """
    if not 0 <= share < 1 or degrees < 1:
        raise ValueError(f"share {share}, degrees {degrees}: expected [0, 1), and 1 or more")
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _share(middle, degrees) < share else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def student_share(t: float, degrees: int) -> float:
    """P(|T| <= t) of Student's t: the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    return _share(math.atan(t / math.sqrt(degrees)), degrees)


def _share(angle: float, degrees: int) -> float:
    """`student_share` by the angle arctan(t / sqrt(degrees))."""
    cosine = math.cos(angle)
    is_odd = degrees % 2 == 1
    term, total = cosine if is_odd else 1.0, 0.0
    for step in range(1 + is_odd, degrees, 2):  # 26.7.3: 2/3, 4/5, ...; 26.7.4: 1/2, 3/4, ...
        total += term
        term *= cosine**2 * step / (step + 1)
    if is_odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
