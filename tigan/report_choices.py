"""What was chosen on what: alpha, gamma and other settings, on images that nothing trains on."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tigan.report_rows import (
    INFORMED,
    REAL,
    SCRATCH,
    SELECTION,
    Group,
    Member,
    Stats,
    headline,
    summarise,
)
from tigan.report_text import full_name, number, spread

Weights = tuple[float, float]  # alpha, gamma
_Replicate = tuple[tuple[str, int | None], ...]  # the seeds and the draw


@dataclass(frozen=True)
class WeightsMap:
    """mIoU in [0, 1] by (alpha, gamma), at one number of labels, on either set of images.

    Every mean is over the same replicates, `replicates` of them. `left_out` are the settings that
    were scored on val, but have not all of these on the selection split; `pending` counts the
    evaluations that are not finished, at any alpha and gamma.
    """

    labels: int | str | None
    alphas: list[float]
    gammas: list[float]
    selection: dict[Weights, Stats]
    val: dict[Weights, Stats]
    replicates: int
    left_out: list[Weights]
    pending: int

    @property
    def chosen(self) -> Weights | None:
        """The best on the selection split; None where nothing was scored there."""
        return _best(self.selection)

    @property
    def best_on_val(self) -> Weights | None:
        """For information only: nothing is chosen by it."""
        return _best(self.val)


def _best(found: dict[Weights, Stats]) -> Weights | None:
    """The highest mean; of equals the least alpha, then gamma."""
    return max(sorted(found), key=lambda key: round(found[key].mean, 9), default=None)


def weights_map(groups: Sequence[Group], chosen_on: Sequence[Group]) -> WeightsMap | None:
    """The alpha-gamma map of the task-informed method; None where too few were run.

    `groups` are the results, `chosen_on` the groups on the selection split. It takes 2 alphas
    and 2 gammas, or 4 combinations. Of several numbers of labels and other settings those count
    that were run at most combinations; of equals those of the headline. The means are over
    `shared_replicates`: on the selection split, and the same on val.
    """
    front = headline(groups, INFORMED)
    families: dict[Any, dict[Weights, Group]] = {}
    for group in _informed(groups, REAL):
        families.setdefault(_family(group), {})[_weights(group)] = group
    if front is None or not families:
        return None
    best = max(families, key=lambda key: (len(families[key]), key == _family(front)))
    val = families[best]
    selection = {
        _weights(group): group
        for group in _informed(chosen_on, SELECTION)
        if _family(group) == best
    }
    alphas, gammas = (sorted({key[axis] for key in val}) for axis in (0, 1))
    if len(val) < 4 and (len(alphas) < 2 or len(gammas) < 2):
        return None
    shared = shared_replicates((selection or val).values())
    means = _means(selection, shared)
    left_out = sorted(val.keys() - means.keys()) if selection else []
    pending = _pending(groups, val.values())
    return WeightsMap(
        best[0], alphas, gammas, means, _means(val, shared), len(shared), left_out, pending
    )


def shared_replicates(groups: Iterable[Group]) -> set[_Replicate]:
    """The replicates that all groups have: means over others would not be comparable.

    Where there are none: those that all groups share which have the replicate that most groups
    have (of equals the first). Empty where no group has any.
    """
    found = [[_replicate(member) for member in group.members] for group in groups]
    counts = Counter(replicate for one in found for replicate in one)
    if not counts:
        return set()
    most = max(counts, key=lambda replicate: counts[replicate])
    return set.intersection(*(set(one) for one in found if most in one))


def _replicate(member: Member) -> _Replicate:
    return tuple(sorted(member.replicate.items()))


def _mean(group: Group | None, shared: Collection[_Replicate]) -> Stats | None:
    """Over these replicates; None where the group has not all of them."""
    mious = {_replicate(member): member.miou for member in (group.members if group else [])}
    if not mious.keys() >= set(shared):
        return None
    return summarise(mious[replicate] for replicate in sorted(shared, key=str))


def _means(cells: Mapping[Weights, Group], shared: Collection[_Replicate]) -> dict[Weights, Stats]:
    """The cells that have all of these replicates."""
    found = {weights: _mean(group, shared) for weights, group in cells.items()}
    return {weights: stats for weights, stats in found.items() if stats is not None}


def _pending(groups: Iterable[Group], cells: Collection[Group]) -> int:
    """How many evaluations are not finished that differ from `cells` in alpha and gamma only."""
    one = next(iter(cells))
    # Where nothing of a setting is finished, the labels are as they were swept.
    swept = {m.node.swept.get("finetune.labels") for cell in cells for m in cell.members}
    return sum(
        group.pending
        for group in groups
        if (group.method, group.input) == (INFORMED, REAL)
        and (group.start, group.settings) == (one.start, one.settings)
        and group.labels in {one.labels, *swept}
    )


def _informed(groups: Iterable[Group], name: str) -> list[Group]:
    """The finished task-informed groups on one set of images."""
    return [g for g in groups if g.method == INFORMED and g.input == name and g.members]


def _family(group: Group) -> tuple[Any, ...]:
    """What groups share that differ in alpha and gamma only."""
    return (group.labels, group.start, *sorted(group.settings.items()))


def _weights(group: Group) -> Weights:
    return (float(group.alpha or 0), float(group.gamma or 0))


def verdict(found: WeightsMap, names: dict[str, str]) -> str:
    """The choice of the map in words; `names`: input -> what the images are called."""
    val, chosen, best = names[REAL], found.chosen, found.best_on_val
    if chosen is None:
        return (
            "Nothing was scored on a selection split, so no α and γ can be chosen: a choice by "
            f"{val} would flatter the method."
        )
    text = (
        f"Chosen on {names[SELECTION]}: {_named(chosen)} ({spread(found.selection[chosen])} % "
        f"there), by the mean over {_counted(found.replicates)} that the compared settings share."
        f"{_provisional(found)} On {val} it has {spread(found.val.get(chosen))} %. "
    )
    if best is None or best == chosen:
        return text + f"It is the best on {val} too."
    return text + (
        f"The best on {val} would have been {_named(best)} with {spread(found.val[best])} %: for "
        "information only, nothing is chosen by it."
    )


def _counted(replicates: int) -> str:
    one = "the one replicate (seeds and draw)"
    return one if replicates == 1 else f"the {replicates} replicates (seeds and draws)"


def _provisional(found: WeightsMap) -> str:
    """What is missing for a final choice, as a sentence; empty where nothing is."""
    missing = []
    if found.left_out:
        missing.append(f"without these, and so left out: {'; '.join(map(_named, found.left_out))}")
    if found.pending:
        missing.append(f"evaluations that are not finished: {found.pending}")
    return f" The choice is provisional ({', and '.join(missing)})." if missing else ""


def _named(weights: Weights) -> str:
    return f"α = {number(weights[0])}, γ = {number(weights[1])}"


def statements(
    groups: Sequence[Group], chosen_on: Sequence[Group], names: dict[str, str]
) -> list[str]:
    """What each choice was made on, one sentence or two each."""
    images = sorted({m.row["images"] for group in chosen_on for m in group.members})
    found = []
    if images:
        found.append(
            f"Choices are made on {names[SELECTION]}, taken out before any training (labelled "
            f"images: {' or '.join(map(str, images))}). Nothing is trained on them, with labels or "
            f"without{_colours(groups)}; their labels serve choices only, at the packed size. "
            f"Nothing is chosen on {names[REAL]}."
        )
    else:
        found.append(
            "The run has no scores on a selection split (labelled real images that nothing trains "
            f"on), so nothing was chosen by any score. Nothing is chosen on {names[REAL]} either."
        )
    found.append(
        "Checkpoints are not chosen: each stage's last weights count, after the number of images "
        "that the run config gives."
    )
    front = headline(groups, INFORMED)
    if front is not None:
        found.append(
            f"The lines that stand for the task-informed method have "
            f"{_named(_weights(front))}: of what was run, the fewest keys changed from the run "
            "config, whatever the score."
        )
    return found


def _colours(groups: Iterable[Group]) -> str:
    """A backbone made elsewhere brings its own normalisation, any other oracle takes its data's."""
    own = any(g.method == "oracle" and g.start == SCRATCH and g.members for g in groups)
    return " (the oracle's input normalisation counts their colours)" if own else ""


def tried(groups: Sequence[Group], chosen_on: Sequence[Group]) -> list[dict[str, Any]]:
    """Every setting of the task-informed method at the headline's number of labels.

    One line each with its score on both sets of images, over `shared_replicates`, the best on the
    selection split marked; none where there is only one setting.
    """
    front = headline(groups, INFORMED)
    if front is None:
        return []
    same = [
        g for g in _informed(groups, REAL) if (g.labels, g.start) == (front.labels, front.start)
    ]
    if len(same) < 2:
        return []
    known = {(_weights(g), *_family(g)): g for g in _informed(chosen_on, SELECTION)}
    there = [known.get((_weights(group), *_family(group))) for group in same]
    shared = shared_replicates([group for group in there if group is not None] or same)
    scores = [_mean(group, shared) for group in there]
    means = [stats.mean for stats in scores if stats is not None]
    return [
        {
            "name": full_name(group),
            "n": len(group.members),
            "selection": spread(stats),
            "val": spread(_mean(group, shared)),
            "best": stats is not None and stats.mean == max(means),
        }
        for group, stats in zip(same, scores, strict=True)
    ]
