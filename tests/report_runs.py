"""Runs as a report finds them on disk, with scores that a test sets; and a parser of its page."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.config import load_class_set
from tigan import report
from tigan.config import ReportStage, StageJob, TrainingConfig
from tigan.report_nodes import read_nodes
from tigan.report_rows import Group, group_rows

CLASSES = "camvid11"
NAMES = list(load_class_set(CLASSES).classes)
# mIoU of a method's first replicate at the base settings.
METHODS = {
    "source_only": 0.24,
    "cyclegan": 0.27,
    "cyclegan_matched": 0.275,
    "task_informed": 0.31,
    "finetuned_segmenter": 0.29,
    "both": 0.34,
    "adaptsegnet": 0.26,
    "oracle": 0.52,
}
FIRST = ("source_only", "cyclegan", "cyclegan_matched", "task_informed")
TRANSLATED = ("cyclegan", "cyclegan_matched", "task_informed", "both")
LABELLED = ("cyclegan_matched", "task_informed", "finetuned_segmenter", "both")
LOSSES = ["lsgan_real", "lsgan_synthetic", "cycle_real", "cycle_synthetic", "gradient_lsgan"]


def row(method: str, seed: int, miou: float, **changes: Any) -> dict[str, Any]:
    """A row as tigan/evaluate.py writes it; later classes are found better than earlier ones."""
    labelled = method in LABELLED
    tuned = method in ("cyclegan_matched", "task_informed", "both")
    return {
        "input": "cityscapes_val",
        "segmenter": "scratch",
        "translation": {"both": "task_informed"}.get(method, method)
        if method in TRANSLATED
        else "none",
        "method": method,
        "labels": 14 if labelled else 214 if method == "oracle" else None,
        "draw": 0 if labelled else None,
        "alpha": 0.0 if method == "cyclegan_matched" else 0.5 if tuned else None,
        "gamma": 10.0 if tuned else None,
        "seeds": {
            "segmenter": 0,
            "gan": seed if method in TRANSLATED else None,
            "finetune": 0 if labelled or method == "adaptsegnet" else None,
        },
        "uint8": True,
        "classes": CLASSES,
        "images": 80,
        "miou": miou,
        "per_class": {name: miou * (0.6 + 0.1 * i) for i, name in enumerate(NAMES)}
        | {"rider": None},
        "confusion": [[1, 0], [0, 1]],
    } | changes


def finish(run: Path, name: str, science: dict[str, Any], **figures: float) -> Path:
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


def evaluated(run: Path, point: str, *rows: dict[str, Any]) -> Path:
    """A finished evaluate node with these rows."""
    folder = finish(run, f"evaluate/{point}", {"classes": CLASSES, "method": rows[0]["method"]})
    (folder / "scores.json").write_text(json.dumps({"rows": rows, "images": []}))
    return folder


def scored(run: Path, point: str, method: str, seed: int, miou: float, **changes: Any) -> Path:
    """A finished evaluate node with the rows that its method has.

    Without the 8-bit rounding it is 0.1 points better, on the selection split 2 points, or as
    `selection` says; None leaves that row out.
    """
    selection = changes.pop("selection", miou + 0.02)
    rows = [row(method, seed, miou, **changes)]
    if method in TRANSLATED:
        rows.append(row(method, seed, miou + 0.001, uint8=False, **changes))
    else:
        rows.insert(0, row(method, seed, miou + 0.4, input="synthia_val", **changes))
    if selection is not None:
        here = {"input": "cityscapes_selection", "images": 26, **changes}
        rows.append(row(method, seed, selection, **here))
    return evaluated(run, point, *rows)


def write_metrics(folder: Path, names: list[str], lines: int, *, curve: bool) -> None:
    """A metrics file with falling losses and, where asked, a rising mIoU."""
    if lines == 0:
        return
    rng = np.random.default_rng(list(f"{folder.parent.name}/{folder.name}".encode()))
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


def trained(run: Path, name: str, science: dict[str, Any], losses: list[str], lines: int) -> None:
    """A finished training node, with metrics where `lines` are asked for."""
    folder = finish(run, name, science, images=400, images_per_second=2.5)
    write_metrics(folder, losses, lines, curve=not name.startswith("gan"))


def fake_run(run: Path, *, lines: int = 0) -> dict[str, Path]:
    """A finished run of the first four methods with two seeds; returns a report's `inputs`."""
    for name in ("render_synthia", "render_cityscapes", "pack_synthia", "pack_cityscapes"):
        finish(run, name, {"seed": 0, "images": 680}, images=680)
    segmenter = {"segmenter": {"seed": 0, "crop": [96, 128]}, "classes": CLASSES}
    trained(run, "segmenter", segmenter, ["cross_entropy", "learning_rate"], lines)
    scored(run, "source_only", "source_only", 0, METHODS["source_only"])
    for seed in (0, 1):
        tail = f"gan.seed={seed}" if seed else ""
        trained(run, f"gan/{tail}".rstrip("/"), {"gan": {"seed": seed}}, LOSSES, lines)
        for method in FIRST[1:]:
            is_control = method == "cyclegan_matched"
            control = "finetune.alpha=0.0" if is_control else ""
            if method != "cyclegan":
                point = ",".join(part for part in (control, tail) if part)
                science = {"finetune": {"alpha": 0.0 if is_control else 0.5, "labels": 14}}
                losses = LOSSES + ([] if is_control else ["cross_entropy", "gradient_task"])
                trained(run, f"finetune/{point}".rstrip("/"), science, losses, lines)
            point = ",".join(part for part in (method, control, tail) if part)
            miou = METHODS[method] + 0.01 * seed * (1 + (method == "task_informed"))
            scored(run, point, method, seed, miou)
    return found(run)


