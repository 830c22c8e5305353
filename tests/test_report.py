"""The report: its tables, partial runs, escaping, self-containedness, repeatable bytes."""

import base64
import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from report_runs import (
    METHODS,
    Page,
    fake_run,
    found,
    make_report,
    scored,
    sweep_run,
    weights_grid,
    write_metrics,
)

from tigan import report
from tigan.config import ReportStage, StageJob, TrainingConfig
from tigan.panels import PANEL_CAPTIONS
from tigan.report_nodes import read_nodes
from tigan.report_rows import group_rows, headline

Finished = tuple[dict[str, Path], Path, Any, str]
REAL = "MiniCity (Cityscapes style) val"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """(inputs, report directory, result, page) of a finished run of four methods, two seeds."""
    run = tmp_path_factory.mktemp("run")
    inputs = fake_run(run, lines=20)
    return (inputs, run / "report", *make_report(inputs, run / "report"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The same of a run of all methods over labels, draws, alpha and gamma."""
    run = tmp_path_factory.mktemp("sweep")
    sweep_run(run)
    weights_grid(run)
    return (found(run), run / "report", *make_report(found(run), run / "report"))


def test_results_hold_all_rows_in_order(finished: Finished) -> None:
    inputs, out, result, _ = finished
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert len(rows) == result.figures["rows"] == 3 + 3 * 2 * 3
    order = [row["method"] for row in rows]
    assert order == sorted(order, key=list(METHODS).index)
    expected = json.loads((inputs["evaluate/cyclegan"] / "scores.json").read_text())["rows"]
    expected = [{**row, "settings": {}} for row in expected]  # alpha, gamma, labels have columns
    assert [r for r in rows if r["method"] == "cyclegan"][:3] == expected
    assert set(result.outputs) == {
        str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()
    }
    for name in ("figures/methods", "figures/class_gains"):
        assert {f"{name}.svg", f"{name}.pdf"} <= set(result.outputs)
    assert "figures/labels.svg" not in result.outputs  # of one number of labels


def test_means_deviations_and_differences(finished: Finished) -> None:
    _, _, result, page = finished
    assert result.figures["miou_synthia_val"] == 0.64
    assert result.figures["miou_source_only"] == 0.24
    assert result.figures["miou_task_informed"] == pytest.approx(0.32)
    assert result.figures["gain_task_informed"] == pytest.approx(0.04)
    deviation = 100 * statistics.stdev([0.31, 0.33])
    assert f"32.0 ± {deviation:.1f} %" in page
    # 31.0 - 27.5 and 33.0 - 28.5; Student's t of one degree of freedom is 12.706.
    assert "+4.0 ± 0.7 points against the matched control" in page
    assert "95 % confidence interval of the mean −2.4 to +10.4" in page
    parsed = Page(page)
    informed = ["task-informed", "14", "0.5", "10", "32.0 ± 1.4", "2"]
    assert parsed.row("task-informed") == [*informed, "+4.0 ± 0.7", "control", "32.1 ± 1.4"]
    assert parsed.row("CycleGAN")[4:8] == ["27.5 ± 0.7", "2", "+3.5 ± 0.7", "source only"]
    single = parsed.row(REAL, "task-informed, 14 labels, α = 0.5, γ = 10", "1")
    assert single[3:] == ["33.0", "+4.5"]


def test_nothing_finished(tmp_path: Path) -> None:
    inputs = {name: tmp_path / name for name in ("segmenter", "gan", "evaluate/source_only")}
    result, page = make_report(inputs, tmp_path / "report", panels=3)
    assert result.figures == {"rows": 0}
    assert result.outputs == ["index.html", "results.json", "model_card.md"]
    assert json.loads((tmp_path / "report/results.json").read_text()) == {"rows": []}
    assert "No method has been evaluated yet" in page
    assert "0 of 3 stages are finished" in page
    assert Page(page).row("Synthia val")[2:4] == ["not run", "0"]
    assert make_report({}, tmp_path / "empty")[0].figures == {"rows": 0}


def test_partial_run_marks_what_is_missing(tmp_path: Path) -> None:
    inputs = fake_run(tmp_path)
    (inputs["evaluate/task_informed"] / "done.json").unlink()
    (inputs["evaluate/task_informed,gan.seed=1"] / "done.json").unlink()
    (inputs["evaluate/cyclegan,gan.seed=1"] / "done.json").unlink()
    (inputs["gan"] / "metrics.jsonl").write_text('{"images": 10, "to')  # a killed writer
    (inputs["segmenter"] / "metrics.jsonl").write_text("garbage\n")
    (inputs["finetune"] / "metrics.jsonl").write_text('{"images": 10}\n')
    (inputs["evaluate/cyclegan_matched,finetune.alpha=0.0"] / "scores.json").write_text(
        '{"rows": 1}'
    )
    (inputs["pack_synthia"] / "config.yaml").write_text('science_hash: "another"\n')
    for point in ("task_informed,finetune.labels=all", "finetuned_segmenter"):
        inputs[f"evaluate/{point}"] = tmp_path / "never_started"
    result, page = make_report(inputs, tmp_path / "report")
    assert "miou_task_informed" not in result.figures
    assert result.figures["miou_cyclegan"] == pytest.approx(METHODS["cyclegan"])
    assert "(not finished) after task-informed finetuning" in page
    parsed = Page(page)
    cells = parsed.cells
    assert cells.index("pack_synthia") < cells.index("Domain gap")  # among what is not finished
    assert parsed.row("pack_synthia")[1] == "not finished"
    assert cells.count("1 more not finished") == 2  # CycleGAN and its matched control
    assert parsed.row("task-informed", "all")[4] == "not finished"
    pending = [r for r in parsed.rows if r[0] == "f itself finetuned on the labels"]
    assert [r[4] for r in pending] == ["not finished"] * 2  # on both val sets
    assert "segmenter/metrics.jsonl: " in page
    assert "finetune/metrics.jsonl: expected images, kind and values" in page
    assert "finetune.alpha=0.0/scores.json: rows: expected a list" in page


def test_hostile_names_are_text(tmp_path: Path) -> None:
    hostile = '<script>alert("1")</script>$x^{$'
    inputs = fake_run(tmp_path)
    science = {"gan": {hostile: hostile}}
    (inputs["gan"] / "config.yaml").write_text(json.dumps({"science": science}))
    scores_path = inputs["evaluate/cyclegan"] / "scores.json"
    scores = json.loads(scores_path.read_text())
    scores["rows"][0]["per_class"][hostile] = 0.5
    scores["rows"][0]["method"] = scores["rows"][0]["segmenter"] = hostile
    scores_path.write_text(json.dumps(scores))
    write_metrics(inputs["gan"], [hostile], 5, curve=False)
    inputs[f"evaluate/{hostile}"] = tmp_path / "nowhere"
    inputs[f"evaluate/task_informed,finetune.alpha={hostile}"] = tmp_path / "nowhere"
    _, page = make_report(inputs, tmp_path / "report", title=hostile)
    assert "<script" not in page.lower()
    parsed = Page(page)
    assert parsed.cells.count(hostile) >= 4  # title, heading, class, config
    assert all("<" not in key for _, key, _ in parsed.attributes)


def test_page_loads_nothing(finished: Finished) -> None:
    page = finished[3]
    parsed = Page(page)
    assert not {tag for tag, _, _ in parsed.attributes} & {"script", "link", "iframe", "object"}
    loading = [v for _, key, v in parsed.attributes if key in ("src", "href", "srcset", "data")]
    assert len(loading) > 10 and all(value.startswith("data:image/") for value in loading)
    assert not re.search(r"url\(|@import|https?:", page)
    for value in loading:
        head, _, content = value.partition(",")
        decoded = base64.b64decode(content, validate=True)
        assert "svg" in head and b"</svg>" in decoded
        assert b"<image" not in decoded and b"<script" not in decoded


def test_every_figure_has_a_form_for_dark_pages(finished: Finished) -> None:
    _, out, _, page = finished
    sources = [v for tag, key, v in Page(page).attributes if (tag, key) == ("source", "srcset")]
    assert len(sources) == len(Page(page).pictures) > 5
    light, dark = (base64.b64decode(uri.partition(",")[2]).decode() for uri in _first_figure(page))
    assert light == (out / "figures/methods.svg").read_text()
    assert "#1f2328" in light and "#1f2328" not in dark
    assert light.replace("#1f2328", "#dfe3e7").replace("#e4e4e4", "#353b42") == dark
    assert "@media screen and (prefers-color-scheme: dark)" in page and "@media print" in page


def _first_figure(page: str) -> tuple[str, str]:
    """(light, dark) data URIs of the first figure."""
    attributes = Page(page).attributes
    dark = next(v for tag, key, v in attributes if (tag, key) == ("source", "srcset"))
    return Page(page).pictures[0][1], dark


def test_classes_are_said_with_every_miou(swept: Finished) -> None:
    page = swept[3]
    texts = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    assert len(texts) == 4
    notes = re.findall(r'<p class="note">(.*?)</p>', page, re.DOTALL)
    tables = [note for note in notes if "IoU" in note or "deviation" in note]
    assert len(tables) == 4  # the gap, the methods, the gains, the classes
    for text in texts + tables:
        assert "class set camvid11 (11 classes)" in text, text


def test_same_inputs_same_bytes(swept: Finished, tmp_path: Path) -> None:
    inputs, out, result, _ = swept
    again, _ = make_report(dict(reversed(inputs.items())), tmp_path / "again")
    assert again == result and any(name.endswith(".pdf") for name in result.outputs)
    for name in result.outputs:
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name


def test_pictures_are_drawn_from_the_run(tmp_path: Path, run_dir: Path) -> None:
    """A run of tiny stages; then without the weights that the pictures need."""
    ignored = shutil.ignore_patterns("metrics.jsonl", "tensorboard", "checkpoints")
    run = Path(shutil.copytree(run_dir, tmp_path / "run", ignore=ignored))
    science = ReportStage(title="Tiny", classes="cityscapes19", panels=3)
    job = StageJob(tmp_path / "report", science, TrainingConfig(), found(run))
    report.run(job)
    page = Page((tmp_path / "report/index.html").read_text())
    shown = [alt for alt, src in page.pictures if src.startswith("data:image/png")]
    captions = list(PANEL_CAPTIONS.values())
    assert len(shown) == 3 * len(captions)
    assert [alt.rpartition(", ")[0] for alt in shown] == captions * 3
    for place in ("best", "median", "worst"):
        (caption,) = (cell for cell in page.cells if cell.startswith(f"{place} gain: "))
        assert re.search(r"[\d.]+ % against [\d.]+ % of the control", caption)
    assert not any(cell.startswith("panels: ") for cell in page.cells)
    (text,) = (i for i, cell in enumerate(page.cells) if cell.endswith("not shown; shown are"))
    assert page.cells[text + 1 : text + 7 : 2] == [
        "evaluate/task_informed",
        "evaluate/source_only",
        "evaluate/cyclegan",
    ]
    (run / "finetune/translator.pt").unlink()
    report.run(job)
    page = Page((tmp_path / "report/index.html").read_text())
    left = [alt for alt, src in page.pictures if src.startswith("data:image/png")]
    assert len(left) == 3 * 5 and not any("task-informed" in alt for alt in left)
    assert any(cell.startswith("panels: evaluate/task_informed: ") for cell in page.cells)


def test_page_of_a_sweep_says_what_was_chosen(swept: Finished) -> None:
    _, out, result, page = swept
    for name in ("alpha_gamma", "class_gains", "labels", "methods"):
        assert {f"figures/{name}.svg", f"figures/{name}.pdf"} <= set(result.outputs)
        pdf = (out / f"figures/{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/CreationDate" not in pdf
    assert "against the number of labelled real images" in page
    assert "Chosen on the selection split of Cityscapes train: α = 0.7, γ = 10" in page
    assert "(labelled images: 26)" in page
    rows = Page(page).rows
    starts = [row[:3] for row in rows if len(row) == 7 and row[1] == "3"]
    assert starts == [[str(count), "3", "3"] for count in (14, 29, 59)] * 3
    titles = [row[0] for row in rows if len(row) == 1 and " against " in row[0]]
    assert titles == [
        "task-informed (α = 0.5, γ = 10) against its matched control (α = 0)",
        "task-informed (α = 0.5, γ = 10) against f itself finetuned on the same labels",
        "both (α = 0.5, γ = 10) against f itself finetuned on the same labels",
    ]
    assert "13 classes" in Page(page).row("Cityscapes val", "on the synthetic images, backbone "
        "pretrained on ImageNet (resnet101-63fe2227)")[4]  # fmt: skip


def test_page_of_a_sweep_has_every_method(swept: Finished) -> None:
    inputs, _, result, page = swept
    groups = group_rows(read_nodes(inputs))
    for method in METHODS:
        assert result.figures[f"miou_{method}"] == headline(groups, method).stats.mean
    parsed = Page(page)
    start = ["both: task-informed images, f finetuned on them", "14", "0.5", "10"]
    assert parsed.row(*start)[7] == "control"
    assert parsed.row("AdaptSegNet (no labels)")[6:8] == ["+2.0", "source only"]
    assert f"All {len(groups)} lines" in page  # folded away
    assert "<code>results.json</code> has all" in page


def test_figures_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    scored(tmp_path, "source_only", "source_only", 0, 0.2)
    figures = tmp_path / "report/figures"
    figures.mkdir(parents=True)
    for name in ("labels.svg", "labels.pdf", "methods.svg", "notes.txt"):
        (figures / name).write_text("earlier")
    make_report(found(tmp_path), tmp_path / "report")
    left = sorted(path.name for path in figures.iterdir())
    assert left == ["methods.pdf", "methods.svg", "notes.txt"]
    assert (figures / "methods.svg").read_text() != "earlier"
