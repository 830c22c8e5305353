"""The report's paired gains: pairs, what is independent among them, intervals."""

from pathlib import Path

import pytest
from report_runs import (
    NAMES,
    Page,
    both_groups,
    evaluated,
    found,
    make_report,
    row,
    scored,
    sweep_run,
    weights_grid,
)

from tigan.report_pairs import (
    class_gains,
    clustered,
    gains,
    interval,
    student_share,
    student_t,
)
from tigan.report_rows import CONTROL, INFORMED, Stats, headline, over_labels, summarise
from tigan.report_summary import summary
from tigan.report_tables import gain_table
from tigan.report_text import input_names


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


@pytest.mark.parametrize(
    ("of_draw", "of_seed", "levels"), [(0.02, 0.001, 3), (0.001, 0.02, 2), (0.0, 0.0, 2)]
)
def test_crossed_replicates_count_by_one_factor(
    of_draw: float, of_seed: float, levels: int
) -> None:
    """3 draws x 2 seeds are no 6: the factor that makes the mean least sure counts."""
    pairs = [
        ({"segmenter": 0, "finetune": seed, "draw": draw}, of_draw * draw + of_seed * seed)
        for draw in range(3)
        for seed in range(2)
    ]
    stats = clustered(pairs)
    assert stats is not None and stats.n == levels
    assert stats.mean == pytest.approx(of_draw + of_seed / 2)
    if levels == 3:  # 2 degrees of freedom
        assert stats.deviation == pytest.approx(of_draw)
        half = 4.303 * of_draw / 3**0.5
        assert interval(stats) == pytest.approx((stats.mean - half, stats.mean + half), abs=1e-5)


