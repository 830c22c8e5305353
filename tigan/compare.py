"""Several runs on one page: `python -m tigan.compare RUN_DIR RUN_DIR ... --out DIR`.

Reads each run's report/results.json and nothing else. The first run is what the others are
compared with.
"""

import argparse
import base64
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_prep import atomic
from tigan import compare_figures
from tigan.compare_rows import Line, Run, mismatches, repeated, table
from tigan.report_curves import MOST_POINTS
from tigan.report_figures import Drawing, dark
from tigan.report_rows import INFORMED, INPUTS, REAL, SCRATCH, Stats, summarise
from tigan.report_text import percent, points, signed_spread, spread

RESULTS = Path("report") / "results.json"
PAGE = "index.html"
_FIGURES = ("labels", "methods")
# How a page of ours is known: nothing else is ever overwritten.
_MARK = '<meta name="generator" content="tigan.compare">'
_ROW_KEYS: dict[str, type | tuple[type, ...]] = {
    "input": str,
    "method": str,
    "seeds": dict,
    "uint8": bool,
    "classes": str,
    "images": int,
    "miou": (int, float),
    "per_class": dict,
    "labels": (int, NoneType),
    "alpha": (int, float, NoneType),
    "gamma": (int, float, NoneType),
    "settings": (dict, NoneType),
}


def compare(run_dirs: Sequence[Path], out: Path, names: Sequence[str] | None = None) -> list[str]:
    """Write `out`/index.html and `out`/figures; returns the warnings that the page shows.

    Raises ValueError where there are fewer than two runs or more than there are colours,
    where names are not one for each run, where a run's results are missing or damaged, and where
    `out` holds something else.
    """
    named = _named(run_dirs, names)
    _refuse_others(out)
    runs = [read_run(path, name) for name, path in named.items()]
    lines = table(runs)
    differing = [mismatches(runs[0], run) for run in runs]
    drawn = _figures(runs, lines, differing)
    page = _page(runs, lines, differing, drawn)
    atomic.write_text(out / PAGE, page)  # first: what follows is then known as ours
    for name in _FIGURES:
        for kind in ("svg", "pdf"):
            path = out / "figures" / f"{name}.{kind}"
            if name not in drawn:
                path.unlink(missing_ok=True)  # of other runs
                continue
            content = drawn[name].svg.encode() if kind == "svg" else drawn[name].pdf
            with atomic.replacing(path) as temporary:
                temporary.write_bytes(content)
    return [*_sentences(differing), *repeated(runs, lines)]


def _named(run_dirs: Sequence[Path], names: Sequence[str] | None) -> dict[str, Path]:
    """Name -> directory of each run; by default directories' names, where these differ."""
    if len(run_dirs) < 2:
        raise ValueError(f"found {len(run_dirs)} run directory; give two or more to compare")
    if len(run_dirs) > MOST_POINTS:
        raise ValueError(
            f"found {len(run_dirs)} run directories, but the figures have {MOST_POINTS} colours to "
            f"tell runs apart; compare at most {MOST_POINTS} at once"
        )
    if names is None:
        names = [path.resolve().name for path in run_dirs]
        if len(set(names)) < len(names):
            names = [str(path) for path in run_dirs]
    if len(names) != len(run_dirs):
        raise ValueError(
            f"--names: found {len(names)} names for {len(run_dirs)} runs; give one each"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"--names: {', '.join(names)}: two runs have one name; give each its own")
    return dict(zip(names, run_dirs, strict=True))


def read_run(run_dir: Path, name: str) -> Run:
    """A run's result rows. Raises ValueError, naming the file, where it is missing or damaged."""
    path = run_dir / RESULTS
    advice = f"make it with `python pipeline/run.py --stage report --run-dir {run_dir} ...`"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; {advice}") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path}: not JSON ({error}); {advice}") from None
    rows = found.get("rows") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: no result rows, so nothing has been evaluated yet; {advice}")
    for number, row in enumerate(rows):
        bad = [k for k, kind in _ROW_KEYS.items() if not _is_a(row, k, kind)]
        if bad:
            raise ValueError(f"{path}: rows[{number}]: {', '.join(bad)}: missing or odd; {advice}")
    shown = [row for row in rows if row["uint8"] and row["input"] in INPUTS]
    if not shown:
        raise ValueError(f"{path}: no row on {' or '.join(INPUTS)}; {advice}")
    return Run(name, run_dir, shown)


def _is_a(row: Any, key: str, kind: type | tuple[type, ...]) -> bool:
    return isinstance(row, dict) and isinstance(row.get(key), kind)


