"""What decides a stage's result, as one hash: science document, class set, weights file, inputs."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.config import ClassSet, ConfigError, load_class_set, named_config
from pipeline.done import digest_of

# Class sets matter to these; their colours only to the stages that draw pictures.
CLASS_STAGES = (
    "segmenter",
    "finetune",
    "finetune_segmenter",
    "adaptsegnet",
    "oracle",
    "evaluate",
    "report",
)
COLOUR_STAGES = ("report",)


def science_hash(
    stage: str,
    science: Mapping[str, Any],
    version: int,
    upstream: Mapping[str, str],
    kept_weights: Mapping[str, str] | None = None,
) -> str:
    """SHA-256 over all that decides what a stage makes; 64 hex digits.

    `science` is the dump of the stage's model, `version` its STAGE_VERSION, `upstream` maps each
    role to the hash of that input. A class set counts by its contents, a file of backbone weights
    by its bytes; `kept_weights` maps such files to the digests that count where they are gone.
    Raises `ConfigError` where a file is missing and not among those.
    """
    document = {
        "stage": stage,
        "science": {**science, **_by_content(science, kept_weights or {})},
        "classes": _class_contents(stage, science),
        "version": version,
        "upstream": dict(upstream),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def pretrained_file(science: Mapping[str, Any]) -> Path | None:
    """The file of backbone weights that a science document names; None where it names none."""
    segmenter = science.get("segmenter")
    if segmenter is None or segmenter["pretrained"] == "none":
        return None
    return Path(segmenter["pretrained"])


def weights_digest(path: Path) -> str:
    """Digest of a file of backbone weights. Raises `ConfigError` where it is missing."""
    if not path.is_file():
        raise ConfigError(
            f"segmenter.pretrained: no file {path}; expected 'none' or a file of backbone weights"
        )
    return _file_digest(path, _stamp(path))


def _by_content(science: Mapping[str, Any], kept: Mapping[str, str]) -> dict[str, Any]:
    """The segmenter's entry with its weights file, where there is one, replaced by a digest."""
    path = pretrained_file(science)
    if path is None:
        return {}
    is_gone = str(path) in kept and not path.is_file()
    digest = kept[str(path)] if is_gone else weights_digest(path)
    return {"segmenter": {**science["segmenter"], "pretrained": digest}}


def _class_contents(stage: str, science: Mapping[str, Any]) -> Any:
    """The class set's contents; a list, since class c is the c-th entry. None where not used."""
    if stage not in CLASS_STAGES:
        return None
    classes = classes_called(science["classes"])
    contents: list[Any] = [[name, ids] for name, ids in classes.classes.items()]
    if stage in COLOUR_STAGES:
        contents.append(classes.colours)
    return contents


def classes_called(name: str) -> ClassSet:
    """The class set `configs/classes/NAME.yaml`. Raises `ConfigError`."""
    path = named_config("classes", name)
    return _class_set(name, path, _stamp(path))


def _stamp(path: Path) -> tuple[int, int]:
    """Changes when a file does: a sweep hashes hundreds of nodes, but reads each file once."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache
def _class_set(name: str, path: Path, stamp: tuple[int, int]) -> ClassSet:
    return load_class_set(name)


@lru_cache
def _file_digest(path: Path, stamp: tuple[int, int]) -> str:
    return digest_of(path).digest