def test_replicates_that_vary_together_are_independent() -> None:
    changes = [0.01, 0.02, 0.04, 0.01]
    together = [
        ({"segmenter": 0, "gan": i, "finetune": i, "draw": i}, d) for i, d in enumerate(changes)
    ]
    assert clustered(together) == summarise(changes)
    nested = [({"gan": i // 2, "draw": i}, d) for i, d in enumerate([0.01, 0.012, 0.05, 0.052])]
    stats = clustered(nested)
    assert stats is not None and (stats.n, stats.mean) == (2, pytest.approx(0.031))
    one = clustered(together[:1])
    assert one is not None and (one, interval(one)) == (Stats(0.01, None, 1), None)
    assert clustered([]) is None


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
    (gain,) = gains(groups, INFORMED, CONTROL)
    assert (gain.labels, gain.change.n, gain.independent) == (14, 2, 2)
    assert (gain.base.mean, gain.method.mean) == pytest.approx((0.21, 0.265))
    assert gain.change.mean == pytest.approx(0.055)
    half = 12.706 * (0.01 / 2**0.5) / 2**0.5
    assert gain.interval == pytest.approx((0.055 - half, 0.055 + half), abs=1e-5)


def test_gains_by_number_of_labels(tmp_path: Path) -> None:
    sweep_run(tmp_path, labels=(14, 29), seeds=2)
    weights_grid(tmp_path)
    groups, _ = both_groups(tmp_path)
    found_gains = gains(groups, INFORMED, CONTROL)
    assert [(gain.labels, gain.change.n) for gain in found_gains] == [(14, 2), (29, 2)]
    for method in (INFORMED, "both"):
        own, base = (headline(groups, name) for name in (method, "finetuned_segmenter"))
        pairs = zip(own.members, base.members, strict=True)
        against, _ = gains(groups, method, "finetuned_segmenter")
        assert against.change == summarise(m.miou - other.miou for m, other in pairs)
    assert gains(groups, "oracle", CONTROL) == gains([], "both", CONTROL) == []
    curve = over_labels(groups, headline(groups, "finetuned_segmenter"))
    assert [(g.labels, g.stats.n) for g in curve] == [(14, 2), (29, 2)]


def test_gains_are_against_the_baseline_at_its_own_base_settings(tmp_path: Path) -> None:
    """Of a sweep over the baseline's settings, bad ones are no partners."""
    for draw in range(2):
        tail = f",finetune.draw={draw}" if draw else ""
        scored(tmp_path, f"task_informed{tail}", INFORMED, 0, 0.30 + draw / 100, draw=draw)
        for rate, miou in (("", 0.33), (",finetune_segmenter.learning_rate=0.01", 0.10)):
            point = f"finetuned_segmenter{tail}{rate}"
            scored(tmp_path, point, "finetuned_segmenter", 0, miou, draw=draw)
    groups, _ = both_groups(tmp_path)
    (gain,) = gains(groups, INFORMED, "finetuned_segmenter")
    assert (gain.base.mean, gain.change.mean) == pytest.approx((0.33, -0.025))
    (block,) = gain_table(groups)
    assert block["title"].endswith("against f itself finetuned on the same labels")
    swept = [g for g in groups if g.method != "finetuned_segmenter" or g.settings]
    (block,) = gain_table(swept)
    assert block["title"].endswith("labels (finetune_segmenter.learning_rate = 0.01)")


def test_interval_says_what_it_is_about_where_draws_have_unequal_numbers(tmp_path: Path) -> None:
    for draw, seed, gain in ((0, 0, 0.1), (0, 1, 0.1), (0, 2, 0.1), (1, 0, 0.04), (2, 0, 0.05)):
        tail = f",finetune.draw={draw},finetune.seed={seed}"
        changes = {"draw": draw, "seeds": {"segmenter": 0, "gan": 0, "finetune": seed}}
        scored(tmp_path, f"{CONTROL},finetune.alpha=0.0{tail}", CONTROL, 0, 0.2, **changes)
        scored(tmp_path, f"{INFORMED}{tail}", INFORMED, 0, 0.2 + gain, **changes)
    groups, _ = both_groups(tmp_path)
    (block,) = gain_table(groups)
    (line,) = block["lines"]
    assert (line["change"], line["independent"]) == ("+7.8 ± 3.0", 3)
    assert line["interval"].endswith(" (about +6.3)")


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


def test_scores_of_another_seed_are_no_control(tmp_path: Path) -> None:
    """No pair, no gain: neither in a table nor in the summary."""
    scored(tmp_path, "cyclegan_matched,finetune.alpha=0.0", "cyclegan_matched", 0, 0.3)
    scored(tmp_path, "task_informed,gan.seed=1", "task_informed", 1, 0.4)
    result, page = make_report(found(tmp_path), tmp_path / "report", panels=3)
    assert "gain_task_informed" not in result.figures
    assert "evaluate/task_informed,gan.seed=1 has no finished control" in page
    assert "Paired gains" not in page and "points against the matched control" not in page


def test_a_replicate_counts_once(tmp_path: Path) -> None:
    for point, miou in (("", 0.31), (",finetune.draw=0", 0.9), (",gan.seed=1", 0.33)):
        seed = int("seed" in point)
        scored(tmp_path, f"task_informed{point}", "task_informed", seed, miou)
        scored(tmp_path, f"cyclegan_matched{point}", "cyclegan_matched", seed, 0.3)
    result, page = make_report(found(tmp_path), tmp_path / "report")
    assert result.figures["miou_task_informed"] == pytest.approx(0.32)
    names = ("evaluate/task_informed", "evaluate/task_informed,finetune.draw=0")
    said = f"counted once: {names[0]} and {names[1]} are the same replicate"
    assert Page(page).cells.count(said) == 1
    assert Page(page).row("14")[1:3] == ["2", "2"]


def test_pairs_that_share_a_seed_are_not_independent(tmp_path: Path) -> None:
    """3 draws with 2 finetuning seeds each."""
    for draw in range(3):
        for seed in range(2):
            tail = f",finetune.draw={draw},finetune.seed={seed}"
            changes = {"draw": draw, "seeds": {"segmenter": 0, "gan": 0, "finetune": seed}}
            control = f"cyclegan_matched,finetune.alpha=0.0{tail}"
            scored(tmp_path, control, "cyclegan_matched", 0, 0.3, **changes)
            miou = 0.33 + 0.02 * draw + 0.001 * seed
            scored(tmp_path, f"task_informed{tail}", "task_informed", 0, miou, **changes)
    groups, _ = both_groups(tmp_path)
    (block,) = gain_table(groups)
    (line,) = block["lines"]
    # The draws' means are 3.05, 5.05 and 7.05; Student's t of 2 degrees of freedom is 4.303.
    half = 4.303 * 2 / 3**0.5
    ends = f"+{5.05 - half:.1f} to +{5.05 + half:.1f}"
    assert (line["n"], line["independent"], line["interval"]) == (6, 3, ends)
    text = summary(groups, input_names([]))
    assert f"95 % confidence interval of the mean, of 3 independent values, {ends})." in text
