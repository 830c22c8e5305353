"""A run and its points: `--set`, `--sweep`, and the product of what is swept."""

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.config import (
    ConfigError,
    Document,
    load_yaml,
    parse_model,
    set_key,
    set_override,
)
from pipeline.config import RunConfig
from pipeline.hashing import classes_called

# Whose keys can be swept, besides `methods`.
SWEPT_STAGES = ("segmenter", "gan", "finetune", "finetune_segmenter", "adaptsegnet")


@dataclass(frozen=True)
class Point:
    """One setting of the swept keys: the whole config there, and what differs from the base."""

    config: RunConfig
    changed: Mapping[str, Any]

    def changed_in(self, owners: Sequence[str]) -> dict[str, Any]:
        """The changed keys that are any of `owners`, or belong to a stage among them."""
        return {k: v for k, v in self.changed.items() if {k, k.partition(".")[0]} & {*owners}}


@dataclass(frozen=True)
class Run:
    """A validated run: its base config and its points (at least one)."""

    config: RunConfig
    points: list[Point]


def load_run(path: Path, assignments: list[str], sweeps: Sequence[Path] = ()) -> Run:
    """Read a run config, apply `--set` and `--sweep`, expand the points. Raises `ConfigError`."""
    document = load_yaml(path)
    if sweeps:
        blocks = [block for sweep in sweeps for block in _blocks(sweep)]
        set_key(document, ("sweep",), blocks, ", ".join(map(str, sweeps)))
    for assignment in assignments:
        set_override(document, assignment)
    run = expand(document)
    for assignment in assignments:
        _refuse_if_swept(assignment, run.config.sweep)
    return run


def _blocks(sweep: Path) -> list[Any]:
    """The blocks of a sweep file. Raises `ConfigError`."""
    tree = load_yaml(sweep).tree
    if set(tree) != {"sweep"} or not isinstance(tree["sweep"], list):
        raise ConfigError(
            f"{sweep}: expected the one key 'sweep' with a list of blocks, found {list(tree)}"
        )
    return tree["sweep"]


def _refuse_if_swept(assignment: str, sweep: list[dict[str, Any]]) -> None:
    """Raise `ConfigError` where one `--set` gives a key that the sweep sets at its points."""
    given = Document({}, "--set")
    set_override(given, assignment)
    for key in (key for block in sweep for key in block):
        if _holds(given.tree, key):
            values = [value for block in sweep if key in block for value in _values(block[key])]
            shown = ", ".join(str(value) for value in dict.fromkeys(map(str, values)))
            raise ConfigError(
                f"--set {assignment}: {key} is swept: the run config's sweep sets it to {shown}; "
                "give the values you want in a file of your own with --sweep FILE, or leave the "
                "sweep out with --set 'sweep=[]' (the single base point)"
            )


def _holds(tree: Any, dotted: str) -> bool:
    """Whether nested mappings hold a dotted key."""
    for part in dotted.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def expand(document: Document) -> Run:
    """Validate the base config and every point of its sweep. Raises `ConfigError`."""
    base = parse_model(RunConfig, document)
    classes_called(base.classes)
    points: dict[str, Point] = {}  # by what differs from the base: blocks may overlap
    for number, block in enumerate(base.sweep, 1):
        place = f"{document.place(('sweep', number - 1))}: sweep block {number}"
        for values in _product(block, place):
            point = _point(document, base, values, place)
            points.setdefault(json.dumps(point.changed, sort_keys=True), point)
    return Run(base, list(points.values()) or [Point(base, {})])


def _product(block: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    """Every combination of the values of a block. Raises `ConfigError` for keys that cannot be."""
    choices: list[list[Any]] = []
    for key, value in block.items():
        stage, dot, _ = key.partition(".")
        if key != "methods" and (stage not in SWEPT_STAGES or not dot):
            raise ConfigError(
                f"{place}: {key}: cannot be swept; expected 'methods', or a key of one of "
                f"{', '.join(SWEPT_STAGES)}, such as finetune.alpha"
            )
        values = _values(value)
        if not values or any(isinstance(item, dict) for item in values):
            raise ConfigError(f"{place}: {key}: expected a value or a list, found {value!r}")
        choices.append(values)
    return [dict(zip(block, values, strict=True)) for values in itertools.product(*choices)]


def _values(value: Any) -> list[Any]:
    """The values of a swept key: one that is no list stands for itself."""
    return value if isinstance(value, list) else [value]


def _point(document: Document, base: RunConfig, values: Mapping[str, Any], place: str) -> Point:
    """The config at one point, and those of its values that differ from the base."""
    own = _without_sweep(document)
    for key, value in values.items():
        set_key(own, tuple(key.split(".")), value, f"{place}, {key}={value}")
    config = parse_model(RunConfig, own)
    changed = {
        key: value_at(config, key) for key in values if value_at(config, key) != value_at(base, key)
    }
    return Point(config, changed)


def _without_sweep(document: Document) -> Document:
    """A copy of `document` without its sweep; keys set in it do not change `document`."""
    tree = copy.deepcopy({k: v for k, v in document.tree.items() if k != "sweep"})
    return Document(tree, document.source, dict(document.places))


def value_at(config: RunConfig, dotted: str) -> Any:
    """The validated value of a dotted key, such as `gan.generator.width`."""
    tree: Any = config.model_dump(include={dotted.partition(".")[0]})
    for part in dotted.split("."):
        tree = tree[part]
    return tree
