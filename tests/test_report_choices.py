"""What the report says was chosen: on which images, over which replicates."""

from pathlib import Path

import pytest
from report_runs import both_groups, found, scored, weights_grid

from tigan.report_choices import statements, tried, verdict, weights_map
from tigan.report_nodes import read_nodes
from tigan.report_rows import group_rows, headline
from tigan.report_text import input_names

NAMED = input_names([])


def test_weights_are_chosen_on_the_selection_split(tmp_path: Path) -> None:
    scored(tmp_path, "task_informed", "task_informed", 0, 0.31, selection=0.32)
    weights_grid(tmp_path, missing=(0.3, 1.0))
    groups, chosen_on = both_groups(tmp_path)
    weights = weights_map(groups, chosen_on)
    assert weights is not None and len(weights.val) == len(weights.selection) == 8
    assert (weights.alphas, weights.gammas) == ([0.3, 0.5, 0.7], [1.0, 10.0, 100.0])
    assert (weights.chosen, weights.best_on_val) == ((0.7, 10.0), (0.7, 100.0))
    assert verdict(weights, NAMED) == (
        "Chosen on the selection split of Cityscapes train: α = 0.7, γ = 10 (37.0 % there), by the "
        "mean over the one replicate (seeds and draw) that the compared settings share. On "
        "Cityscapes val it has 32.5 %. The best on Cityscapes val would have been α = 0.7, "
        "γ = 100 with 33.5 %: for information only, nothing is chosen by it."
    )
    lines = tried(groups, chosen_on)
    assert len(lines) == 8
    assert [line["name"] for line in lines if line["best"]] == [
        "task-informed, 14 labels, α = 0.7, γ = 10"
    ]
    assert headline(groups, "task_informed").weights == (0.5, 10.0)  # it stays what it was
    stated = statements(groups, chosen_on, NAMED)[0]
    assert "(labelled images: 26)" in stated and "colours" not in stated
    scored(tmp_path, "oracle", "oracle", 0, 0.5)
    stated = statements(*both_groups(tmp_path), NAMED)[0]
    assert "or without (the oracle's input normalisation counts their colours); their" in stated


def by_draw(run: Path, alpha: float, selection: dict[int, float]) -> None:
    """Task-informed scores of one alpha: draw -> mIoU on the selection split; on val 1 % less."""
    for draw, miou in selection.items():
        parts = [f"finetune.alpha={alpha}" if alpha != 0.5 else "", f"finetune.draw={draw}"]
        point = ",".join(["task_informed", *filter(None, parts)])
        changes = {"alpha": alpha, "draw": draw, "selection": miou}
        scored(run, point, "task_informed", 0, miou - 0.01, **changes)


def test_choice_is_made_on_replicates_that_the_settings_share(tmp_path: Path) -> None:
    by_draw(tmp_path, 0.5, {0: 0.30, 1: 0.40})
    by_draw(tmp_path, 0.7, {0: 0.36, 1: 0.32})
    by_draw(tmp_path, 0.3, {0: 0.20, 1: 0.20})
    by_draw(tmp_path, 0.9, {1: 0.38})  # the best mean of what there is, but on one draw only
    groups, chosen_on = both_groups(tmp_path)
    weights = weights_map(groups, chosen_on)
    assert weights is not None and (weights.replicates, weights.left_out) == (1, [])
    assert weights.chosen == (0.5, 10.0) and weights.selection[0.5, 10.0].mean == 0.40
    assert weights.val[0.5, 10.0].mean == pytest.approx(0.39)
    assert "provisional" not in verdict(weights, NAMED)
    marked = [(line["name"], line["n"]) for line in tried(groups, chosen_on) if line["best"]]
    assert marked == [("task-informed, 14 labels, α = 0.5, γ = 10", 2)]


def test_choice_is_provisional_while_something_lacks(tmp_path: Path) -> None:
    by_draw(tmp_path, 0.5, {0: 0.30, 1: 0.40})
    by_draw(tmp_path, 0.7, {0: 0.36, 1: 0.32})
    by_draw(tmp_path, 0.3, {0: 0.20, 1: 0.20})
    by_draw(tmp_path, 0.9, {2: 0.90})  # shares nothing with the others
    inputs = found(tmp_path)
    for point in ("finetune.alpha=0.1", "finetune.draw=3", "finetune.labels=all"):
        inputs[f"evaluate/task_informed,{point}"] = tmp_path / "nowhere"
    nodes = read_nodes(inputs)
    groups, chosen_on = group_rows(nodes), group_rows(nodes, selection=True)
    weights = weights_map(groups, chosen_on)
    assert weights is not None and weights.selection.keys() == {(a, 10.0) for a in (0.3, 0.5, 0.7)}
    assert (weights.chosen, weights.replicates) == ((0.5, 10.0), 2)
    assert (weights.left_out, weights.pending) == ([(0.9, 10.0)], 2)  # not at another number
    assert verdict(weights, NAMED).startswith(
        "Chosen on the selection split of Cityscapes train: α = 0.5, γ = 10 (35.0 ± 7.1 % there), "
        "by the mean over the 2 replicates (seeds and draws) that the compared settings share. The "
        "choice is provisional (without these, and so left out: α = 0.9, γ = 10, and evaluations "
        "that are not finished: 2). On Cityscapes val it has 34.0 ± 7.1 %."
    )
    lines = {line["name"]: line for line in tried(groups, chosen_on)}
    assert lines["task-informed, 14 labels, α = 0.9, γ = 10"]["selection"] == "–"


def test_nothing_can_be_chosen_without_a_selection_split(tmp_path: Path) -> None:
    for gamma in (1.0, 10.0, 100.0, 1000.0):
        point = "task_informed" + (f",finetune.gamma={gamma}" if gamma != 10 else "")
        scored(tmp_path, point, "task_informed", 0, gamma / 2000, gamma=gamma, selection=None)
    groups, chosen_on = both_groups(tmp_path)
    assert chosen_on == []
    weights = weights_map(groups, chosen_on)  # 4 combinations, though of one alpha
    assert weights is not None and weights.chosen is None
    assert "no α and γ can be chosen" in verdict(weights, NAMED)
    assert "nothing was chosen by any score" in statements(groups, chosen_on, NAMED)[0]
    assert not any(line["best"] for line in tried(groups, chosen_on))
    assert weights_map(groups[:3], chosen_on) is None
    assert "(labelled images: 26)" not in "".join(statements(groups, chosen_on, NAMED))
