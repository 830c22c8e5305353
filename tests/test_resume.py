"""Stop after k images, start again: bit for bit the straight run, pools and noise included."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_jobs import (
    adaptsegnet_science,
    finetune_science,
    finetune_segmenter_science,
    gan_science,
    job,
    oracle_science,
    same_state,
    segmenter_science,
)

from data_prep.config import load_class_set
from data_prep.shards import PackedSplit
from tigan import (
    adaptsegnet,
    checkpoint,
    finetune,
    finetune_segmenter,
    gan,
    predict,
    preemption,
    segmenter,
)
from tigan.config import StageJob, StageResult
from tigan.metrics import read

Stage = Callable[[StageJob], StageResult]


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, packed_synthia: Path, packed_cityscapes: Path
) -> dict[str, Path]:
    """Finished segmenter and gan stages on the tiny data."""
    root = tmp_path_factory.mktemp("stages")
    roles = {"synthetic": packed_synthia, "real": packed_cityscapes}
    for name, stage, science in (
        ("segmenter", segmenter.run, segmenter_science()),
        ("gan", gan.run, gan_science()),
    ):
        stage(job(root / name, science, roles))
        roles = roles | {name: root / name}
    return roles


def stop_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Answer 'stop' at the given questions (one question per loop iteration of all attempts)."""
    asked = iter(range(10_000))
    monkeypatch.setattr(preemption, "agreed", lambda: next(asked) in steps)


def run_to_the_end(stage: Stage, task: StageJob) -> int:
    """Start again after every stop, as a scheduler would; the number of stops."""
    stops = 0
    while True:
        try:
            stage(task)
        except preemption.Preempted:
            stops += 1
            continue
        return stops


def weights(folder: Path) -> dict[str, Any]:
    (file,) = list(folder.glob("*.pt"))
    return torch.load(file, weights_only=True)


def logged(task: StageJob) -> list[tuple[object, ...]]:
    """What was logged, less the speed, which no two runs share."""
    lines = read(task.stage_dir / "metrics.jsonl")
    assert {"train", "speed"} <= {line["kind"] for line in lines}
    return [(m["images"], m["kind"], m["values"]) for m in lines if m["kind"] != "speed"]


def test_f_is_normalised_by_its_training_data(inputs: dict[str, Path]) -> None:
    split = PackedSplit(inputs["synthetic"], "train")
    pixels = np.concatenate([split.image(i).reshape(-1, 3) for i in range(len(split))]) / 255
    state = weights(inputs["segmenter"])["states"]["segmenter"]
    assert np.allclose(state["mean"].flatten(), pixels.mean(0), atol=1e-6)
    assert np.allclose(state["std"].flatten(), pixels.std(0), atol=1e-6)
    frozen = predict.load_segmenter(inputs["segmenter"], load_class_set("cityscapes19"))
    assert torch.equal(frozen.segmenter.mean, state["mean"])


def test_waiting_for_data_is_logged_as_a_share(inputs: dict[str, Path]) -> None:
    for stage in ("segmenter", "gan"):
        lines = [m for m in read(inputs[stage] / "metrics.jsonl") if m["kind"] == "speed"]
        assert lines and all(0 < line["values"]["data_wait"] < 1 for line in lines)


