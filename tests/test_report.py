"""The report: figures, partial runs, escaping, self-containedness, repeatable bytes."""

import base64
import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_prep.config import load_class_set
from data_prep.shards import PackedSplit
from tigan import report
from tigan.config import ReportStage, StageJob, TrainingConfig
from tigan.report import PANEL_CAPTIONS
from tigan.report_nodes import read_nodes
from tigan.report_rows import difference, group_rows, summarise
from tigan.report_tables import data_table

CLASSES = "camvid11"
METHODS = {
    "source_only": 0.24,
    "cyclegan": 0.27,
    "cyclegan_matched": 0.275,
    "task_informed": 0.31,
}
SEEDS = (0, 1)
KEYS = ["munich/0_<b>", "ulm/7"]


def _row(method: str, seed: int, miou: float, **changes: Any) -> dict[str, Any]:
    """A row as tigan/evaluate.py writes it."""
    tuned = method in ("cyclegan_matched", "task_informed")
    names = list(load_class_set(CLASSES).classes)
    row = {
        "input": "cityscapes_val",
        "segmenter": "scratch",
        "translation": "none" if method == "source_only" else method,
        "method": method,
        "labels": 14 if method in ("task_informed", "cyclegan_matched") else None,
        "draw": 0 if tuned else None,
        "alpha": {"cyclegan_matched": 0.0, "task_informed": 0.5}.get(method),
        "gamma": 10.0 if tuned else None,
        "seeds": {
            "segmenter": 0,
            "gan": None if method == "source_only" else seed,
            "finetune": 0 if tuned else None,
        },
        "uint8": True,
        "classes": CLASSES,
        "images": 80,
        "miou": miou,
        "per_class": {name: miou + 0.02 * i for i, name in enumerate(names)} | {"rider": None},
        "confusion": [[1, 0], [0, 1]],
    }
    return row | changes


def _picture(path: Path, number: int, size: tuple[int, int] = (12, 16)) -> None:
    """A picture of noise that no other number gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)


def _finish(run: Path, name: str, science: dict[str, Any], **figures: float) -> Path:
    """config.yaml and done.json of a finished node."""
    stage, _, point = name.partition("/")
    folder = run / name
    folder.mkdir(parents=True, exist_ok=True)
    config = {"stage": stage, "point": point, "science": science}
    (folder / "config.yaml").write_text(json.dumps(config))
    done = {
        "stage": stage,
        "point": point,
        "science_hash": "0123456789abcdef" * 4,
        "figures": figures,
        "versions": {"python": "3.11.2", "torch": "2.14.1"},
        "seconds": 185.2,
        "world_size": 2,
        "threads": 1,
        "restarts": 0,
    }
    (folder / "done.json").write_text(json.dumps(done))
    return folder


def _evaluate(run: Path, name: str, rows: list[dict[str, Any]], panels: list[str]) -> None:
    folder = _finish(run, name, {"classes": CLASSES, "method": rows[0]["method"]})
    (folder / "scores.json").write_text(json.dumps({"rows": rows, "panels": panels}))
    kinds = ["input", "prediction"]
    if rows[0]["method"] == "source_only":
        kinds += ["real", "ground_truth"]
    for number in range(len(panels)):
        for kind in kinds:
            _picture(folder / f"panels/{number}_{kind}.png", abs(hash_of(name, kind, number)))


def hash_of(*words: object) -> int:
    """A number for some words that is the same in every process."""
    return int.from_bytes(repr(words).encode(), "big") % (1 << 31)


def _metrics(folder: Path, names: list[str], lines: int, curve: bool) -> None:
    """A metrics file with falling losses and, where asked, a rising mIoU."""
    if lines == 0:
        return
    rng = np.random.default_rng(hash_of(folder.parent.name, folder.name))
    folder.mkdir(parents=True, exist_ok=True)
    text = ""
    for i in range(1, lines + 1):
        values = {n: float(np.exp(-i / lines) + 0.1 * rng.random()) for n in names}
        line = {"images": 10 * i, "total": 10 * lines, "seconds": float(i), "kind": "train"}
        text += json.dumps(line | {"values": values}) + "\n"
        if curve and i % max(1, lines // 10) == 0:
            values = {"miou": 0.3 * i / lines + 0.02 * float(rng.random())}
            text += json.dumps(line | {"kind": "curve", "values": values}) + "\n"
    (folder / "metrics.jsonl").write_text(text)


def fake_run(run: Path, panels: list[str], *, lines: int = 0) -> dict[str, Path]:
    """A finished run with two seeds; returns what a report's `inputs` would be."""
    for name in ("render_synthia", "render_cityscapes", "pack_synthia", "pack_cityscapes"):
        _finish(run, name, {"seed": 0, "images": 680}, images=680)
    segmenter = {"segmenter": {"seed": 0, "crop": [96, 128]}, "classes": CLASSES}
    folder = _finish(run, "segmenter", segmenter, images=4000, images_per_second=64.1)
    _metrics(folder, ["cross_entropy", "learning_rate"], lines, curve=True)
    losses = ["lsgan_real", "lsgan_synthetic", "cycle_real", "cycle_synthetic", "gradient_lsgan"]
    source = [_row("source_only", 0, 0.688, input="synthia_val"), _row("source_only", 0, 0.24)]
    _evaluate(run, "evaluate/source_only", source, panels)
    for seed in SEEDS:
        tail = f",gan.seed={seed}" if seed else ""
        gan = f"gan/gan.seed={seed}" if seed else "gan"
        folder = _finish(run, gan, {"gan": {"seed": seed}}, images=400, images_per_second=2.5)
        _metrics(folder, losses, lines, curve=False)
        for method, miou in list(METHODS.items())[1:]:
            control = "finetune.alpha=0" if method == "cyclegan_matched" else ""
            if method != "cyclegan":
                point = ",".join(part for part in (control, tail.strip(",")) if part)
                finetune = {"finetune": {"alpha": 0.0 if control else 0.5, "labels": 14}}
                folder = _finish(run, f"finetune/{point}".rstrip("/"), finetune, images=200)
                more = [] if control else ["cross_entropy", "gradient_task"]
                _metrics(folder, losses + more, lines, curve=True)
            name = ",".join(part for part in (method, control, tail.strip(",")) if part)
            value = miou + 0.01 * seed * (1 + (method == "task_informed"))
            rows = [_row(method, seed, value), _row(method, seed, value + 0.001, uint8=False)]
            _evaluate(run, f"evaluate/{name}", rows, panels)
    return {
        str(path.parent.relative_to(run)): path.parent for path in sorted(run.rglob("config.yaml"))
    }


