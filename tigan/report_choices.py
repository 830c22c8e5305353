"""What was chosen on what: alpha, gamma and other settings, on images that nothing trains on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tigan.report_rows import INFORMED, REAL, SELECTION, Group, Stats, headline
from tigan.report_text import full_name, number, spread

Weights = tuple[float, float]  # alpha, gamma


@dataclass(frozen=True)
class WeightsMap:
    """mIoU in [0, 1] by (alpha, gamma), at one number of labels, on either set of images."""

    labels: int | str | None
    alphas: list[float]
    gammas: list[float]
    selection: dict[Weights, Stats]
    val: dict[Weights, Stats]

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
    that were run at most combinations; of equals those of the headline.
    """
    front = headline(groups, INFORMED)
    families: dict[Any, dict[Weights, Stats]] = {}
    for group in _informed(groups, REAL):
        families.setdefault(_family(group), {})[_weights(group)] = _stats(group)
    if front is None or not families:
        return None
    best = max(families, key=lambda key: (len(families[key]), key == _family(front)))
    val = families[best]
    selection = {
        _weights(group): _stats(group)
        for group in _informed(chosen_on, SELECTION)
        if _family(group) == best
    }
    alphas, gammas = (sorted({key[axis] for key in val}) for axis in (0, 1))
    if len(val) < 4 and (len(alphas) < 2 or len(gammas) < 2):
        return None
    return WeightsMap(best[0], alphas, gammas, selection, val)


def _informed(groups: Iterable[Group], name: str) -> list[Group]:
    """The finished task-informed groups on one set of images."""
    return [g for g in groups if g.method == INFORMED and g.input == name and g.members]


def _family(group: Group) -> tuple[Any, ...]:
    """What groups share that differ in alpha and gamma only."""
    return (group.labels, group.start, *sorted(group.settings.items()))


def _weights(group: Group) -> Weights:
    return (float(group.alpha or 0), float(group.gamma or 0))


def _stats(group: Group) -> Stats:
    assert group.stats is not None, "only groups with members come here"
    return group.stats


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
        f"there). On {val} it has {spread(found.val.get(chosen))} %. "
    )
    if best is None or best == chosen:
        return text + f"It is the best on {val} too."
    return text + (
        f"The best on {val} would have been {_named(best)} with {spread(found.val[best])} %: for "
        "information only, nothing is chosen by it."
    )


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
            "without; their labels serve choices only, at the packed size. Nothing is chosen on "
            f"{names[REAL]}."
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
            f"{_named(_weights(front))}: the run config's values, or those nearest to them, "
            "whatever their score."
        )
    return found


def tried(groups: Sequence[Group], chosen_on: Sequence[Group]) -> list[dict[str, Any]]:
    """Every setting of the task-informed method at the headline's number of labels.

    One line each with its score on both sets of images, the best on the selection split marked;
    none where there is only one setting.
    """
    front = headline(groups, INFORMED)
    if front is None:
        return []
    same = [
        g for g in _informed(groups, REAL) if (g.labels, g.start) == (front.labels, front.start)
    ]
    known = {
        (_weights(group), *_family(group)): _stats(group)
        for group in _informed(chosen_on, SELECTION)
    }
    scores = [known.get((_weights(group), *_family(group))) for group in same]
    means = [stats.mean for stats in scores if stats is not None]
    if len(same) < 2:
        return []
    return [
        {
            "name": full_name(group),
            "n": len(group.members),
            "selection": spread(stats),
            "val": spread(group.stats),
            "best": stats is not None and stats.mean == max(means),
        }
        for group, stats in zip(same, scores, strict=True)
    ]
