"""What the report reads: the nodes of a run as they stand on disk, finished or not."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from data_prep.config import ConfigError, load_yaml
from tigan.config import Method

STAGES = (
    "render_synthia",
    "render_cityscapes",
    "pack_synthia",
    "pack_cityscapes",
    "segmenter",
    "gan",
    "finetune",
    "finetune_segmenter",
    "adaptsegnet",
    "oracle",
    "evaluate",
)
METHODS: tuple[str, ...] = get_args(Method)  # in order
# A result row must have these; see tigan/evaluate.py for what they mean.
_ROW_KEYS = ("input", "method", "seeds", "uint8", "classes", "images", "miou", "per_class")
# Swept keys that make replicates of one setting; the rest of a point's label is what sets one
# group of replicates apart from another.
_REPLICATES = (
    "segmenter.seed",
    "gan.seed",
    "finetune.seed",
    "finetune.draw",
    "adaptsegnet.seed",
)


@dataclass(frozen=True)
class Node:
    """One stage at one point, as found on disk; `done` is None where it is not finished."""

    name: str
    path: Path
    config: dict[str, Any]
    done: dict[str, Any] | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""

    @property
    def stage(self) -> str:
        return self.name.partition("/")[0]

    @property
    def point(self) -> str:
        return self.name.partition("/")[2]

    @property
    def method(self) -> str:
        """Of an evaluate node: the first part of its label."""
        return self.point.partition(",")[0]

    @property
    def swept(self) -> dict[str, str]:
        """The swept keys, less the seeds and the draw; values as text, as they stand in a label.

        The frozen config holds them exactly; a node that has none is read by its label.
        """
        pairs = {key: _text(value) for key, value in (self.config.get("swept") or {}).items()}
        if not pairs:
            label = re.sub(r"~[0-9a-f]{8}$", "", self.point)
            pairs = dict(part.split("=", 1) for part in label.split(",") if "=" in part)
        return {key: pairs[key] for key in sorted(pairs) if key not in _REPLICATES}


def _text(value: Any) -> str:
    """A value as it stands in a label: `0.5`, `14`, `all`, `true`, `0.5x0.999`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "x".join(_text(item) for item in value)
    return str(value)


def read_nodes(inputs: Mapping[str, Path]) -> list[Node]:
    """Every node of `inputs` (name -> directory), in the order of the stages, then of the points.

    A directory may be missing. A damaged file never stops the report: the node counts as not
    finished and its `problem` says why.
    """
    return sorted((read_node(name, path) for name, path in inputs.items()), key=node_order)


def node_order(node: Node) -> tuple[int, int, list[tuple[int, int, str]]]:
    """Sort key: by stage, then by method, then by point."""
    return (rank(STAGES, node.stage), rank(METHODS, node.method), natural(node.name))


def rank(order: tuple[str, ...], name: str) -> int:
    """The place of `name` in `order`; after all others where it is not there."""
    return order.index(name) if name in order else len(order)


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sort key that puts seed=2 before seed=10."""
    parts = re.findall(r"\d+|\D+", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def read_node(name: str, path: Path) -> Node:
    """One node as found in its directory; see `read_nodes`."""
    problems: list[str] = []

    def attempt(file: str, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any] | None:
        if not (path / file).is_file():
            return None
        try:
            return read(path / file)
        except (OSError, ValueError) as error:  # ConfigError and JSON errors are ValueErrors
            problems.append(f"{name}/{file}: {error}")
            return None

    config = attempt("config.yaml", _read_config) or {}
    done = attempt("done.json", _read_object)
    if done is not None and config.get("science_hash") not in (None, done.get("science_hash")):
        done = None  # of another configuration: the stage is to run again
    scores: dict[str, Any] | None = {}
    if name.partition("/")[0] == "evaluate" and done is not None:
        scores = attempt("scores.json", _read_scores)
        if scores is None:
            problems = problems or [f"{name}/scores.json: missing, though the stage is finished"]
            done, scores = None, {}
    return Node(
        name,
        path,
        config,
        done,
        (scores or {}).get("rows", []),
        "; ".join(problems),
    )


def _read_config(path: Path) -> dict[str, Any]:
    tree = load_yaml(path).tree
    if not isinstance(tree.get("science", {}), dict):
        raise ConfigError("science: expected a mapping of keys")
    if not isinstance(tree.get("swept", {}), dict):
        raise ConfigError("swept: expected a mapping of keys")
    return tree


def _read_object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _read_scores(path: Path) -> dict[str, Any]:
    """scores.json of an evaluate stage. Raises ValueError where a row lacks a key."""
    scores = _read_object(path)
    if not isinstance(scores.get("rows"), list):
        raise ValueError("rows: expected a list of result rows; run the stage again (--force)")
    for number, row in enumerate(scores["rows"]):
        missing = [key for key in _ROW_KEYS if key not in row]
        if missing:
            raise ValueError(f"rows[{number}]: lacks {', '.join(missing)}; run the stage again")
    return scores
