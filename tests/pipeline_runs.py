"""Small runs for the pipeline's tests, and stages that are stand-ins at the process boundary."""

import copy
import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from data_prep.config import Document, load_yaml, set_key
from pipeline.done import DoneRecord, combined, digest_of, load_done, write_done
from pipeline.nodes import Node
from pipeline.plan import Plan, freeze, make_plan, prepare
from pipeline.profiles import LocalProfile, Resources
from pipeline.sweep import Run, expand

PROFILE = LocalProfile(kind="local", run="minicity")
RUN_CONFIG = Path(__file__).with_name("pipeline_run.yaml")
FAKE_STAGE = Path(__file__).with_name("fake_stage.py")


@cache
def _document() -> Document:
    return load_yaml(RUN_CONFIG)


def tiny_run(sweep: list[dict[str, Any]] | None = None, **keys: Any) -> Run:
    """`pipeline_run.yaml` with another sweep; `gan__seed=1` sets gan.seed."""
    document = copy.deepcopy(_document())
    set_key(document, ("sweep",), sweep or [], "test")
    for key, value in keys.items():
        set_key(document, tuple(key.split("__")), value, "test")
    return expand(document)


def plan(run: Run, run_dir: Path, stage: str = "all", force: tuple[str, ...] = ()) -> Plan:
    return make_plan(run, run_dir, stage, PROFILE, force)


def finish(plan: Plan, node: Node, content: str = "made", output: str = "out.bin") -> None:
    """Make a node done as a stage would: frozen config, one output, done.json."""
    folder = freeze(plan, node, PROFILE)
    (folder / output).write_text(content)
    outputs = {output: digest_of(folder / output)}
    inputs: dict[str, str | None] = {}
    for role, name in node.inputs.items():
        record = load_done(plan.run_dir / name)
        inputs[role] = record.output_digest if record else None
    record = DoneRecord(
        stage=node.stage,
        point=node.point,
        science_hash=str(node.hash),
        stage_version=1,
        inputs=inputs,
        output_digest=combined(outputs),
        outputs=outputs,
        figures={},
        versions={},
        seconds=1.0,
        world_size=1,
        threads=1,
        restarts=0,
    )
    write_done(folder, record)


def finish_all(run: Run, run_dir: Path, content: str = "made") -> None:
    """Make everything that is to do done."""
    made = plan(run, run_dir)
    prepare(made)
    for name in made.todo:
        finish(made, made.graph[name], f"{content} {name}")


class FakeStages:
    """A stand-in for the stage command: `behaviour` maps node names to what they do."""

    def __init__(self, run_dir: Path, behaviour: Mapping[str, str]) -> None:
        self._run_dir, self._behaviour = run_dir, behaviour

    def __call__(self, node: Node, resources: Resources, stage_dir: Path) -> list[str]:
        task = {
            "behaviour": self._behaviour.get(node.name, "ok"),
            "stage": node.stage,
            "point": node.point,
            "hash": node.hash,
            "inputs": {role: str(self._run_dir / name) for role, name in node.inputs.items()},
            "name": node.name,
            "events": str(self._run_dir / "events.txt"),
        }
        # -I -S: a bare interpreter starts in hundredths of a second.
        return [sys.executable, "-I", "-S", str(FAKE_STAGE), str(stage_dir), json.dumps(task)]


def events(run_dir: Path) -> list[str]:
    """`start NAME` and `end NAME`, in order."""
    return (run_dir / "events.txt").read_text().splitlines()
