"""`metrics.jsonl`, one line per report, and the same values as TensorBoard events."""

import json
from pathlib import Path
from typing import Any, Literal

from data_prep import atomic

Kind = Literal["train", "curve", "speed"]


def read(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics file; none where there is no file.

    Each is {images, total, seconds, kind, values: {name: float}}; `kind` is 'train', 'curve' (a
    measurement on held-out images) or 'speed' (the only one that differs from run to run). A last
    line that a killed process left unfinished is left out.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines if line]


class MetricsLog:
    """Rank 0's writer; the other ranks do not have one.

    `images` is where the run goes on: lines past it came from work that was lost, and the curve
    point at it will be measured again.
    """

    def __init__(self, stage_dir: Path, *, images: int, total: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, rank 0 only

        self._path = stage_dir / "metrics.jsonl"
        self._total = total
        kept = [line for line in read(self._path) if _stands(line, images)]
        atomic.write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(stage_dir / "tensorboard"), purge_step=images)

    def write(self, images: int, seconds: float, kind: Kind, values: dict[str, float]) -> None:
        """Append one line, visible to readers at once; `seconds` spent in the stage so far."""
        line = {
            "images": images,
            "total": self._total,
            "seconds": round(seconds, 3),
            "kind": kind,
            "values": {name: float(f"{value:.6g}") for name, value in values.items()},
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, images)

    def close(self) -> None:
        """Flush both files."""
        self._file.close()
        self._events.close()


def _stands(line: dict[str, Any], images: int) -> bool:
    """Whether a line was written by work that the resumed state contains."""
    at = int(line["images"])
    return at < images or (at == images and line["kind"] != "curve")
