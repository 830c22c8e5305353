"""The report's figures and statistics: pairs, intervals, choices, colours, repeatable files."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import (
    CLASSES,
    METHODS,
    NAMES,
    evaluated,
    found,
    row,
    scored,
    sweep_run,
    weights_grid,
    write_metrics,
)

from tigan import report_curves, report_figures
from tigan.report_choices import statements, tried, verdict, weights_map
from tigan.report_curves import MOST_BINS, MOST_POINTS, read_curves
from tigan.report_nodes import METHODS as ORDER
from tigan.report_nodes import Node, read_nodes
from tigan.report_pairs import class_gains, gains, interval, student_share, student_t
from tigan.report_rows import Group, Stats, group_rows, headline, over_labels
from tigan.report_text import input_names

NAMED = input_names([])


def both_groups(run: Path) -> tuple[list[Group], list[Group]]:
    """(results, groups on the selection split)."""
    nodes = read_nodes(found(run))
    return group_rows(nodes), group_rows(nodes, selection=True)


@pytest.mark.parametrize(
    ("share", "degrees", "t"),
    [  # Abramowitz and Stegun, table 26.10
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 3, 3.182),
        (0.95, 9, 2.262),
        (0.95, 10, 2.228),
        (0.95, 120, 1.980),
        (0.99, 4, 4.604),
        (0.99, 5, 4.032),
        (0.5, 1, 1.0),
        (0.0, 7, 0.0),
    ],
)
def test_quantiles_of_students_t(share: float, degrees: int, t: float) -> None:
    assert student_t(share, degrees) == pytest.approx(t, abs=6e-4)
    assert student_share(student_t(share, degrees), degrees) == pytest.approx(share, abs=1e-12)


def test_quantiles_that_are_none() -> None:
    for share, degrees in ((1.0, 3), (-0.1, 3), (0.95, 0)):
        with pytest.raises(ValueError, match="expected"):
            student_t(share, degrees)
    assert interval(Stats(0.1, None, 1)) is None


def test_gains_are_of_complete_pairs(tmp_path: Path) -> None:
    control = "cyclegan_matched,finetune.alpha=0.0"
    for seed, (base, informed) in enumerate(
        [(0.20, 0.25), (0.22, 0.28), (0.21, None), (None, 0.5)]
    ):
        tail = f",gan.seed={seed}" if seed else ""
        if base is not None:
            scored(tmp_path, control + tail, "cyclegan_matched", seed, base)
        if informed is not None:
            scored(tmp_path, f"task_informed{tail}", "task_informed", seed, informed)
    scored(tmp_path, "task_informed,finetune.gamma=1.0", "task_informed", 0, 0.9, gamma=1.0)
    for point in (f"{control},finetune.images=9", "task_informed,finetune.images=9"):
        scored(tmp_path, point, point.partition(",")[0], 0, 0.8)
    groups, _ = both_groups(tmp_path)
    (gain,) = gains(groups)
    assert (gain.labels, gain.change.n) == (14, 2)
    assert (gain.control.mean, gain.informed.mean) == pytest.approx((0.21, 0.265))
    assert gain.change.mean == pytest.approx(0.055)
    half = 12.706 * (0.01 / 2**0.5) / 2**0.5
    assert gain.interval == pytest.approx((0.055 - half, 0.055 + half), abs=1e-5)


def test_gains_by_number_of_labels(tmp_path: Path) -> None:
    sweep_run(tmp_path, labels=(14, 29), seeds=2)
    weights_grid(tmp_path)
    groups, _ = both_groups(tmp_path)
    assert [(gain.labels, gain.change.n) for gain in gains(groups)] == [(14, 2), (29, 2)]
    curve = over_labels(groups, headline(groups, "finetuned_segmenter"))
    assert [(g.labels, g.stats.n) for g in curve] == [(14, 2), (29, 2)]


def test_class_gains_are_paired_and_sorted(tmp_path: Path) -> None:
    changes = {"car": (0.10, 0.20), "road": (-0.05, -0.05), "sky": (0.30, None)}
    for seed in (0, 1):
        tail = f",gan.seed={seed}" if seed else ""
        base = dict.fromkeys(NAMES, 0.3 + 0.1 * seed) | {"rider": None}
        with_task = base | {
            name: None if both[seed] is None else base[name] + both[seed]
            for name, both in changes.items()
        }
        control = row("cyclegan_matched", seed, 0.3, per_class=base)
        evaluated(tmp_path, f"cyclegan_matched,finetune.alpha=0.0{tail}", control)
        evaluated(
            tmp_path, f"task_informed{tail}", row("task_informed", seed, 0.4, per_class=with_task)
        )
    groups, _ = both_groups(tmp_path)
    found_gains = class_gains(headline(groups, "task_informed"), groups)
    names = list(found_gains)
    assert names[:2] == ["sky", "car"] and names[-1] == "road" and "rider" not in names
    assert (found_gains["sky"].mean, found_gains["sky"].n) == (pytest.approx(0.3), 1)
    assert found_gains["car"].mean == pytest.approx(0.15)
    assert found_gains["car"].deviation == pytest.approx(0.1 / 2**0.5)
    assert found_gains["fence"].mean == pytest.approx(0)


def test_weights_are_chosen_on_the_selection_split(tmp_path: Path) -> None:
    scored(tmp_path, "task_informed", "task_informed", 0, 0.31, selection=0.32)
    weights_grid(tmp_path, missing=(0.3, 1.0))
    groups, chosen_on = both_groups(tmp_path)
    weights = weights_map(groups, chosen_on)
    assert weights is not None and len(weights.val) == len(weights.selection) == 8
    assert (weights.alphas, weights.gammas) == ([0.3, 0.5, 0.7], [1.0, 10.0, 100.0])
    assert (weights.chosen, weights.best_on_val) == ((0.7, 10.0), (0.7, 100.0))
    assert verdict(weights, NAMED) == (
        "Chosen on the selection split of Cityscapes train: α = 0.7, γ = 10 (37.0 % there). On "
        "Cityscapes val it has 32.5 %. The best on Cityscapes val would have been α = 0.7, "
        "γ = 100 with 33.5 %: for information only, nothing is chosen by it."
    )
    lines = tried(groups, chosen_on)
    assert len(lines) == 8
    assert [line["name"] for line in lines if line["best"]] == [
        "task-informed, 14 labels, α = 0.7, γ = 10"
    ]
    assert headline(groups, "task_informed").weights == (0.5, 10.0)  # it stays what it was
    assert "(labelled images: 26)" in statements(groups, chosen_on, NAMED)[0]


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


def _luminance(colour: str) -> float:
    return report_figures._luminance([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def test_colours_are_legible_on_both_pages() -> None:
    colours = report_figures.METHOD_COLOURS
    assert list(colours) == list(ORDER) and len(set(colours.values())) == len(colours)
    style = (Path(report_figures.__file__).parent / "report_style.css.j2").read_text()
    assert "--page: #16191d" in style
    for colour in (*colours.values(), *map(report_curves.point_colour, range(MOST_POINTS))):
        own = _luminance(colour)
        assert 1.05 / (own + 0.05) >= 3, colour
        assert (own + 0.05) / (_luminance("#16191d") + 0.05) >= 3, colour


@pytest.mark.slow
def test_figures_do_not_depend_on_the_process() -> None:
    """Hashes of text differ from process to process; no file may hang on them."""
    code = (
        "import hashlib\n"
        "from tigan.report_figures import methods_figure\n"
        "drawing = methods_figure([('f, α = 0.5', 'both', [0.25, 0.5])], 'mIoU (%)')\n"
        "print(hashlib.sha256(drawing.svg.encode() + drawing.pdf).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "12345"},
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    drawing = report_figures.methods_figure([("f, α = 0.5", "both", [0.25, 0.5])], "mIoU (%)")
    here = hashlib.sha256(drawing.svg.encode() + drawing.pdf).hexdigest()
    assert other.stdout.strip() == here


def _trained(folder: Path, points: int, lines: int = 3) -> list[Node]:
    """Finetunings with curves, every other one a control; the last one's metrics are damaged."""
    nodes = []
    for number in range(points):
        path = folder / str(number)
        write_metrics(path, ["gradient_lsgan", "gradient_task"], lines, curve=True)
        config = {"science": {"finetune": {"alpha": 0.5 * (number % 2)}}}
        nodes.append(Node(f"finetune/finetune.seed={number}", path, config, None))
    (path / "metrics.jsonl").write_text(json.dumps([1, 2]) + "\n")
    return nodes