def sweep_run(run: Path, labels: tuple[int, ...] = (14, 29, 59), seeds: int = 3) -> None:
    """Every method over labels and draws: draw, GAN seed and finetuning seed go together."""
    for method in ("source_only", "adaptsegnet", "oracle"):
        scored(run, method, method, 0, METHODS[method])
    weights = {"segmenter": "resnet101-63fe2227"}
    point = "source_only,segmenter.pretrained=_x_resnet101-63fe2227.pth~0123abcd"
    scored(run, point, "source_only", 0, 0.386, **weights)
    rng = np.random.default_rng(0)
    for draw in range(seeds):
        tail = f"gan.seed={draw}" if draw else ""
        gan = METHODS["cyclegan"] + 0.01 * float(rng.random())
        scored(run, ",".join(filter(None, ("cyclegan", tail))), "cyclegan", draw, gan)
        for method in LABELLED:
            for count in labels:
                control = "finetune.alpha=0.0" if method == "cyclegan_matched" else ""
                parts = (
                    method,
                    control,
                    f"finetune.draw={draw}" if draw else "",
                    f"finetune.labels={count}" if count != labels[0] else "",
                    tail if method in TRANSLATED else "",
                )
                slope = 0.002 if method == "cyclegan_matched" else 0.02
                miou = METHODS[method] + slope * math.log2(count / labels[0])
                miou += 0.01 * float(rng.random())
                point = ",".join(filter(None, parts))
                scored(run, point, method, draw, miou, labels=count, draw=draw)


def weights_grid(run: Path, missing: tuple[float, float] | None = None) -> None:
    """Task-informed scores by alpha and gamma beside those of (0.5, 10): chosen is not best."""
    for alpha in (0.3, 0.5, 0.7):
        for gamma in (1.0, 10.0, 100.0):
            if (alpha, gamma) in ((0.5, 10.0), missing):
                continue
            parts = [
                f"finetune.alpha={alpha}" if alpha != 0.5 else "",
                f"finetune.gamma={gamma}" if gamma != 10 else "",
            ]
            miou = 0.28 + 0.05 * alpha + 0.01 * math.log10(gamma)
            selection = 0.30 + 0.1 * alpha - 0.02 * abs(math.log10(gamma) - 1)
            point = ",".join(["task_informed", *filter(None, parts)])
            changes = {"alpha": alpha, "gamma": gamma, "selection": selection}
            scored(run, point, "task_informed", 0, miou, **changes)


def found(run: Path) -> dict[str, Path]:
    """A report's `inputs`: every node of the run by its name."""
    return {
        str(path.parent.relative_to(run)): path.parent for path in sorted(run.rglob("config.yaml"))
    }


def both_groups(run: Path) -> tuple[list[Group], list[Group]]:
    """(results, groups on the selection split)."""
    nodes = read_nodes(found(run))
    return group_rows(nodes), group_rows(nodes, selection=True)


def make_report(
    inputs: dict[str, Path], out: Path, title: str = "A run", *, panels: int = 0
) -> tuple[Any, str]:
    """(result, page) of the stage; without panels, which need weights and data."""
    science = ReportStage(title=title, classes=CLASSES, panels=panels)
    result = report.run(StageJob(out, science, TrainingConfig(), inputs))
    return result, (out / "index.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects tags, pictures and visible text; checks that tags are closed."""

    VOID = ("meta", "img", "br", "source")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.pictures: list[tuple[str, str]] = []
        self.cells: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        values = {key: value or "" for key, value in attrs}
        self.attributes += [(tag, key, value) for key, value in values.items()]
        if tag == "img":
            self.pictures.append((values["alt"], values["src"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.cells.append(data.strip())
            if "th" in self.open or "td" in self.open:
                self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()

    def row(self, *start: str) -> list[str]:
        """The first table row that begins with these cells."""
        return next(row for row in self.rows if row[: len(start)] == list(start))