def _report(inputs: dict[str, Path], out: Path, title: str = "A run") -> tuple[Any, str]:
    science = ReportStage(title=title, classes=CLASSES)
    result = report.run(StageJob(out, science, TrainingConfig(), inputs))
    return result, (out / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path, Any, str]:
    """(inputs, report directory, result, page) of a finished run."""
    run = tmp_path_factory.mktemp("run")
    inputs = fake_run(run, KEYS, lines=20)
    return (inputs, run / "report", *_report(inputs, run / "report"))


class _Page(HTMLParser):
    """Collects tags, pictures and visible text; checks that tags are closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.pictures: list[tuple[str, str]] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        values = {key: value or "" for key, value in attrs}
        self.attributes += [(tag, key, value) for key, value in values.items()]
        if tag == "img":
            self.pictures.append((values["alt"], values["src"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.cells.append(data.strip())


def test_results_hold_all_rows_in_order(finished: tuple[dict[str, Path], Path, Any, str]) -> None:
    inputs, out, result, _ = finished
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert len(rows) == result.figures["rows"] == 2 + 3 * 2 * 2
    order = [row["method"] for row in rows]
    assert order == sorted(order, key=list(METHODS).index)
    expected = json.loads((inputs["evaluate/cyclegan"] / "scores.json").read_text())["rows"]
    assert [r for r in rows if r["method"] == "cyclegan"][:2] == expected
    assert set(result.outputs) == {
        str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()
    }


def test_means_deviations_and_differences(
    finished: tuple[dict[str, Path], Path, Any, str],
) -> None:
    _, _, result, page = finished
    assert result.figures["miou_synthia_val"] == 0.688
    assert result.figures["miou_source_only"] == 0.24
    assert result.figures["miou_task_informed"] == pytest.approx(0.32)
    deviation = 100 * statistics.stdev([0.31, 0.33])
    assert f"32.0 ± {deviation:.1f} %" in page
    assert "+4.0 ± 0.7 points against the matched control" in page  # 31.0 - 27.5, 33.0 - 28.5
    cells = _Page(page).cells
    assert "gan 0: 31.0 (+3.5)" in cells and "gan 1: 33.0 (+4.5)" in cells
    assert "gan 1: 28.0 (−0.5)" in cells  # CycleGAN under its control
    assert cells[cells.index("gan 1: 33.0 (+4.5)") + 2] == "32.1 ± 1.4"  # without the round trip


def test_statistics_of_few_values() -> None:
    assert summarise([None]) is None
    one, two = summarise([0.5, None]), summarise([0.2, 0.4])
    assert one is not None and (one.mean, one.deviation, one.n) == (0.5, None, 1)
    assert two is not None and two.deviation == pytest.approx(0.02**0.5)


def test_settings_are_not_averaged_and_controls_match(tmp_path: Path) -> None:
    control = "cyclegan_matched,finetune.alpha=0"
    rate = "finetune.learning_rate=0.001"
    rows = {
        control: _row("cyclegan_matched", 0, 0.30),
        f"{control},{rate}": _row("cyclegan_matched", 0, 0.20),
        f"{control},gan.seed=1": _row("cyclegan_matched", 1, 0.10),
        "task_informed": _row("task_informed", 0, 0.35),
        "task_informed,finetune.draw=1": _row("task_informed", 0, 0.36, draw=1),
        f"task_informed,{rate}": _row("task_informed", 0, 0.31),
        "task_informed,finetune.labels=29": _row("task_informed", 0, 0.40, labels=29),
        "task_informed,gan.seed=2": _row("task_informed", 2, 0.50),
    }
    for name, row in rows.items():
        _evaluate(tmp_path, f"evaluate/{name}", [row], [])
    nodes = read_nodes({f"evaluate/{name}": tmp_path / "evaluate" / name for name in rows})
    groups = group_rows(nodes)
    found = {
        (g.method, g.labels, *g.settings): [round(m.miou, 3) for m in g.members] for g in groups
    }
    assert found == {
        ("cyclegan_matched", 14): [0.30, 0.10],
        ("cyclegan_matched", 14, "finetune.learning_rate"): [0.20],
        ("task_informed", 14): [0.35, 0.36, 0.50],
        ("task_informed", 14, "finetune.learning_rate"): [0.31],
        ("task_informed", 29): [0.40],
    }
    controls = [m for g in groups if g.method == "cyclegan_matched" for m in g.members]
    changes = [difference(m, controls) for g in groups[2:] for m in g.members]
    assert [c if c is None else round(c, 3) for c in changes] == [0.05, 0.06, None, 0.11, 0.10]


def test_nothing_finished(tmp_path: Path) -> None:
    inputs = {name: tmp_path / name for name in ("segmenter", "gan", "evaluate/source_only")}
    result, page = _report(inputs, tmp_path / "report")
    assert result.figures == {"rows": 0}
    assert result.outputs == ["index.html", "results.json"]
    assert json.loads((tmp_path / "report/results.json").read_text()) == {"rows": []}
    assert "No method has been evaluated yet" in page
    assert "0 of 3 stages are finished" in page
    assert _report({}, tmp_path / "empty")[0].figures == {"rows": 0}


def test_partial_run_marks_what_is_missing(tmp_path: Path) -> None:
    inputs = fake_run(tmp_path, ["munich/0"])
    (inputs["evaluate/task_informed"] / "done.json").unlink()
    (inputs["evaluate/task_informed,gan.seed=1"] / "done.json").unlink()
    (inputs["evaluate/cyclegan,gan.seed=1"] / "done.json").unlink()
    (inputs["gan"] / "metrics.jsonl").write_text('{"images": 10, "to')  # a killed writer
    (inputs["segmenter"] / "metrics.jsonl").write_text("garbage\n")
    (inputs["evaluate/source_only"] / "panels/0_real.png").unlink()
    (inputs["evaluate/cyclegan_matched,finetune.alpha=0"] / "scores.json").write_text('{"rows": 1}')
    (inputs["pack_synthia"] / "config.yaml").write_text('science_hash: "another"\n')
    inputs["evaluate/task_informed,finetune.labels=29"] = tmp_path / "never_started"
    result, page = _report(inputs, tmp_path / "report")
    assert "miou_task_informed" not in result.figures
    assert result.figures["miou_cyclegan"] == pytest.approx(METHODS["cyclegan"])
    assert "(not finished) after task-informed finetuning" in page
    cells = _Page(page).cells
    missing = cells[cells.index("pack_synthia") :]
    assert cells.index("pack_synthia") < cells.index("Domain gap")  # among what is not finished
    assert missing[missing.index("pack_synthia", 1) + 1] == "not finished"
    assert cells.count("1 more not finished") == 2  # CycleGAN and its matched control
    row = page[page.index('<tr class="task_informed">') :]
    assert "not finished</td>" in row[: row.index("</tr>")] and "29" in row.split("</tr>")[1]
    assert "segmenter/metrics.jsonl: " in page
    assert "evaluate/source_only/panels/0_real.png: No such file" in page
    assert "finetune.alpha=0/scores.json: rows: expected a list" in page


def test_hostile_names_are_text(tmp_path: Path) -> None:
    hostile = '<script>alert("1")</script>$x^{$'
    inputs = fake_run(tmp_path, [hostile])
    science = {"gan": {hostile: hostile}}
    (inputs["gan"] / "config.yaml").write_text(json.dumps({"science": science}))
    scores_path = inputs["evaluate/cyclegan"] / "scores.json"
    scores = json.loads(scores_path.read_text())
    scores["rows"][0]["method"] = scores["rows"][0]["per_class"][hostile] = 0.5
    scores["rows"][0]["method"] = hostile
    scores_path.write_text(json.dumps(scores))
    _metrics(inputs["gan"], [hostile], 5, curve=False)
    inputs[f"evaluate/{hostile}"] = tmp_path / "nowhere"
    _, page = _report(inputs, tmp_path / "report", title=hostile)
    assert "<script" not in page.lower()
    parsed = _Page(page)
    assert parsed.cells.count(hostile) >= 5  # title, heading, class, panel key, config
    assert all("<" not in key for _, key, _ in parsed.attributes)


def test_page_loads_nothing(finished: tuple[dict[str, Path], Path, Any, str]) -> None:
    page = finished[3]
    parsed = _Page(page)
    assert not {tag for tag, _, _ in parsed.attributes} & {"script", "link", "iframe", "object"}
    loading = [v for _, key, v in parsed.attributes if key in ("src", "href", "srcset", "data")]
    assert len(loading) > 10 and all(value.startswith("data:image/") for value in loading)
    assert not re.search(r"url\(|@import|https?:", page)
    for _, src in parsed.pictures:
        head, _, content = src.partition(",")
        decoded = base64.b64decode(content, validate=True)
        assert decoded.startswith(b"\x89PNG") or ("svg" in head and b"</svg>" in decoded)
        assert b"<image" not in decoded and b"<script" not in decoded


def test_data_table_shows_what_was_packed(tmp_path: Path, packed_synthia: Path) -> None:
    _finish(tmp_path, "pack_synthia", {"kind": "synthia"})
    _finish(tmp_path, "pack_cityscapes", {"kind": "cityscapes"})
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


def test_same_inputs_same_bytes(
    finished: tuple[dict[str, Path], Path, Any, str], tmp_path: Path
) -> None:
    inputs, out, result, _ = finished
    again, _ = _report(dict(reversed(inputs.items())), tmp_path / "again")
    assert again == result
    for name in result.outputs:
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name


def test_panels_stand_in_order(finished: tuple[dict[str, Path], Path, Any, str]) -> None:
    inputs, _, _, page = finished
    captions = list(PANEL_CAPTIONS.values())
    pictures = [(alt, src) for alt, src in _Page(page).pictures if alt.split(", ")[-1] in KEYS]
    assert [alt for alt, _ in pictures] == [f"{c}, {key}" for key in KEYS for c in captions]
    source, gan = inputs["evaluate/source_only"], inputs["evaluate/cyclegan"]
    informed = inputs["evaluate/task_informed"]
    for number in range(len(KEYS)):
        expected = [
            source / f"panels/{number}_real.png",
            gan / f"panels/{number}_input.png",
            informed / f"panels/{number}_input.png",
            source / f"panels/{number}_prediction.png",
            gan / f"panels/{number}_prediction.png",
            informed / f"panels/{number}_prediction.png",
            source / f"panels/{number}_ground_truth.png",
        ]
        shown = [base64.b64decode(src.partition(",")[2]) for _, src in pictures[7 * number :][:7]]
        assert shown == [path.read_bytes() for path in expected]


def test_wide_predictions_are_scaled_without_new_colours(tmp_path: Path) -> None:
    inputs = fake_run(tmp_path, ["munich/0"])
    path = inputs["evaluate/source_only"] / "panels/0_prediction.png"
    colours = np.array([[0, 0, 142], [128, 64, 128]], np.uint8)
    pixels = colours[np.random.default_rng(0).integers(0, 2, (800, 1600))]
    assert cv2.imwrite(str(path), pixels)
    _, page = _report(inputs, tmp_path / "report")
    (src,) = (s for alt, s in _Page(page).pictures if alt.startswith("Prediction, source only"))
    content = np.frombuffer(base64.b64decode(src.partition(",")[2]), np.uint8)
    small = cv2.imdecode(content, cv2.IMREAD_COLOR)
    assert small.shape == (320, 640, 3)
    assert {tuple(c) for c in small.reshape(-1, 3).tolist()} == {(0, 0, 142), (128, 64, 128)}


def test_label_curve_only_for_several_counts(
    finished: tuple[dict[str, Path], Path, Any, str], tmp_path: Path
) -> None:
    assert "figures/labels.svg" not in finished[2].outputs
    inputs = {key: path for key, path in finished[0].items() if key.startswith("evaluate")}
    name = "evaluate/task_informed,finetune.labels=29"
    _evaluate(tmp_path, name, [_row("task_informed", 0, 0.36, labels=29)], [])
    inputs[name] = tmp_path / name
    result, page = _report(inputs, tmp_path / "report")
    assert "figures/labels.svg" in result.outputs
    assert "against the number of labelled real images" in page
    assert result.figures["miou_task_informed"] == pytest.approx(0.32)  # the base point leads