def test_many_points_are_coloured_by_what_they_train(tmp_path: Path) -> None:
    (few,), problems = read_curves(_trained(tmp_path / "few", 3))
    assert [name for name, _ in few.legend] == ["finetune.seed=0", "finetune.seed=1"]
    assert len(problems) == 1 and "finetune.seed=2/metrics.jsonl" in problems[0]
    assert [title for title, _ in few.panels] == [
        "mIoU on held-out images (%)",
        "Gradient norms at G(I)",
    ]
    (many,), _ = read_curves(_trained(tmp_path / "many", MOST_POINTS + 4))
    assert (many.points, few.bins) == (MOST_POINTS + 3, MOST_BINS) and many.bins < few.bins
    assert many.legend == [
        (
            "CycleGAN + matched extra steps (α = 0)",
            report_figures.method_colour("cyclegan_matched"),
        ),
        ("task-informed", report_figures.method_colour("task_informed")),
    ]


def test_curves_of_every_training_stage(tmp_path: Path) -> None:
    nodes = []
    for name in ("oracle", "adaptsegnet", "finetune_segmenter/real", "pack_synthia"):
        write_metrics(tmp_path / name, ["cross_entropy", "adversarial"], 2, curve=False)
        nodes.append(Node(name, tmp_path / name, {}, None))
    curves, problems = read_curves(nodes)
    assert [stage.stage for stage in curves] == ["finetune_segmenter", "adaptsegnet", "oracle"]
    titles = [title for title, _ in curves[1].panels]
    assert titles == ["Cross-entropy", "Adversarial, outputs on real images"] and problems == []


def test_every_method_has_a_name_and_a_place() -> None:
    """What the stage 'evaluate' may be asked for, the report knows."""
    from typing import get_args

    from tigan.config import Method
    from tigan.report_text import METHOD_NAMES

    assert set(get_args(Method)) == set(ORDER) == set(METHOD_NAMES) == set(METHODS)
    assert CLASSES in {row("both", 0, 0.5)["classes"]}
