"""The one training loop. Loop order: load latest -> (report; save?; stop?; step) for ever."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from tigan import checkpoint, distributed, preemption
from tigan.config import StageJob, TrainingConfig
from tigan.data import Batch, StepBatches, load_from
from tigan.metrics import Kind, MetricsLog
from tigan.networks import ImagePool

_WAIT = "data_wait"


@dataclass(frozen=True)
class Training:
    """What `fit` trains. Names of modules, optimizers and pools are keys of the checkpoint.

    `step(batch, detailed)` does one update on this rank's part of a global batch and returns the
    values to log; `detailed` asks for the costly ones too. It must be a pure function of the
    state, the batch and torch's global generator. `measure` gives a curve point.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]
    batches: StepBatches
    step: Callable[[Batch, bool], dict[str, float]]
    learning_rate: Callable[[int], float]
    images: int
    batch_size: int
    seed: tuple[int, ...]
    pools: Mapping[str, ImagePool] = field(default_factory=dict)
    measure: Callable[[], dict[str, float]] | None = None


@dataclass(frozen=True)
class Fitted:
    """The end of a training: figures to record, and the right to write the final weights."""

    figures: dict[str, float | int | str]
    token: str


def fit(training: Training, job: StageJob) -> Fitted:
    """Train to the end from the newest checkpoint in `job.stage_dir`.

    Raises `preemption.Preempted` after a signal, once the state is saved: after the last step, too,
    for the last curve point is then still to be measured.
    """
    launch = job.training
    token = checkpoint.claim(job.stage_dir)
    images, seconds = _resume(training, job)
    # The same on every rank by construction, yet processors differ in last bits.
    for module in training.modules.values():
        distributed.broadcast_module(module)
    log = _Log(training, job, images, seconds)
    loader = load_from(training.batches, images // training.batch_size, launch.num_workers)
    waits = _Waits()
    saved_at = images
    while True:
        finished = images >= training.images
        # Asked before the curve point: a measurement could use up the time there is to save.
        stop = preemption.agreed()
        if training.measure and not stop and _is_curve_point(training, launch, images):
            log.write(images, "curve", training.measure())
        due = finished or stop or _passes(training, images, launch.checkpoint_images)
        if due and images != saved_at:
            _save(training, job, token, images, log.seconds)
            saved_at = images
        if stop:
            raise preemption.Preempted
        if finished:
            break
        after = images + training.batch_size
        detailed = (
            images == 0 or after >= training.images or _passes(training, after, launch.log_images)
        )
        values = _one_step(training, waits.next(loader), images, detailed)
        if detailed:
            means = _over_ranks(values | {_WAIT: waits.share()})
            log.write(after, "speed", {_WAIT: means.pop(_WAIT)})
            rate = {"learning_rate": training.learning_rate(after)}
            log.write(after, "train", means | rate)
        images = after
    log.close()
    per_second = images / max(1e-9, log.seconds)
    return Fitted({"images": images, "images_per_second": round(per_second, 3)}, token)


def _passes(training: Training, images: int, every: int) -> bool:
    """Whether a multiple of `every` was passed by the batch that ended at `images`."""
    return images // every != (images - training.batch_size) // every


def _is_curve_point(training: Training, launch: TrainingConfig, images: int) -> bool:
    """Whether to measure at `images`: `curve_points` times, evenly, the end included."""
    if launch.curve_points == 0:
        return False
    every = max(1, training.images // launch.curve_points)
    return images >= training.images or _passes(training, images, every)


def _one_step(training: Training, batch: Batch, images: int, detailed: bool) -> dict[str, float]:
    """Seed, set the learning rate, update."""
    rate = training.learning_rate(images)
    for optimizer in training.optimizers.values():
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate
    # Noise (dropout, pools) is a function of (seed, images, rank): resume needs no RNG state.
    seed_generators(*training.seed, images, distributed.group().rank)
    return training.step(batch, detailed)


def seed_generators(*words: int) -> None:
    """Seed torch's global generators, on the CPU and on GPUs, from any non-negative integers."""
    high, low = np.random.SeedSequence(words).generate_state(2).tolist()
    torch.manual_seed(high << 31 ^ low)


class _Log:
    """Rank 0's metrics; silent on the other ranks."""

    def __init__(self, training: Training, job: StageJob, images: int, seconds: float) -> None:
        self._started = time.monotonic() - seconds
        self._log = None
        if distributed.group().is_first:
            self._log = MetricsLog(job.stage_dir, images=images, total=training.images)

    @property
    def seconds(self) -> float:
        """Wall time in the stage, over restarts; work that was lost is not counted."""
        return time.monotonic() - self._started

    def write(self, images: int, kind: Kind, values: dict[str, float]) -> None:
        if self._log:
            self._log.write(images, self.seconds, kind, values)

    def close(self) -> None:
        if self._log:
            self._log.close()


class _Waits:
    """How long the steps wait for their data."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._waited = 0.0

    def next(self, loader: Iterator[Batch]) -> Batch:
        """The next batch."""
        started = time.monotonic()
        batch = next(loader)
        self._waited += time.monotonic() - started
        return batch

    def share(self) -> float:
        """Share of the wall time since the last call, 0..1, that was spent waiting."""
        now = time.monotonic()
        share = self._waited / max(1e-9, now - self._since)
        self._since, self._waited = now, 0.0
        return share


def _over_ranks(values: dict[str, float]) -> dict[str, float]:
    """The mean of every logged value over the ranks. A collective."""
    everyone = distributed.gather_objects(values)
    return {name: sum(v[name] for v in everyone) / len(everyone) for name in values}


def _save(training: Training, job: StageJob, token: str, images: int, seconds: float) -> None:
    """Write the checkpoint at `images`. A collective."""
    shared: dict[str, Any] = {
        "images": images,
        "learning_rate": training.learning_rate(images),
        "seconds": seconds,
        "modules": {name: module.state_dict() for name, module in training.modules.items()},
        "optimizers": {name: opt.state_dict() for name, opt in training.optimizers.items()},
    }
    own = {"pools": {name: pool.images for name, pool in training.pools.items()}}
    checkpoint.save(job.stage_dir, token, images, shared, own, keep=job.training.keep_checkpoints)


def _resume(training: Training, job: StageJob) -> tuple[int, float]:
    """Load the newest checkpoint into `training`; images and seconds so far. A collective."""
    folder = checkpoint.latest(job.stage_dir)
    if folder is None:
        return 0, 0.0
    shared, own = checkpoint.load(folder)
    for name, module in training.modules.items():
        module.load_state_dict(shared["modules"][name])
    for name, optimizer in training.optimizers.items():
        optimizer.load_state_dict(shared["optimizers"][name])
    for name, pool in training.pools.items():
        pool.images = own["pools"][name]
    images = int(shared["images"])
    # The rate follows from the images; public codes recompute it wrongly after a restart.
    expected = training.learning_rate(images)
    assert shared["learning_rate"] == expected, (
        f"{folder}: saved at learning rate {shared['learning_rate']}, the configuration gives "
        f"{expected} at {images} images"
    )
    return images, float(shared["seconds"])
