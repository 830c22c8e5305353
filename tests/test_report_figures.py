"""The report's figures: colours, curves, repeatable files."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import CLASSES, METHODS, row, write_metrics

from tigan import report_curves, report_figures
from tigan.report_curves import MOST_BINS, MOST_POINTS, read_curves
from tigan.report_nodes import METHODS as ORDER
from tigan.report_nodes import Node


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
