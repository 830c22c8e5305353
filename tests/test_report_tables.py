"""The report's groups of replicates, what they are compared with, and its tables."""

from pathlib import Path

import numpy as np
import pytest
from report_runs import (
    CLASSES,
    LABELLED,
    METHODS,
    NAMES,
    evaluated,
    finish,
    found,
    row,
    scored,
    sweep_run,
    weights_grid,
)

from data_prep.config import load_class_set
from data_prep.shards import PackedSplit
from tigan.report_nodes import Node, read_node, read_nodes
from tigan.report_pairs import difference, differences, members_of
from tigan.report_rows import INPUTS, REAL, Group, group_rows, headline, headlines, summarise
from tigan.report_summary import conditions, summary
from tigan.report_tables import (
    MOST_COLUMNS,
    MOST_LINES,
    class_table,
    data_table,
    gap_table,
    methods_table,
    shown_columns,
)
from tigan.report_text import input_names, method_name


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all methods over labels, draws, alpha and gamma."""
    run = tmp_path_factory.mktemp("sweep")
    sweep_run(run)
    weights_grid(run)
    return run


def groups_of(run: Path) -> list[Group]:
    return group_rows(read_nodes(found(run)))


def one(groups: list[Group], method: str, **wanted: object) -> Group:
    """The only group of a method with these attributes."""
    (group,) = (
        g
        for g in groups
        if g.method == method and all(getattr(g, key) == value for key, value in wanted.items())
    )
    return group


def test_statistics_of_few_values() -> None:
    assert summarise([None]) is None
    only, two = summarise([0.5, None]), summarise([0.2, 0.4])
    assert only is not None and (only.mean, only.deviation, only.n) == (0.5, None, 1)
    assert two is not None and two.deviation == pytest.approx(0.02**0.5)


def test_selection_split_is_in_no_table(swept: Path) -> None:
    nodes = read_nodes(found(swept))
    assert {group.input for group in group_rows(nodes)} == set(INPUTS)
    chosen_on = group_rows(nodes, selection=True)
    assert {group.input for group in chosen_on} == {"cityscapes_selection"}
    assert one(chosen_on, "oracle").members[0].miou == METHODS["oracle"] + 0.02
    assert not any(group.pending for group in chosen_on)


def test_settings_are_not_averaged_and_controls_match(tmp_path: Path) -> None:
    control, rate = "cyclegan_matched,finetune.alpha=0.0", "finetune.learning_rate=0.001"
    rows = {
        control: row("cyclegan_matched", 0, 0.30),
        f"{control},{rate}": row("cyclegan_matched", 0, 0.20),
        f"{control},gan.seed=1": row("cyclegan_matched", 1, 0.10),
        "task_informed": row("task_informed", 0, 0.35),
        "task_informed,finetune.draw=1": row("task_informed", 0, 0.36, draw=1),
        f"task_informed,{rate}": row("task_informed", 0, 0.31),
        "task_informed,finetune.alpha_scales=all": row("task_informed", 0, 0.33),
        "task_informed,finetune.labels=29": row("task_informed", 0, 0.40, labels=29),
        "task_informed,gan.seed=2": row("task_informed", 2, 0.50),
    }
    for point, content in rows.items():
        evaluated(tmp_path, point, content)
    groups = groups_of(tmp_path)
    names = {
        (g.method, g.labels, *g.settings): [round(m.miou, 3) for m in g.members] for g in groups
    }
    assert names == {
        ("cyclegan_matched", 14): [0.30, 0.10],
        ("cyclegan_matched", 14, "finetune.learning_rate"): [0.20],
        ("task_informed", 14): [0.35, 0.36, 0.50],
        ("task_informed", 14, "finetune.alpha_scales"): [0.33],
        ("task_informed", 14, "finetune.learning_rate"): [0.31],
        ("task_informed", 29): [0.40],
    }
    controls = members_of(groups, "cyclegan_matched")
    changes = [difference(m, controls) for g in groups[2:] for m in g.members]
    # No control of another draw, seed or number of labels stands in; alpha_scales means nothing
    # to a control.
    expected = [0.05, None, None, 0.03, 0.11, None]
    assert [c if c is None else round(c, 3) for c in changes] == expected


def test_swept_keys_are_those_of_the_frozen_config(tmp_path: Path) -> None:
    """A long label is cut, and says less."""
    name = "evaluate/task_informed,finetune.alpha=0.9,finetune.lear~0123abcd"
    frozen = {"gan.seed": 1, "gan.betas": [0.5, 0.9], "finetune.labels": "all", "gan.flip": True}
    assert Node(name, tmp_path, {"swept": frozen}, None).swept == {
        "finetune.labels": "all",
        "gan.betas": "0.5x0.9",
        "gan.flip": "true",
    }
    for config in ({}, {"swept": {}}):  # none: the label
        assert Node(name, tmp_path, config, None).swept == {"finetune.alpha": "0.9"}
    (tmp_path / "config.yaml").write_text("swept: [gan.seed]\n")
    assert "config.yaml: swept: expected a mapping" in read_node("gan", tmp_path).problem


def test_what_each_method_is_compared_with(swept: Path) -> None:
    groups = group_rows(read_nodes(found(swept)))
    draws = {
        method: [m.miou for m in one(groups, method, labels=29, input=INPUTS[1]).members]
        for method in LABELLED
    }
    both = differences(one(groups, "both", labels=29), groups)
    pairs = zip(draws["both"], draws["cyclegan_matched"], strict=True)
    assert both == pytest.approx([a - b for a, b in pairs])
    finetuned = differences(one(groups, "finetuned_segmenter", labels=29, input=INPUTS[1]), groups)
    assert finetuned == pytest.approx([m - 0.24 for m in draws["finetuned_segmenter"]])
    on_synthetic = differences(one(groups, "adaptsegnet", input=INPUTS[0]), groups)
    assert on_synthetic == pytest.approx([METHODS["adaptsegnet"] - METHODS["source_only"]])
    assert differences(one(groups, "oracle", input=INPUTS[1]), groups) == pytest.approx([0.28])


def test_starts_of_f_are_not_mixed(swept: Path) -> None:
    groups = group_rows(read_nodes(found(swept)))
    sources = [g for g in groups if g.method == "source_only" and g.input == INPUTS[1]]
    assert [(g.start, g.stats.mean) for g in sources] == [
        ("scratch", 0.24),
        ("resnet101-63fe2227", 0.386),
    ]
    assert [method_name(g) for g in sources] == [
        "source only",
        "source only, f started from resnet101-63fe2227",
    ]
    assert headline(groups, "source_only") is sources[0]
    lines = gap_table(groups, input_names([]))
    shown = [(line["images"], line["miou"], line["n"], line["published"]) for line in lines]
    assert shown == [
        ("Synthia val", "64.0", 1, "64.8"),
        ("Cityscapes val", "24.0", 1, "9.9"),
        ("Cityscapes val", "38.6", 1, "38.6"),
    ]
    assert [line["published_images"] for line in lines] == [
        "Synthia val, classes not stated",
        "Cityscapes val, classes not stated",
        "Cityscapes val, 13 classes",
    ]
    assert "resnet101-63fe2227" in lines[2]["trained"]
    assert [line["miou"] for line in gap_table([], input_names([]))] == [None] * 3


def test_comparison_is_at_the_labels_of_the_task_informed_headline(tmp_path: Path) -> None:
    """The base of the other methods is not finished, nor is that of the task-informed one."""
    for method in ("task_informed", "both", "cyclegan_matched"):
        control = ",finetune.alpha=0.0" if method == "cyclegan_matched" else ""
        for count in (29, 59)[: 1 + bool(control)]:
            point = f"{method}{control},finetune.labels={count}"
            scored(tmp_path, point, method, 0, 0.30 + count / 1000, labels=count)
    for count, miou in ((14, 0.20), (29, 0.25)):
        point = "finetuned_segmenter" + (f",finetune.labels={count}" if count > 14 else "")
        scored(tmp_path, point, "finetuned_segmenter", 0, miou, labels=count)
    scored(tmp_path, "oracle", "oracle", 0, 0.5)
    text = summary(groups_of(tmp_path), input_names([]))
    assert (
        "For comparison: f itself finetuned on the labels (29 labelled images) 25.0 %; both: "
        "task-informed images, f finetuned on them (29 labelled images) 32.9 %; oracle: trained on "
        "all real labels 50.0 %."
    ) in text
    assert "32.9 % after CycleGAN with the same extra steps" in text


def test_control_of_other_labels_is_not_put_beside_the_task_informed_result(tmp_path: Path) -> None:
    scored(tmp_path, "task_informed", "task_informed", 0, 0.31)
    point = "cyclegan_matched,finetune.alpha=0.0,finetune.labels=297"
    scored(tmp_path, point, "cyclegan_matched", 0, 0.25, labels=297)
    text = summary(groups_of(tmp_path), input_names([]))
    assert "(not finished) after CycleGAN with the same extra steps" in text and "25.0" not in text


def test_differences_say_how_many_have_a_partner(tmp_path: Path) -> None:
    for seed in (0, 1):
        tail = f",gan.seed={seed}" if seed else ""
        scored(tmp_path, f"task_informed{tail}", "task_informed", seed, 0.3)
    scored(tmp_path, "cyclegan_matched,finetune.alpha=0.0", "cyclegan_matched", 0, 0.2)
    control, informed = methods_table(groups_of(tmp_path), input_names([]))["main"][0]["lines"]
    assert (informed["n"], informed["change"], informed["base"]) == (2, "+10.0", "control (1 of 2)")
    assert control["base"] == ""


def test_unequal_numbers_of_classes_are_said(tmp_path: Path) -> None:
    scored(tmp_path, "source_only", "source_only", 0, 0.2)
    classes = load_class_set(CLASSES)
    groups = groups_of(tmp_path)
    assert not any("means over" in line for line in conditions(groups, classes, input_names([])))
    every = dict.fromkeys(NAMES, 0.3)
    scored(tmp_path, "oracle", "oracle", 0, 0.5, per_class=every)
    found = conditions(groups_of(tmp_path), classes, input_names([]))
    assert sum("the rows are means over 10 to 11 classes" in line for line in found) == 2


def test_both_without_a_task_loss_is_of_the_controls_images(tmp_path: Path) -> None:
    for alpha in (0.0, 0.5):
        scored(tmp_path, f"both,finetune.alpha={alpha}", "both", 0, 0.3, alpha=alpha)
    names = {g.alpha: method_name(g) for g in groups_of(tmp_path) if g.input == REAL}
    assert names[0.0] == "both: the control's images (α = 0), f finetuned on them"
    assert names[0.5] == "both: task-informed images, f finetuned on them"


def test_summary_names_what_is_pending_and_nothing_that_was_not_asked_for(tmp_path: Path) -> None:
    scored(tmp_path, "source_only", "source_only", 0, 0.2)
    scored(tmp_path, "task_informed", "task_informed", 0, 0.3)
    text = summary(groups_of(tmp_path), input_names([]))
    assert "reaches 20.0 % without translation (source only) and 30.0 % after task-inf" in text
    assert "CycleGAN" not in text and "not finished" not in text
    pending = tmp_path / "evaluate" / "cyclegan" / "config.yaml"
    pending.parent.mkdir(parents=True)
    pending.write_text("stage: evaluate\n")
    again = summary(groups_of(tmp_path), input_names([]))
    assert "(source only), (not finished) after CycleGAN and 30.0 %" in again


def test_long_tables_show_what_stands_for_each_method(swept: Path) -> None:
    groups = group_rows(read_nodes(found(swept)))
    assert len(groups) > MOST_LINES
    table = methods_table(groups, input_names([]))
    main, all_ = ([len(block["lines"]) for block in table[key]] for key in ("main", "all"))
    assert sum(all_) == len(groups) and main == [5, 9]
    informed = [line for line in table["main"][1]["lines"] if line["kind"] == "task_informed"]
    assert [(line["labels"], line["alpha"]) for line in informed] == [(14, "0.5")]
    columns = shown_columns(groups)
    assert len(columns) == 9 <= MOST_COLUMNS and columns == headlines(groups)[5:]
    few = groups[:MOST_LINES]
    assert methods_table(few, {})["all"] == []


def test_best_of_a_class_is_no_bound(swept: Path) -> None:
    columns = shown_columns(group_rows(read_nodes(found(swept))))
    table = class_table(columns, load_class_set(CLASSES))
    for line in table["lines"]:
        best = [g.method for g, cell in zip(columns, line["cells"], strict=True) if cell["best"]]
        assert best == ([] if line["name"] == "rider" else ["both"])


def test_data_table_shows_what_was_packed(tmp_path: Path, packed_synthia: Path) -> None:
    finish(tmp_path, "pack_synthia", {"kind": "synthia"})
    finish(tmp_path, "pack_cityscapes", {"kind": "cityscapes"})
    for path in packed_synthia.iterdir():
        (tmp_path / "pack_synthia" / path.name).symlink_to(path)
    (tmp_path / "pack_cityscapes" / "index.json").write_text("{}")
    nodes = read_nodes({name: tmp_path / name for name in ("pack_synthia", "pack_cityscapes")})
    problems: list[str] = []
    train, val = data_table(nodes, load_class_set("synthia16"), problems)
    assert (train["title"], train["samples"], val["samples"]) == ("synthia train", "7", "3")
    assert sum(float(share) for share in train["shares"].values()) == pytest.approx(100, abs=0.1)
    split = PackedSplit(packed_synthia, "train")
    road = np.mean([split.labels(i) == 3 for i in range(len(split))])
    assert float(train["shares"]["road"]) == pytest.approx(100 * road, abs=0.01)
    assert len(problems) == 2 and "pack_cityscapes" in problems[0] and "format" in problems[0]