def _refuse_others(out: Path) -> None:
    """Raise ValueError where `out` exists and is neither empty nor an earlier comparison."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"--out: {out} is a file; give a folder")
    if any(out.iterdir()):
        page = out / PAGE
        head = page.read_text(encoding="utf-8", errors="replace")[:2000] if page.is_file() else ""
        if _MARK not in head:
            raise ValueError(
                f"--out: {out} holds something else than a comparison and is left as it is; give "
                "a new folder"
            )


def _figures(
    runs: Sequence[Run], lines: Sequence[Line], differing: Sequence[dict[str, list[str]]]
) -> dict[str, Drawing]:
    """Name -> figure, of those that there is something to draw for."""
    names = [
        run.name + (" (not comparable)" if REAL in other else "")
        for run, other in zip(runs, differing, strict=True)
    ]
    classes = {(len(row["per_class"]), row["classes"]) for run in runs for row in run.rows}
    convention = ", ".join(f"{count} classes ({name})" for count, name in sorted(classes))
    shown = [line for line in lines if line.input == REAL]
    found = {
        "labels": compare_figures.labels_figure(names, shown, f"mIoU (%), {convention}"),
        "methods": compare_figures.methods_figure(names, shown, f"mIoU (%), {convention}"),
    }
    return {name: drawing for name, drawing in found.items() if drawing is not None}


def _page(
    runs: Sequence[Run],
    lines: Sequence[Line],
    differing: Sequence[dict[str, list[str]]],
    drawn: dict[str, Drawing],
) -> str:
    """index.html; the same runs give the same bytes."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(svg=_svg_uri, dark=dark)
    return environment.get_template("compare.html.j2").render(
        mark=_MARK,
        names=[run.name for run in runs],
        runs=[_overview(run) for run in runs],
        alarms=_sentences(differing),
        warnings=repeated(runs, lines),
        incomparable=[other.keys() for other in differing],
        blocks=[_block(name, lines, differing) for name in INPUTS],
        class_tables=[
            _class_table(line, differing)
            for line in lines
            if line.method == INFORMED and line.input == REAL
        ],
        figures={name: drawing.svg for name, drawing in drawn.items()},
    )


def _svg_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")


def _sentences(differing: Sequence[dict[str, list[str]]]) -> list[str]:
    """Why runs are not comparable, each reason once."""
    return list(
        dict.fromkeys(text for one in differing for texts in one.values() for text in texts)
    )


def _overview(run: Run) -> dict[str, Any]:
    """What a run was scored by and on."""
    sets = {(row["classes"], len(row["per_class"])) for row in run.rows}
    return {
        "name": run.name,
        "path": str(run.path),
        "classes": ", ".join(f"{name} ({count} classes)" for name, count in sorted(sets)),
        "images": [" / ".join(map(str, sorted(run.images(name)))) or "–" for name in INPUTS],
        "starts": ", ".join(sorted({str(row.get("segmenter", SCRATCH)) for row in run.rows})),
        "rows": len(run.rows),
    }


def _block(
    name: str, lines: Sequence[Line], differing: Sequence[dict[str, list[str]]]
) -> dict[str, Any]:
    """The lines of the main table on one set of images."""
    return {
        "input": name,
        "lines": [
            {
                "kind": line.method,
                "method": line.title,
                "labels": line.labels,
                "cells": [
                    _cell(line, place, name in differing[place]) for place in range(len(line.rows))
                ],
            }
            for line in lines
            if line.input == name
        ],
    }


def _cell(line: Line, place: int, is_other: bool) -> dict[str, Any]:
    """One run's score on a line, and its difference to the first run's."""
    stats = line.stats(place)
    change, is_paired = (None, True) if is_other else line.change(place)
    return {
        "miou": None if stats is None else spread(stats),
        "n": 0 if stats is None else stats.n,
        "note": line.notes[place],
        "change": "not comparable" if is_other and stats else signed_spread(change),
        "is_paired": is_paired,
    }


def _class_table(line: Line, differing: Sequence[dict[str, list[str]]]) -> dict[str, Any]:
    """IoU of each class, mean over the replicates, on one line of the main table."""
    names = list(dict.fromkeys(n for rows in line.rows for row in rows for n in row["per_class"]))

    def mean(place: int, name: str) -> float | None:
        found: Stats | None = summarise(row["per_class"].get(name) for row in line.rows[place])
        return None if found is None else found.mean

    def cells(name: str) -> list[dict[str, str]]:
        first = mean(0, name)
        found = []
        for place in range(len(line.rows)):
            value = mean(place, name)
            is_open = value is None or first is None or REAL in differing[place]
            change = None if is_open or value is None or first is None else value - first
            found.append({"iou": percent(value), "change": points(change)})
        return found

    means = [line.stats(place) for place in range(len(line.rows))]
    return {
        "title": line.title + (f", {line.labels} labels" if line.labels else ""),
        "lines": [{"name": name, "cells": cells(name)} for name in names],
        "means": [_cell(line, place, REAL in differing[place]) for place in range(len(means))],
        "notes": line.notes,
    }


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (0: written, 1: not)."""
    parser = argparse.ArgumentParser(
        prog="python -m tigan.compare", description="Compare several runs on one page."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_DIR", help="the first is the base"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what to call each run")
    args = parser.parse_args(arguments)
    try:
        warnings = compare(args.runs, args.out, args.names)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{args.out / PAGE}: {len(args.runs)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
