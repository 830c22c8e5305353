"""The data stages as the driver runs them: rendering and packing, with progress and outputs."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from data_prep.config import StrictModel
from pipeline import paths
from pipeline.done import OutputRecord, digest_of
from pipeline.frozen import FrozenStage, Launch
from pipeline.science import PackStage, RenderCityscapesStage, RenderSynthiaStage

Outputs = dict[str, OutputRecord]


class Progress:
    """Appends lines to `metrics.jsonl` in the form of the training stages, about one a second."""

    def __init__(self, stage_dir: Path, seconds: float) -> None:
        self._path = stage_dir / paths.METRICS
        self._started = time.monotonic() - seconds
        self._last = 0.0

    def __call__(self, images: int, total: int) -> None:
        """Note that `images` of `total` are done."""
        now = time.monotonic()
        if images < total and now - self._last < 1.0:
            return
        self._last = now
        line = {
            "images": images,
            "total": total,
            "seconds": round(now - self._started, 3),
            "kind": "train",
            "values": {},
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def render_synthia(
    science: StrictModel, stage_dir: Path, launch: Launch, seconds: float
) -> Outputs:
    """Render MiniCity in Synthia's layout into `stage_dir`."""
    from data_prep import minicity

    assert isinstance(science, RenderSynthiaStage)
    report, total = Progress(stage_dir, seconds), science.images
    minicity.render_synthia(
        stage_dir,
        images=science.images,
        seed=science.seed,
        height=science.height,
        width=science.width,
        processes=launch.processes,
        progress=lambda done: report(done, total),
    )
    return {"RAND_CITYSCAPES": digest_of(stage_dir / "RAND_CITYSCAPES")}


def render_cityscapes(
    science: StrictModel, stage_dir: Path, launch: Launch, seconds: float
) -> Outputs:
    """Render MiniCity in Cityscapes' layout into `stage_dir`."""
    from data_prep import minicity

    assert isinstance(science, RenderCityscapesStage)
    report, total = Progress(stage_dir, seconds), science.train_images + science.val_images
    minicity.render_cityscapes(
        stage_dir,
        train_images=science.train_images,
        val_images=science.val_images,
        seed=science.seed,
        height=science.height,
        width=science.width,
        processes=launch.processes,
        progress=lambda done: report(done, total),
    )
    return {name: digest_of(stage_dir / name) for name in ("leftImg8bit", "gtFine")}


def pack(
    frozen: FrozenStage,
    science: StrictModel,
    stage_dir: Path,
    root: Path,
    rank: int,
    seconds: float,
    record_end: Callable[[BaseException], int],
) -> Outputs:
    """Pack the data set `root` into `stage_dir`; every MPI rank calls it.

    With several ranks an error on one ends all at once, after `record_end`.
    The digests of the shards are those in the index, taken when each was written: reading
    tens of gigabytes again would tell nothing new.
    """
    from data_prep import index
    from data_prep import pack as packing

    assert isinstance(science, PackStage)
    raw = frozen.inputs["raw"]
    is_users = Path(raw.dir).is_absolute()
    progress = Progress(stage_dir, seconds)
    packing.pack(
        packing.PackJob(
            science.kind,
            root,
            stage_dir,
            science.pack,
            subset=frozen.launch.subset,
            fingerprint=raw.hash if is_users else None,
            progress=progress,
            record_end=record_end,
        )
    )
    if rank != 0:
        return {}
    packed = index.read_index(stage_dir)
    outputs = {
        shard.file: OutputRecord(digest=shard.xxh3_64, size=shard.bytes)
        for shards in packed.splits.values()
        for shard in shards
    }
    return {index.INDEX_NAME: digest_of(stage_dir / index.INDEX_NAME), **outputs}
