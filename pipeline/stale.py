"""What of a graph is done, stale or to be run, from what lies on the disk; pure functions."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.done import DoneRecord
from pipeline.nodes import STAGE_VERSION, Graph, Node


@dataclass(frozen=True)
class Found:
    """What lies in a node's directory."""

    has_content: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)  # the frozen config.yaml
    record: DoneRecord | None = None  # done.json, its outputs being there
    started: Mapping[str, str | None] | None = None  # role -> output digest of what it began with


@dataclass(frozen=True)
class State:
    """What is to be done with a node, and why."""

    kind: Literal["done", "run", "resume", "stale"]
    reason: str = ""


def decide(
    graph: Graph, found: Mapping[str, Found], forced: Collection[str] = ()
) -> dict[str, State]:
    """The state of every node; `forced` names stages that are made anew even if done.

    A forced stage that is only half made goes on: what was forced may have been stopped.
    """
    states: dict[str, State] = {}
    for name, node in graph.items():
        states[name] = _decide_node(graph, node, found, states, forced)
    return states


def _decide_node(
    graph: Graph,
    node: Node,
    found: Mapping[str, Found],
    states: Mapping[str, State],
    forced: Collection[str],
) -> State:
    """The state of one node, those of its inputs being known."""
    own = found[node.name]
    if node.hash is None:
        return State("run", "what it is made from is not there")
    if not own.has_content:
        if node.stage.startswith("render_") and _pack_stands(graph, node, found, forced):
            return State("done", "the rendered images are gone; their pack is kept")
        return State("run", "not begun")
    if node.stage in forced and own.record is not None:
        return State("stale", f"--force {node.stage}")
    if own.config.get("science_hash") != node.hash:
        return State("stale", _difference(graph, node, own.config))
    if node.stage.startswith("render_") and own.record is None:
        if _pack_stands(graph, node, found, forced):
            return State("done", "rendered images are gone; their pack is kept")
        return State("resume", "begun") if own.started is not None else State("run", "not begun")
    digests = input_digests(node, found, states)
    unfinished = sorted(name for name in node.inputs.values() if states[name].kind != "done")
    if node.stage == "report":
        fresh = own.record is not None and own.record.inputs == digests and not unfinished
        return State("done") if fresh else State("run", "its inputs changed")
    begun = own.record.inputs if own.record else own.started
    if begun is None:
        return State("run", "not begun")
    # One that only goes on (a shard was deleted and is packed again) will most likely be what it
    # was; if it is not, the digests say so when it is there.
    anew = [name for name in unfinished if states[name].kind != "resume"]
    if anew:
        return State("stale", f"its input {anew[0]} is made anew")
    changed = [role for role, d in digests.items() if d is not None and begun.get(role) != d]
    if changed:
        return State("stale", f"its input {node.inputs[changed[0]]} was made anew")
    return State("done") if own.record else State("resume", "begun")


def input_digests(
    node: Node, found: Mapping[str, Found], states: Mapping[str, State]
) -> dict[str, str | None]:
    """Role -> output digest of each finished input; None where it is not finished, or gone."""
    digests: dict[str, str | None] = {}
    for role, name in node.inputs.items():
        record = found[name].record if states[name].kind == "done" else None
        digests[role] = record.output_digest if record else None
    return digests


def _pack_stands(
    graph: Graph, render: Node, found: Mapping[str, Found], forced: Collection[str]
) -> bool:
    """Whether the pack of a rendering is done, so that the images are not needed any more."""
    pack = graph[render.stage.replace("render_", "pack_")]
    record = found[pack.name].record
    return record is not None and record.science_hash == pack.hash and pack.stage not in forced


def _difference(graph: Graph, node: Node, frozen: Mapping[str, Any]) -> str:
    """Why a frozen config is not the node's any more, in a few words."""
    if not frozen:
        return "its directory holds no config.yaml"
    before, now = dict(_leaves(frozen.get("science", {}))), dict(_leaves(node.science))
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if keys:
        more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
        return f"{keys[0]}: {before.get(keys[0])} -> {now.get(keys[0])}{more}"
    version = frozen.get("stage_version")
    if version != STAGE_VERSION[node.stage]:
        return f"stage version {version} -> {STAGE_VERSION[node.stage]}"
    known = {role: ref.get("hash") for role, ref in frozen.get("inputs", {}).items()}
    changed = [n for role, n in node.inputs.items() if known.get(role) != graph[n].hash]
    if changed:
        return f"its input {changed[0]} changed"
    if node.raw_hash is not None and known.get("raw") != node.raw_hash:
        return "its data changed"
    return "its class set changed" if "classes" in node.science else "its inputs changed"


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested mappings."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree
