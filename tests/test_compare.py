import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from tigan import compare_figures, compare_rows
from tigan.compare import compare, main, read_run
from tigan.compare_rows import Line, table
from tigan.report_curves import MOST_POINTS

CLASSES = ("road", "car", "sky")
REAL = "cityscapes_val"


def row(method: str, miou: float, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A row of results.json, as tigan/evaluate.py writes it."""
    base: dict[str, Any] = {
        "input": REAL,
        "segmenter": "scratch",
        "method": method,
        "labels": None,
        "draw": None,
        "alpha": None,
        "gamma": None,
        "seeds": {"segmenter": 0, "gan": seed, "finetune": None},
        "uint8": True,
        "classes": "three",
        "images": 4,
        "miou": miou,
        "per_class": {"road": miou + 0.1, "car": miou - 0.1, "sky": None},
        "confusion": [[6, 0, 0], [1, 3, 0], [0, 0, 0]],
    }
    return base | changes


def informed(miou: float, seed: int = 0, **changes: Any) -> dict[str, Any]:
    return row("task_informed", miou, seed, **{"labels": 5, "alpha": 0.5, "gamma": 10.0, **changes})


def run_dir(path: Path, rows: list[dict[str, Any]]) -> Path:
    report = path / "report"
    report.mkdir(parents=True)
    (report / "results.json").write_text(json.dumps({"rows": rows}))
    return path


def lines_of(tmp_path: Path, *runs: list[dict[str, Any]]) -> list[Line]:
    names = "abc"[: len(runs)]
    return table(
        [
            read_run(run_dir(tmp_path / name, rows), name)
            for name, rows in zip(names, runs, strict=True)
        ]
    )


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Runs 'old' and 'new', comparable, with curves over two numbers of labels."""
    found = []
    for name, gain in (("old", 0.0), ("new", 0.05)):
        rows = [row("source_only", 0.2 + gain), row("source_only", 0.6, input="synthia_val")]
        for labels in (5, 25):
            rows += [
                informed(0.3 + gain * (1 + seed) + labels / 500, seed, labels=labels)
                for seed in (0, 1)
            ]
        found.append(run_dir(tmp_path / name, rows))
    return found


def text_of(page: str) -> str:
    """The page without tags, styles and pictures."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_differences_are_of_the_same_seeds(tmp_path: Path) -> None:
    first = [informed(miou, seed) for seed, miou in enumerate((0.30, 0.40, 0.32))]
    # In another order: what counts is the seed.
    second = [informed(first[seed]["miou"] + 0.01 * (seed + 1), seed) for seed in (2, 0, 1)]
    (line,) = lines_of(tmp_path, first, second)
    stats, is_paired = line.change(1)
    assert is_paired and stats is not None and stats.n == 3
    assert stats.mean == pytest.approx(0.02)
    assert stats.deviation == pytest.approx(0.01)
    mine = line.stats(1)
    assert mine is not None
    assert mine.deviation == pytest.approx(statistics.stdev(r["miou"] for r in second))
    assert line.change(0) == (None, True)


def test_other_seeds_give_the_difference_of_the_means(tmp_path: Path) -> None:
    first = [informed(0.30, 0), informed(0.40, 1)]
    (line,) = lines_of(tmp_path, first, [informed(0.37, 0), informed(0.39, 2)], [row("x", 0.1)])[:1]
    stats, is_paired = line.change(1)
    assert stats is not None and not is_paired
    assert stats.mean == pytest.approx(0.03) and stats.deviation is None
    assert line.change(2) == (None, True) and line.stats(2) is None


def test_runs_share_a_line_though_a_setting_differs(tmp_path: Path) -> None:
    (line,) = lines_of(tmp_path, [informed(0.3)], [informed(0.4, alpha=0.7, segmenter="resnet101")])
    assert line.title.replace("\u00a0", " ") == "task-informed, γ = 10"
    assert [note.replace("\u00a0", " ") for note in line.notes] == ["α = 0.5", "α = 0.7"]
    assert line.change(1)[0] is not None


def test_setting_that_one_run_sweeps_sets_lines_apart(tmp_path: Path) -> None:
    sweep = [informed(0.3, alpha=alpha) for alpha in (0.5, 0.7)]
    other = [informed(0.4, alpha=0.7)]
    lines = lines_of(tmp_path, sweep, other)
    assert [[len(rows) for rows in line.rows] for line in lines] == [[1, 0], [1, 1]]
    starts = [row("oracle", 0.5, labels=9), row("oracle", 0.6, labels=9, segmenter="resnet101")]
    lines = lines_of(tmp_path / "more", starts, [row("oracle", 0.5, labels=8)])
    assert [line.title for line in lines] == [
        "oracle: trained on all real labels, f started from resnet101, 9 labels",
        "oracle: trained on all real labels",
    ]
    assert lines[1].notes == ["9 labels", "8 labels"]


def test_any_swept_setting_sets_lines_apart_and_is_named(tmp_path: Path) -> None:
    def rows(*mious: float) -> list[dict[str, Any]]:
        return [
            row("cyclegan", miou, seed, settings={"gan.images": str(images)})
            for seed, (miou, images) in enumerate(zip(mious, (400, 1000), strict=False))
        ]

    lines = lines_of(tmp_path, rows(0.3, 0.4), rows(0.2))
    assert [line.title for line in lines] == [
        "CycleGAN, gan.images = 400",
        "CycleGAN, gan.images = 1000",
    ]
    assert [[len(found) for found in line.rows] for line in lines] == [[1, 1], [1, 0]]
    (line,) = lines_of(tmp_path / "more", rows(0.3), [row("cyclegan", 0.4)])
    assert line.title == "CycleGAN" and line.notes == ["gan.images = 400", ""]


def test_gamma_means_nothing_where_alpha_is_0(tmp_path: Path) -> None:
    control = [row("cyclegan_matched", 0.3, alpha=0.0, gamma=gamma) for gamma in (10.0, 20.0)]
    (line,) = lines_of(tmp_path, control[:1], control[1:])
    assert line.notes == ["", ""]
    assert line.title == compare_rows.METHOD_NAMES["cyclegan_matched"]


def test_order_is_by_input_method_and_labels(tmp_path: Path) -> None:
    rows = [informed(0.3, labels=count) for count in (100, 5, 25)]
    rows += [row("source_only", 0.1), row("source_only", 0.6, input="synthia_val")]
    lines = lines_of(tmp_path, rows, rows[::-1])
    assert [(line.input, line.method, line.labels) for line in lines] == [
        ("synthia_val", "source_only", None),
        (REAL, "source_only", None),
        *((REAL, "task_informed", count) for count in (5, 25, 100)),
    ]


def test_only_val_after_the_uint8_round_trip_counts(tmp_path: Path) -> None:
    others = [row("cyclegan", 0.9, uint8=False), row("cyclegan", 0.9, input="cityscapes_selection")]
    run = read_run(run_dir(tmp_path / "a", [row("cyclegan", 0.3), *others]), "a")
    assert [r["miou"] for r in run.rows] == [0.3]
    with pytest.raises(ValueError, match="no row on synthia_val or cityscapes_val"):
        read_run(run_dir(tmp_path / "b", others), "b")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": "four"}, "other classes (four with 3; three with 3)"),
        ({"per_class": {"road": 0.1, "bus": 0.2, "sky": 0.3}}, "other classes (three with 3"),
        ({"images": 5}, "new was scored on 5 real val images, old on 4"),
        ({"confusion": [[6, 0, 0], [1, 2, 0], [0, 0, 0]]}, "their ground truth differs"),
    ],
)
def test_what_cannot_be_compared_is_said(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    synthetic = row("source_only", 0.6, input="synthia_val")
    old = read_run(run_dir(tmp_path / "old", [row("cyclegan", 0.3), synthetic]), "old")
    new = read_run(run_dir(tmp_path / "new", [row("cyclegan", 0.3) | changes, synthetic]), "new")
    found = compare_rows.mismatches(old, new)
    assert list(found) == [REAL] and len(found[REAL]) == 1 and words in found[REAL][0]
    assert compare_rows.mismatches(old, old) == {}
    # Another prediction of the same ground truth is no hindrance.
    other = [row("cyclegan", 0.3, confusion=[[0, 6, 0], [0, 0, 4], [0, 0, 0]]), synthetic]
    same = read_run(run_dir(tmp_path / "same", other), "same")
    assert compare_rows.mismatches(old, same) == {}


def test_rows_that_are_no_replicates_are_told(tmp_path: Path) -> None:
    runs = [
        read_run(run_dir(tmp_path / "a", [informed(0.3), informed(0.5)]), "a"),
        read_run(run_dir(tmp_path / "b", [informed(0.4)]), "b"),
    ]
    lines = table(runs)
    (warning,) = compare_rows.repeated(runs, lines)
    assert warning.startswith("a: task-informed") and "2 rows share 1 sets of seeds" in warning
    assert lines[0].change(1)[1] is False


def test_page_and_figures_of_comparable_runs(tmp_path: Path, two: list[Path]) -> None:
    out = tmp_path / "out"
    assert compare(two, out) == []
    page = (out / "index.html").read_text()
    words = text_of(page)
    assert "Comparison of old, new" in words and 'role="alert"' not in page
    # task-informed, 5 labels: old 31.0 and 31.0, new 36.0 and 41.0
    assert "5 31.0 ± 0.0 2 38.5 ± 3.5 2 +7.5 ± 3.5" in words
    assert "road 41.0 48.5 +7.5" in words and "sky – – –" in words
    assert "<script" not in page and not re.search(r'(src|href)="http', page)
    made = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    figures = {
        f"figures/{name}.{kind}" for name in ("labels", "methods") for kind in ("svg", "pdf")
    }
    assert made == {"index.html"} | figures
    before = {name: (out / name).read_bytes() for name in made}
    assert before["figures/labels.pdf"].startswith(b"%PDF")
    compare(two, out)
    assert {name: (out / name).read_bytes() for name in made} == before


def test_page_warns_loudly_and_leaves_differences_out(tmp_path: Path, two: list[Path]) -> None:
    rows = [informed(0.4, seed, labels=5, images=9) for seed in (0, 1)]
    out = tmp_path / "out"
    warnings = compare([two[0], run_dir(tmp_path / "x", rows)], out, ["<b>", "other"])
    assert warnings == ["other was scored on 9 real val images, <b> on 4"]
    page = (out / "index.html").read_text()
    assert 'role="alert"' in page and "<b>" not in page
    assert "5 31.0 ± 0.0 2 40.0 ± 0.0 2 not comparable" in text_of(page)
    assert (out / "figures" / "labels.pdf").is_file()
    rows = [row("source_only", 0.2)]
    both = [run_dir(tmp_path / name, rows) for name in ("p", "q")]
    compare(both, out)
    assert sorted(path.name for path in (out / "figures").iterdir()) == [
        "methods.pdf",
        "methods.svg",
    ]


def test_curves_of_one_method_at_several_settings_are_all_named(tmp_path: Path) -> None:
    sweep = [
        informed(0.3, alpha=alpha, labels=labels) for alpha in (0.5, 0.7) for labels in (5, 25)
    ]
    lines = lines_of(tmp_path, sweep, [informed(0.4, labels=5)])
    titles = [line.full_name(0).replace("\u00a0", " ") for line in lines]
    assert sorted(set(titles)) == [f"task-informed, α = {a}, γ = 10" for a in ("0.5", "0.7")]
    curves = [(0, "task_informed", title) for title in dict.fromkeys(titles)]
    legend = compare_figures._legend(["a", "b"], curves)
    assert [entry.get_label() for entry in legend] == [f"a: {curve[2]}" for curve in curves]
    short = compare_figures._legend(["a", "b"], [(0, "both", "x"), (1, "both", "x")])
    assert [entry.get_label() for entry in short] == ["a", "b", compare_rows.METHOD_NAMES["both"]]
    assert compare_figures.labels_figure(["a", "b"], lines[:1], "mIoU") is None


def test_wrong_input_is_refused_and_nothing_is_written(tmp_path: Path, two: list[Path]) -> None:
    out = tmp_path / "out"

    def refused(match: str, *args: Any) -> None:
        with pytest.raises(ValueError, match=match):
            compare(*args)

    refused("found 1 run directory; give two or more", two[:1], out)
    nothing = tmp_path / "nothing"
    refused(r"nothing/report/results\.json: No such file.*--stage report", [two[0], nothing], out)
    damaged = {"text": "not JSON", '{"rows": []}': "no result rows", "[]": "no result rows"}
    damaged['{"rows": [{"input": "cityscapes_val"}]}'] = r"rows\[0\]: method, seeds, uint8"
    for number, (content, match) in enumerate(damaged.items()):
        bad = run_dir(tmp_path / f"bad{number}", [])
        (bad / "report" / "results.json").write_text(content)
        refused(rf"bad{number}/report/results\.json: {match}", [two[0], bad], out)
    refused("--names: found 1 names for 2 runs", two, out, ["a"])
    refused("two runs have one name", two, out, ["a", "a"])
    many = [tmp_path / f"run{number}" for number in range(MOST_POINTS + 1)]
    refused("found 9 run directories, but the figures have 8 colours.*at most 8", many, out)
    refused("run0/report/results", many[:-1], out)  # as many as there are colours
    colours = {compare_figures.point_colour(place) for place in range(MOST_POINTS)}
    assert len(colours) == MOST_POINTS
    assert not out.exists()


def test_folder_of_something_else_is_left_as_it_is(tmp_path: Path, two: list[Path]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("my page")
    with pytest.raises(ValueError, match="holds something else than a comparison"):
        compare(two, out)
    assert [path.name for path in out.iterdir()] == ["index.html"]
    assert (out / "index.html").read_text() == "my page"
    with pytest.raises(ValueError, match="is a file; give a folder"):
        compare(two, out / "index.html")
    with pytest.raises(ValueError, match="holds something else"):
        compare(two, two[0])


def test_command(tmp_path: Path, two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(path) for path in two]
    assert main([runs[0], "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: found 1 run directory")
    twin = run_dir(tmp_path / "elsewhere" / "old", [row("source_only", 0.2, images=3)])
    assert main([runs[0], str(twin), "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'out' / 'index.html'}: 2 runs\n"
    # Two folders of one name: they are called by their paths.
    assert captured.err.startswith(f"warning: {twin} was scored on 3 real val images, {runs[0]} on")