@pytest.mark.parametrize(
    ("stage", "science", "first"),
    [
        pytest.param(segmenter.run, segmenter_science(), 0, id="segmenter"),
        pytest.param(segmenter.run, oracle_science(), 0, id="oracle"),
        pytest.param(gan.run, gan_science(), 0, id="gan"),
        pytest.param(finetune.run, finetune_science(), 0, id="finetune"),
        pytest.param(finetune_segmenter.run, finetune_segmenter_science(), 3, id="both"),
        pytest.param(adaptsegnet.run, adaptsegnet_science(), 0, id="adaptsegnet"),
    ],
)
def test_resumed_is_straight_bit_for_bit(
    stage: Stage,
    science: Any,
    first: int,  # questions of each attempt before its loop: one for each of 3 images to translate
    tmp_path: Path,
    inputs: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs = inputs | {"translator": inputs["gan"]}  # which only finetune_segmenter takes
    straight, broken = (job(tmp_path / part, science, inputs) for part in ("straight", "broken"))
    assert run_to_the_end(stage, straight) == 0
    stop_at(monkeypatch, first + 1, 2 * first + 4)
    assert run_to_the_end(stage, broken) == 2
    assert same_state(weights(straight.stage_dir), weights(broken.stage_dir))

    assert logged(straight) == logged(broken)


def test_stop_at_the_last_step_does_not_lose_the_last_curve_point(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    science = finetune_science()
    straight, broken = (job(tmp_path / part, science, inputs) for part in ("straight", "broken"))
    assert run_to_the_end(finetune.run, straight) == 0
    steps = science.finetune.images // science.finetune.batch_size
    stop_at(monkeypatch, steps)
    assert run_to_the_end(finetune.run, broken) == 1
    assert same_state(weights(straight.stage_dir), weights(broken.stage_dir))
    points = [line[0] for line in logged(broken) if line[1] == "curve"]
    assert points[-1] == science.finetune.images and logged(straight) == logged(broken)


def test_work_after_the_last_checkpoint_is_done_again_exactly(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    # A kill -9: what is on disk is an older checkpoint and metrics that ran ahead of it.
    task = job(tmp_path / "gan", gan_science(), inputs)
    gan.run(task)
    expected, metrics = weights(task.stage_dir), logged(task)
    newest = max((task.stage_dir / "checkpoints").iterdir())
    shutil.rmtree(newest)
    (task.stage_dir / "translator.pt").unlink()
    gan.run(task)
    assert same_state(expected, weights(task.stage_dir))
    assert logged(task) == metrics


def test_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    task = job(tmp_path / "gan", gan_science(), inputs)
    gan.run(task)
    expected = weights(task.stage_dir)
    newest = max((task.stage_dir / "checkpoints").iterdir())
    data = bytearray((newest / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "state.pt").write_bytes(data)
    (task.stage_dir / "translator.pt").unlink()
    with pytest.warns(UserWarning, match="damaged checkpoint"):
        gan.run(task)
    assert same_state(expected, weights(task.stage_dir))


def test_damaged_newer_checkpoints_do_not_push_out_the_new_one(tmp_path: Path) -> None:
    token = checkpoint.claim(tmp_path)
    for images in (200, 300, 400):
        checkpoint.save(tmp_path, token, images, {}, {}, keep=3)
    for images in (300, 400):
        (tmp_path / "checkpoints" / f"{images:010d}" / "state.pt").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        found = checkpoint.latest(tmp_path)
    assert found is not None and int(found.name) == 200
    checkpoint.save(tmp_path, token, 250, {}, {}, keep=2)
    found = checkpoint.latest(tmp_path)
    assert found is not None and int(found.name) == 250


def test_checkpoints_that_are_all_damaged_are_kept_and_told(tmp_path: Path) -> None:
    """To begin anew would remove what is left of them."""
    token = checkpoint.claim(tmp_path)
    for images in (300, 400):
        checkpoint.save(tmp_path, token, images, {}, {}, keep=2)
        (tmp_path / "checkpoints" / f"{images:010d}" / "state.pt").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError) as caught:
        checkpoint.latest(tmp_path)
    assert f"{tmp_path / 'checkpoints'}: all 2 checkpoints are damaged" in str(caught.value)
    assert "move that folder away" in str(caught.value)


def test_checkpoint_that_cannot_be_read_now_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of the file system that is away for a minute must not cost the newest state."""
    token = checkpoint.claim(tmp_path)
    checkpoint.save(tmp_path, token, 300, {}, {}, keep=2)

    def away(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(checkpoint, "file_digest", away)
    with pytest.raises(OSError, match="Input/output error"):
        checkpoint.latest(tmp_path)
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path) is not None


def test_two_checkpoints_are_kept_and_unfinished_ones_cleared(
    tmp_path: Path, inputs: dict[str, Path]
) -> None:
    task = job(tmp_path / "gan", gan_science(), inputs)
    half = task.stage_dir / "checkpoints" / "0000000002"
    half.mkdir(parents=True)
    (half / "state.pt").write_bytes(b"half")
    gan.run(task)
    assert sorted(p.name for p in (task.stage_dir / "checkpoints").iterdir()) == [
        "0000000008",
        "0000000012",
    ]


def test_learning_rate_that_changed_is_refused(tmp_path: Path, inputs: dict[str, Path]) -> None:
    task = job(tmp_path / "gan", gan_science(images=12), inputs)
    gan.run(task)
    changed = job(tmp_path / "gan", gan_science(images=40, decay_from=0), inputs)
    with pytest.raises(AssertionError, match="saved at learning rate"):
        gan.run(changed)


def test_zombie_of_an_older_attempt_cannot_write(tmp_path: Path) -> None:
    old = checkpoint.claim(tmp_path)
    new = checkpoint.claim(tmp_path)
    with pytest.raises(RuntimeError, match="a newer attempt"):
        checkpoint.save(tmp_path, old, 4, {}, {}, keep=2)
    with pytest.raises(RuntimeError, match="a newer attempt"):
        checkpoint.save_weights(tmp_path / "weights.pt", old, {}, {})
    assert not (tmp_path / "weights.pt").exists()
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path, new, 4, {"x": 1}, {}, keep=2)
    found = checkpoint.latest(tmp_path)
    assert found is not None and checkpoint.load(found)[0] == {"x": 1}


def test_equal_weights_are_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for pid in (1, 22222):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        token = checkpoint.claim(tmp_path)
        checkpoint.save_weights(tmp_path / "weights.pt", token, {"a": 1}, {"w": torch.ones(3)})
        written.append((tmp_path / "weights.pt").read_bytes())
    assert written[0] == written[1]


def test_unfinished_metrics_line_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    line = {"images": 1, "total": 2, "seconds": 0.1, "kind": "train", "values": {}}
    file.write_text(json.dumps(line) + "\n" + '{"images": 2, "to')
    assert read(file) == [line]


def test_dropout_noise_is_a_function_of_images() -> None:
    from tigan.loop import seed_generators

    draws = []
    for images in (0, 8, 0):
        seed_generators(1, images, 0)
        draws.append(torch.nn.functional.dropout(torch.ones(64)))
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])
