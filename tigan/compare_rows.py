"""What a comparison of runs counts: lines that the runs share, differences, what forbids them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tigan.report_nodes import METHODS, natural, rank
from tigan.report_rows import CONTROL, INPUTS, SCRATCH, Stats, summarise
from tigan.report_text import METHOD_NAMES, number

Row = dict[str, Any]
_SETTINGS = ("start", "labels", "alpha", "gamma", "swept")
# What the images are called: results.json does not say whether they were rendered.
INPUT_NAMES = dict(zip(INPUTS, ("synthetic val images", "real val images"), strict=True))


@dataclass(frozen=True)
class Run:
    """A run and its rows on the val sets, after the uint8 round trip."""

    name: str
    path: Path
    rows: list[Row]

    def images(self, name: str) -> set[int]:
        """The number of images of one set; more than one where the rows are of different ones."""
        return {row["images"] for row in self.rows if row["input"] == name}


@dataclass(frozen=True)
class Line:
    """One line of the table: the rows of every run, and what each run's settings are.

    `notes` names, for each run, the settings in which the runs differ; those that they share
    stand in the title. `told` are the settings that are named at all.
    """

    input: str
    method: str
    labels: int | None
    title: str
    rows: list[list[Row]]
    notes: list[str]
    told: tuple[str, ...]

    def stats(self, place: int) -> Stats | None:
        """mIoU over the replicates of one run; None where it has none."""
        return summarise(float(row["miou"]) for row in self.rows[place])

    def full_name(self, place: int) -> str:
        """The method and all settings of one run, for legends."""
        words = [_method(self.method)]
        for setting in self.told:
            values = sorted({_settings(row)[setting] for row in self.rows[place]}, key=str)
            words += [_in_words(setting, value) for value in values if value != SCRATCH]
        return ", ".join(filter(None, words))

    def change(self, place: int) -> tuple[Stats | None, bool]:
        """One run's mIoU less the first run's, and whether replicate by replicate.

        So it is where both runs have the same seeds and draws; else it is the difference of the
        means, without a deviation. None for the first run and where either has no rows.
        """
        mine, base = self.stats(place), self.stats(0)
        if place == 0 or mine is None or base is None:
            return None, True
        own, first = (_by_replicate(self.rows[at]) for at in (place, 0))
        if own.keys() == first.keys() and len(own) == mine.n and len(first) == base.n:
            return summarise(own[key] - first[key] for key in own), True
        return Stats(mine.mean - base.mean, None, 1), False


def replicate(row: Row) -> tuple[Any, ...]:
    """The seeds and the draw."""
    return (*sorted(row["seeds"].items()), row.get("draw"))


def _by_replicate(rows: Iterable[Row]) -> dict[tuple[Any, ...], float]:
    return {replicate(row): float(row["miou"]) for row in rows}


def table(runs: Sequence[Run]) -> list[Line]:
    """The lines of all runs: one for each input, method and number of labels.

    A setting (start of f, alpha, gamma, any other swept key) of which any run has several values
    there sets lines apart; else runs share a line though they differ in it. The start of f is told
    only in the former case: else it is one for the whole run.
    """
    apart = _varied(runs)
    told = tuple(name for name in _SETTINGS if name != "start" or name in apart)
    found: dict[tuple[Any, ...], list[list[Row]]] = {}
    for place, run in enumerate(runs):
        for row in run.rows:
            settings = _settings(row)
            key = (*_head(row), *(settings[name] if name in apart else None for name in settings))
            found.setdefault(key, [[] for _ in runs])[place].append(row)
    return [_line(found[key], told) for key in sorted(found, key=_order)]


def _head(row: Row) -> tuple[str, str, int | None]:
    """Input, method, and the number of labels; of the oracle, which has all, it is a setting."""
    labels = None if row["method"] == "oracle" else row.get("labels")
    return (row["input"], row["method"], labels or None)


def _settings(row: Row) -> dict[str, Any]:
    alpha = row.get("alpha")
    return {
        "start": str(row.get("segmenter", SCRATCH)),
        "labels": row.get("labels") if row["method"] == "oracle" else None,
        # The control's name says it.
        "alpha": None if row["method"] == CONTROL else alpha,
        # At alpha = 0 there is no task loss, so its scale means nothing.
        "gamma": row.get("gamma") if alpha else None,
        "swept": ", ".join(f"{k} = {v}" for k, v in sorted((row.get("settings") or {}).items())),
    }


def _varied(runs: Sequence[Run]) -> set[str]:
    """The settings of which a run has several values on one line."""
    varied: set[str] = set()
    for run in runs:
        seen: dict[tuple[Any, ...], Any] = {}
        for row in run.rows:
            for name, value in _settings(row).items():
                if seen.setdefault((*_head(row), name), value) != value:
                    varied.add(name)
    return varied


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    name, method, labels, start, *rest, swept = key
    numbers = [float(value or 0) for value in (labels, *rest)]
    place = (rank(INPUTS, name), rank(METHODS, method), method, start or "")
    return (*place, *numbers, natural(swept or ""))


def _line(rows: list[list[Row]], told: tuple[str, ...]) -> Line:
    """One line, with its title and notes."""
    name, method, labels = _head(next(row for one in rows for row in one))
    title = [_method(method)]
    notes: list[list[str]] = [[] for _ in rows]
    for setting in told:
        values = [sorted({_settings(row)[setting] for row in one}, key=str) for one in rows]
        known = {value for one in values for value in one}
        if len(known) == 1:
            title += [_in_words(setting, value) for value in known if value != SCRATCH]
            continue
        for note, own in zip(notes, values, strict=True):
            note += [_in_words(setting, value) for value in own]
    texts = [", ".join(filter(None, note)) for note in notes]
    return Line(name, method, labels, ", ".join(filter(None, title)), rows, texts, told)


def _method(name: str) -> str:
    return METHOD_NAMES.get(name, name.replace("_", " "))


def _in_words(setting: str, value: Any) -> str:
    """'α = 0.5'; empty where there is no value."""
    if value is None:
        return ""
    if setting == "start":
        return "f from scratch" if value == SCRATCH else f"f started from {value}"
    if setting == "labels":
        return f"{value} labels"
    if setting == "swept":
        return str(value)
    # Spaces that no line is broken at.
    return f"{'α' if setting == 'alpha' else 'γ'}\u00a0=\u00a0{number(value)}"


def mismatches(first: Run, other: Run) -> dict[str, list[str]]:
    """Input -> why `other` cannot be compared with `first` on it; {} where it can."""
    found: dict[str, list[str]] = {}
    for name in INPUTS:
        mine, base = ([row for row in run.rows if row["input"] == name] for run in (other, first))
        if not mine or not base:
            continue
        reasons = []
        if _class_sets(mine) != _class_sets(base):
            reasons.append(
                f"{other.name} and {first.name} have other classes ({_classes_text(mine)}; "
                f"{_classes_text(base)}): each mIoU is the mean over its own classes"
            )
        counts = [sorted({row["images"] for row in rows}) for rows in (mine, base)]
        if counts[0] != counts[1] or len(counts[0]) > 1:
            texts = [" or ".join(map(str, count)) for count in counts]
            reasons.append(
                f"{other.name} was scored on {texts[0]} {INPUT_NAMES[name]}, {first.name} on "
                f"{texts[1]}"
            )
        elif not reasons and len(_pixels([*mine, *base])) > 1:
            reasons.append(
                f"{other.name} and {first.name} were scored on as many {INPUT_NAMES[name]}, but "
                "their ground truth differs (in the number of pixels of its classes)"
            )
        if reasons and other is not first:
            found[name] = reasons
    return found


def _class_sets(rows: Iterable[Row]) -> set[tuple[Any, ...]]:
    return {(row["classes"], *row["per_class"]) for row in rows}


def _classes_text(rows: Iterable[Row]) -> str:
    sets = sorted({(row["classes"], len(row["per_class"])) for row in rows})
    return ", ".join(f"{name} with {count}" for name, count in sets)


def _pixels(rows: Iterable[Row]) -> set[tuple[int, ...]]:
    """The numbers of pixels of the ground truth's classes: rows of the confusion matrices."""
    return {tuple(sum(line) for line in row["confusion"]) for row in rows if row.get("confusion")}


def repeated(runs: Sequence[Run], lines: Sequence[Line]) -> list[str]:
    """Lines where a run has several rows of the same seeds and draw: they are no replicates."""
    found = []
    for line in lines:
        for run, rows in zip(runs, line.rows, strict=True):
            different = len({replicate(row) for row in rows})
            if different < len(rows):
                labels = f", {line.labels} labels" if line.labels else ""
                found.append(
                    f"{run.name}: {line.title}{labels}, {INPUT_NAMES[line.input]}: {len(rows)} "
                    f"rows share {different} sets of seeds and draws. Two nodes of the run hold "
                    "the same replicate, or its report is of an older version, which did not tell "
                    "every swept setting (--stage report --force report makes it anew); the mean "
                    "is over all of these rows"
                )
    return found
