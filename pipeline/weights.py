"""Files of backbone weights: whether they fit, asked of a process with torch; the driver has none.

The same comparison is made once more by the stage that loads the file.
"""

import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from data_prep.config import REPO_ROOT
from pipeline.dag import build_graph
from pipeline.hashing import pretrained_file
from pipeline.nodes import Graph
from pipeline.sweep import Run

# Loading torch from a cold parallel file system takes its time.
_LIMIT_S = 300.0
# How files of torch.save begin: a zip archive or, of old, a pickle.
_STARTS = (b"PK\x03\x04", b"\x80")


class NotChecked(Exception):
    """The comparison could not be made, which says nothing of the file."""


def check(graph: Graph, todo: Collection[str]) -> tuple[list[str], list[str]]:
    """Problems and warnings of the weights files that the nodes of `todo` start from.

    Files that are missing are the caller's to name.
    """
    asked: dict[tuple[Path, str], None] = {}
    for name in todo:
        science = graph[name].science
        path = pretrained_file(science)
        if path is not None and path.is_file():
            asked[path, str(science["segmenter"]["backbone"])] = None
    found, warnings = [], []
    for path, backbone in asked:
        try:
            found += [f"segmenter.pretrained: {line}" for line in problems(path, backbone)]
        except NotChecked as error:
            warnings.append(f"segmenter.pretrained: {path}: not compared with {backbone}: {error}")
    return found, warnings


def problems(path: Path, backbone: str) -> list[str]:
    """What keeps a file from being a backbone's weights, one line each; [] where it fits.

    It is asked of `python -m tigan.backbone`, once for each state of the file. Raises
    `NotChecked`, and OSError where there is no such file.
    """
    status = path.stat()
    return list(_problems(path.resolve(), backbone, (status.st_mtime_ns, status.st_size)))


@lru_cache
def _problems(path: Path, backbone: str, stamp: tuple[int, int]) -> tuple[str, ...]:
    with path.open("rb") as file:
        start = file.read(4)
    if not start.startswith(_STARTS):  # the page of an error, or a pointer to the file
        return (f"{path}: not a file of torch.save: it begins with {start!r}",)
    command = [sys.executable, "-m", "tigan.backbone", str(path), backbone]
    try:
        # In the repository's root, so that `-m` finds our code.
        result = subprocess.run(
            command, cwd=REPO_ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotChecked(f"no answer within {_LIMIT_S:g} s") from None
    except OSError as error:
        raise NotChecked(f"{sys.executable}: {error.strerror}") from None
    lines = tuple(result.stdout.splitlines())
    if result.returncode == 1 and lines:
        return lines
    if result.returncode != 0:
        last = result.stderr.strip().splitlines()[-1:]
        raise NotChecked("".join(last) or f"exit code {result.returncode}")
    return ()


def missing_files(run: Run) -> list[str]:
    """The files of backbone weights that the points of `run` name and that are not there."""
    paths = {Path(point.config.segmenter.pretrained) for point in run.points} - {Path("none")}
    return sorted(str(path) for path in paths if not path.is_file())


def graph_of(
    run: Run, raw_hashes: Mapping[str, str | None], kept_weights: Mapping[str, str]
) -> Graph:
    """`build_graph`; a file that is missing and not in `kept_weights` leaves the hashes open.

    As where data is missing: the nodes have no hash, but the plan can be shown.
    """
    unknown = {path: f"missing: {path}" for path in missing_files(run) if path not in kept_weights}
    graph = build_graph(run, raw_hashes, {**kept_weights, **unknown})
    found: Graph = {}
    for name, node in graph.items():
        is_open = str(pretrained_file(node.science)) in unknown
        is_open |= any(found[other].hash is None for other in node.inputs.values())
        found[name] = replace(node, hash=None) if is_open else node
    return found
