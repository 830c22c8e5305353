"""Checkpoints: `checkpoints/IMAGES/{state.pt, rankNNN.pt, manifest.json}`, manifest last.

`state.pt` holds what all ranks share (written by rank 0), `rankNNN.pt` what belongs to one rank
(image pools). A checkpoint counts once its manifest, with the digest of every file, is there.
"""

import json
import shutil
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

import torch
import xxhash

from data_prep import atomic
from tigan import distributed

_VIEW_TIMEOUT_S = 60.0


def file_digest(path: Path) -> str:
    """xxh3-128 of a file's bytes, as hex."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def claim(stage_dir: Path) -> str:
    """Make this attempt the only one that may write checkpoints of the stage; its token.

    A collective. A lost node may come back while its job already runs elsewhere: the token,
    compared before every rename, keeps such a zombie from writing.
    """
    token = distributed.broadcast_object(uuid.uuid4().hex)
    if distributed.group().is_first:
        atomic.write_text(stage_dir / "attempt", token)
    distributed.barrier()
    return token


def _check_claim(stage_dir: Path, token: str) -> None:
    """Raise RuntimeError where a newer attempt owns the stage."""
    if (stage_dir / "attempt").read_text(encoding="utf-8") != token:
        raise RuntimeError(
            f"{stage_dir}: a newer attempt of this stage is running; this one stops without writing"
        )


def _save_torch(path: Path, state: Any) -> None:
    """torch.save through an open file: given a path, it writes the path's name into the file.

    The name holds a process id, and equal weights would have different digests.
    """
    with path.open("wb") as file:
        torch.save(state, file)


def _write(path: Path, state: Any, stage_dir: Path, token: str) -> tuple[str, str]:
    """Write one file of a checkpoint; returns its name and digest."""
    with atomic.replacing(path, before_rename=lambda: _check_claim(stage_dir, token)) as temporary:
        _save_torch(temporary, state)
        digest = file_digest(temporary)
    return path.name, digest


def save(
    stage_dir: Path, token: str, images: int, shared: dict[str, Any], own: dict[str, Any], keep: int
) -> None:
    """Write the checkpoint of `images` and prune to the `keep` newest. A collective.

    `shared` and `own` hold tensors and plain Python values only (they are read with
    `weights_only=True`). Raises RuntimeError where another attempt has claimed the stage.
    """
    group = distributed.group()
    folder = stage_dir / "checkpoints" / f"{images:010d}"
    written = [_write(folder / f"rank{group.rank:03d}.pt", own, stage_dir, token)]
    if group.is_first:
        written.append(_write(folder / "state.pt", shared, stage_dir, token))
    files = dict(item for rank in distributed.gather_objects(written) for item in rank)
    if group.is_first:
        _check_claim(stage_dir, token)
        manifest = {"images": images, "world_size": group.world_size, "files": files}
        atomic.write_json(folder / "manifest.json", manifest)
        _prune(stage_dir, images, keep)
    distributed.barrier()


def _complete(stage_dir: Path) -> list[Path]:
    """Folders with a manifest, newest first."""
    manifests = (stage_dir / "checkpoints").glob("*/manifest.json")
    return sorted((m.parent for m in manifests), reverse=True)


def _prune(stage_dir: Path, images: int, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints up to `images`, and unfinished ones.

    What is newer than the one just written was found damaged when this attempt began: it must
    not count as kept. The manifest goes first, so that a removal that is cut off leaves no false
    checkpoint.
    """
    kept = [folder for folder in _complete(stage_dir) if int(folder.name) <= images][:keep]
    for folder in (stage_dir / "checkpoints").iterdir():
        if folder not in kept:
            (folder / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def is_valid(folder: Path) -> bool:
    """Whether every file that the manifest names is there with the recorded digest.

    Raises OSError where a file is there and cannot be read now: that is no damage.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return all(
            file_digest(folder / name) == digest for name, digest in manifest["files"].items()
        )
    except (FileNotFoundError, ValueError, KeyError, AttributeError):
        return False


def latest(stage_dir: Path) -> Path | None:
    """The newest valid checkpoint, the same on every rank; None where none was made. A collective.

    Rank 0 picks and broadcasts it: file systems show different views to different nodes. Raises
    ValueError where there are checkpoints and all are damaged (to begin anew would remove what is
    left of days of work), OSError where they cannot be read now.
    """
    choice = None
    if distributed.group().is_first:
        folder = _newest_valid(stage_dir)
        choice = folder and (str(folder), file_digest(folder / "manifest.json"))
    choice = distributed.broadcast_object(choice)
    if choice is None:
        return None
    folder = Path(choice[0])
    _wait_for_view(folder / "manifest.json", choice[1])
    return folder


def _newest_valid(stage_dir: Path) -> Path | None:
    """As `latest`, on one rank."""
    complete = _complete(stage_dir)
    for folder in complete:
        if is_valid(folder):
            return folder
        warnings.warn(f"{folder}: damaged checkpoint; the one before it is used", stacklevel=3)
    if complete:
        raise ValueError(
            f"{stage_dir / 'checkpoints'}: all {len(complete)} checkpoints are damaged (a file is "
            "missing, or not the one that was written); put them back, or move that folder away to "
            "begin this stage anew"
        )
    return None


def _wait_for_view(manifest: Path, digest: str) -> None:
    """Wait until this node sees the manifest that rank 0 sees. Raises RuntimeError after 60 s."""
    end = time.monotonic() + _VIEW_TIMEOUT_S
    while not (manifest.is_file() and file_digest(manifest) == digest):
        if time.monotonic() > end:
            raise RuntimeError(
                f"{manifest}: this node does not see the checkpoint that rank 0 chose; "
                "check that the run directory is on a file system shared by all nodes"
            )
        time.sleep(0.5)


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shared state, in main memory, and this rank's own state, on this rank's device.

    `load_state_dict` moves the shared state where it belongs; read straight onto a GPU, Adam's
    step counters would stay there and cost a synchronisation per parameter and step. After a
    change of the number of ranks, rank r goes on with the own state of rank r mod n.
    """
    group = distributed.group()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["world_size"] != group.world_size and group.is_first:
        warnings.warn(
            f"{folder}: written by {manifest['world_size']} ranks, resumed by {group.world_size}: "
            "the order of the data goes on unchanged, the weights will not be bitwise the same",
            stacklevel=2,
        )
    own = folder / f"rank{group.rank % manifest['world_size']:03d}.pt"
    return (
        torch.load(folder / "state.pt", map_location="cpu", weights_only=True),
        torch.load(own, map_location=group.device, weights_only=True),
    )


def save_weights(path: Path, token: str, config: dict[str, Any], states: dict[str, Any]) -> None:
    """Write final weights that describe themselves: {'config': ..., 'states': {name: ...}}.

    Raises RuntimeError where another attempt has claimed the stage.
    """
    with atomic.replacing(
        path, before_rename=lambda: _check_claim(path.parent, token)
    ) as temporary:
        _save_torch(temporary, {"config": config, "states": states})


def load_weights(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and states of `save_weights`, on this rank's device."""
    saved = torch.load(path, map_location=distributed.group().device, weights_only=True)
    return saved["config"], saved["states"]
