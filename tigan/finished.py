"""What the commands that use a run share: its finished nodes and weights, the folder they fill."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep import atomic
from tigan import checkpoint
from tigan.report_nodes import STAGES, Node, read_nodes

TASK_INFORMED = "task_informed"


def command(work: Callable[[], int]) -> int:
    """The exit code of a command that fills a folder: what `work` returns; 1: refused; 130: Ctrl-C.

    It is one process: several of a launcher would write the same files.
    """
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("WORLD_SIZE is set: this command is one process; start it directly")
        return work()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130


def read_run(run_dir: Path) -> dict[str, Node]:
    """Name -> node of all finished stages, in their order. Raises ValueError where there is none.

    Finished means a done.json that fits the stage's config.yaml.
    """
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: no such directory; expected the directory of a run")
    folders = [path.parent for depth in ("*", "*/*") for path in run_dir.glob(f"{depth}/done.json")]
    names = {path.relative_to(run_dir).as_posix(): path for path in folders}
    nodes = read_nodes({n: p for n, p in names.items() if n.partition("/")[0] in STAGES})
    found = {node.name: node for node in nodes if node.done is not None}
    if not found:
        damaged = [node.problem for node in nodes if node.problem]
        raise ValueError(
            f"{run_dir}: no finished stage in it{': ' if damaged else ''}{'; '.join(damaged)}; "
            "expected a directory such as runs/NAME, with STAGE/done.json"
        )
    return found


def translator(nodes: dict[str, Node], name: str | None) -> Node:
    """The gan or finetune node called `name`; by default a task-informed one, see `_pick`."""
    mine = [node for node in nodes.values() if node.stage in ("gan", "finetune")]
    informed = [node for node in mine if node.stage == "finetune" and _alpha(node) > 0]
    return _pick(mine, informed, name, "--translator")


def evaluation(nodes: dict[str, Node], name: str | None) -> Node:
    """The evaluate node called `name`; by default a task-informed one, see `_pick`."""
    mine = [node for node in nodes.values() if node.stage == "evaluate"]
    return _pick(mine, [node for node in mine if node.method == TASK_INFORMED], name, "--evaluate")


def _pick(nodes: list[Node], informed: list[Node], name: str | None, option: str) -> Node:
    """The one of `nodes` called `name`; without a name, of `informed` the one at base settings.

    Of several there (replicates) the first counts. Raises ValueError, which lists `nodes`.
    """
    listed = f"finished: {', '.join(node.name for node in nodes) or 'none'}"
    if name is None:
        if not informed:
            raise ValueError(
                f"no task-informed node is finished ({listed}); finish the run, or name another "
                f"node with {option}"
            )
        return min(informed, key=lambda node: len(node.swept))
    for node in nodes:
        if node.name == name:
            return node
    raise ValueError(f"{option} {name}: no such finished node ({listed})")


def _alpha(node: Node) -> float:
    return float(node.config.get("science", {}).get("finetune", {}).get("alpha", 0.0))


def input_of(nodes: dict[str, Node], node: Node, role: str) -> Node:
    """The finished node that `node` read as `role`.

    Raises ValueError where it is not there any more, or was made anew since.
    """
    name = node.config.get("inputs", {}).get(role, {}).get("dir")
    if name not in nodes:
        raise ValueError(
            f"{node.name}: its input {role!r} ({name}) is not finished any more; give the driver's "
            "command again"
        )
    recorded = (node.done or {}).get("inputs", {}).get(role)
    if recorded not in (None, (nodes[name].done or {}).get("output_digest")):
        raise ValueError(
            f"{node.name}: its input {role!r} ({name}) was made anew since; give the driver's "
            "command again"
        )
    return nodes[name]


def size_of(pack: Node) -> tuple[int, int]:
    """Height and width that a pack node packs at, pixels; the packed files may be gone."""
    settings = pack.config["science"]["pack"]
    return int(settings["height"]), int(settings["width"])


def checked(node: Node, file: str) -> str:
    """The digest of a node's file of weights, as done.json recorded it.

    Raises ValueError where the file is missing, or is not the one that was recorded.
    """
    path = node.path / file
    recorded = (node.done or {}).get("outputs", {}).get(file, {}).get("digest")
    if not path.is_file():
        raise ValueError(
            f"{path}: missing, though the stage is finished; put it back, or make it anew (--force "
            f"{node.stage})"
        )
    if recorded is None or checkpoint.file_digest(path) != recorded:
        raise ValueError(
            f"{path}: is not the file that done.json recorded: damaged or replaced; put it back, "
            f"or make it anew (--force {node.stage})"
        )
    return str(recorded)


def check_folder(
    out_dir: Path, name: str, record: dict[str, Any], added: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Raise ValueError where `out_dir` holds something else than a part of the same result.

    Its file called `name` holds the `record` of what it is made with; the caller writes what is
    returned. `added` are keys that an earlier call may have left out, and a later one may: they
    count where the file has them, and stay in it.
    """
    added = added or {}
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir}: is a file; expected a folder, or none yet")
    if not out_dir.is_dir() or not any(out_dir.iterdir()):
        return record | added
    found = atomic.read_json(out_dir / name)
    if not found:
        raise ValueError(f"{out_dir}: is not empty, and not made by this command; choose another")
    wanted = record | {key: value for key, value in added.items() if key in found}
    changed = [key for key, value in wanted.items() if found.get(key) != value]
    if changed:
        raise ValueError(
            f"{out_dir}: holds what was made otherwise: {changed[0]} was {found.get(changed[0])}, "
            f"now {wanted[changed[0]]}; choose another folder"
        )
    return found | record | added
