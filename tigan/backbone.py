"""Whether a file of pretrained weights fits a backbone of f, by names and shapes.

`python -m tigan.backbone FILE BACKBONE` tells it before anything is submitted: one line and exit
code 0 where it fits, else one line for each problem and exit code 1.
"""

import argparse
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision.models.segmentation as zoo
from torch import Tensor

_BUILD = {
    "resnet101": zoo.deeplabv3_resnet101,
    "resnet50": zoo.deeplabv3_resnet50,
    "mobilenet_v3_large": zoo.deeplabv3_mobilenet_v3_large,
}
_CLASSIFIER = ("fc.", "classifier.")
_COUNTER = ".num_batches_tracked"  # older files lack it, and torch's BatchNorm then starts at 0
_PARALLEL = "module."
_SHOWN = 3


def needed(backbone: str) -> dict[str, Tensor]:
    """Name -> tensor on the meta device, of all that a backbone of that name is made of."""
    with torch.device("meta"):
        net = _BUILD[backbone](weights=None, weights_backbone=None, num_classes=1)
    state: dict[str, Tensor] = net.backbone.state_dict()
    return state


def read_body(path: Path) -> dict[str, Any]:
    """The state dict of a torchvision classification checkpoint, less its classifier.

    Its names are the backbone's. Raises ValueError, without the path, where `path` cannot be read
    or holds no state dict. Nothing but tensors is ever unpickled.
    """
    try:
        # Mapped: a comparison of shapes need not read the tensors. Old files are no zip archives.
        is_zip = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    except Exception as error:  # what is not of torch.save, or cut off, can fail in any way
        raise ValueError(_unreadable(str(error))) from None
    if not isinstance(state, Mapping):
        raise ValueError(f"holds a {type(state).__name__}; expected {_EXPECTED}")
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(_without_tensors(state))
    return {
        str(key).removeprefix("features."): value
        for key, value in state.items()
        if not str(key).removeprefix(_PARALLEL).startswith(_CLASSIFIER)
    }


_EXPECTED = "a state dict: names and tensors, as torch.save(model.state_dict(), FILE) writes it"


def _unreadable(message: str) -> str:
    """What is wrong with a file that torch.load refuses with `message`, in one line."""
    refused = re.search(r"GLOBAL (\S+) was not an allowed", message)
    if refused is not None:
        return f"holds a whole object ({refused[1]}); expected {_EXPECTED}"
    if "TorchScript" in message:
        return f"holds a TorchScript program; expected {_EXPECTED}"
    return f"cannot be read: not a file of torch.save, or cut off; expected {_EXPECTED}"


def _without_tensors(state: Mapping[Any, Any]) -> str:
    """What is wrong with a dict that has no tensors at its top; it may have them further down."""
    for key, value in state.items():
        if isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values()):
            return f"its tensors lie under the key {key!r}; save what lies there, as {_EXPECTED}"
    return f"holds {len(state)} entries, but no tensors; expected {_EXPECTED}"


def misfits(state: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state`, of `read_body`, from being loaded into `wanted`; [] where it fits."""
    found = []
    if state and all(name.startswith(_PARALLEL) for name in state):
        found.append(
            f"all names begin with {_PARALLEL!r}, as DistributedDataParallel gives them; save the "
            "state dict of the model inside it (model.module.state_dict())"
        )
        state = {
            name.removeprefix(_PARALLEL).removeprefix("features."): value
            for name, value in state.items()
        }
    must = [name for name in wanted if not name.endswith(_COUNTER)]
    missing = [name for name in must if name not in state]
    if missing:
        found.append(f"names missing ({len(missing)} of {len(must)}): {_some(missing)}")
    unknown = [name for name in state if name not in wanted]
    if unknown:
        found.append(f"names not of this backbone ({len(unknown)}): {_some(unknown)}")
    wrong = [
        f"{name} (found {_shape(state[name])}, expected {_shape(tensor)})"
        for name, tensor in wanted.items()
        if name in state and _shape(state[name]) != _shape(tensor)
    ]
    if wrong:
        found.append(f"tensors of another shape ({len(wrong)}): {_some(wrong)}")
    return found


def _some(items: list[str]) -> str:
    """The first few, and how many more there are."""
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def problems(path: Path, backbone: str) -> list[str]:
    """All that is wrong with a file for the backbone of that name, one line each; [] if it fits."""
    try:
        state = read_body(path)
    except ValueError as error:
        return [str(error)]
    found = misfits(state, needed(backbone))
    others = [name for name in _BUILD if name != backbone]
    fitting = [name for name in others if found and not misfits(state, needed(name))]
    return found + [f"it fits {name}: set segmenter.backbone: {name}" for name in fitting]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (0: the file fits, 1: it does not)."""
    parser = argparse.ArgumentParser(
        prog="python -m tigan.backbone",
        description="Compare a torchvision classification checkpoint with a backbone of f.",
    )
    parser.add_argument("file", type=Path, help="the file, as in segmenter.pretrained")
    parser.add_argument("backbone", choices=tuple(_BUILD), help="as in segmenter.backbone")
    args = parser.parse_args(arguments)
    found = problems(args.file, args.backbone)
    for line in found:
        print(f"{args.file}: {' '.join(line.split())}")  # names of tensors may hold anything
    if not found:
        print(f"{args.file}: fits {args.backbone}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
