"""The baselines that train a segmenter: oracle, f trained on with labels, AdaptSegNet."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_jobs import (
    FINETUNE_SEGMENTER,
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
    evaluate,
    finetune,
    finetune_segmenter,
    gan,
    losses,
    predict,
    preemption,
    segmentation,
    segmenter,
)
from tigan.config import EvaluateStage, StageJob, StageResult
from tigan.data import train_and_selection
from tigan.loop import Training, fit
from tigan.metrics import read

Roles = dict[str, Path]
F = {"seed": 7, "images": 12}
# Method -> the stage that makes its segmenter.
STAGES: dict[str, tuple[Callable[[StageJob], StageResult], Any]] = {
    "finetuned_segmenter": (finetune_segmenter.run, finetune_segmenter_science(draw=2, seed=3)),
    "both": (finetune_segmenter.run, finetune_segmenter_science(draw=2, seed=3)),
    "adaptsegnet": (adaptsegnet.run, adaptsegnet_science(seed=5)),
    "oracle": (segmenter.run, oracle_science(images=8)),
}


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, packed_synthia: Path, packed_cityscapes: Path
) -> Roles:
    """f, a GAN and its finetuning on the tiny data."""
    root = tmp_path_factory.mktemp("stages")
    roles = {"synthetic": packed_synthia, "real": packed_cityscapes}
    segmenter.run(job(root / "segmenter", segmenter_science(**F), roles))
    gan.run(job(root / "gan", gan_science(), roles))
    roles |= {"segmenter": root / "segmenter", "gan": root / "gan"}
    finetune.run(job(root / "finetune", finetune_science(draw=2, seed=3), roles))
    return roles | {"finetune": root / "finetune"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, inputs: Roles) -> Roles:
    """Method -> the finished stage that made its segmenter."""
    root = tmp_path_factory.mktemp("trained")
    before = (inputs["segmenter"] / "segmenter.pt").read_bytes()
    for method, (stage, science) in STAGES.items():
        assert stage(job(root / method, science, given(method, inputs))).outputs == ["segmenter.pt"]
    assert (inputs["segmenter"] / "segmenter.pt").read_bytes() == before, "f is frozen for ever"
    return {method: root / method for method in STAGES}


def given(method: str, inputs: Roles) -> Roles:
    """The inputs of a method's stage."""
    return inputs | ({"translator": inputs["finetune"]} if method == "both" else {})


def state(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_weights(folder / "segmenter.pt")[1]["segmenter"]


def keys(training: Training, stream: str) -> set[str]:
    """The keys of a stream's images, of two epochs and more."""
    return {key for step in range(6) for key in training.batches[step][stream].keys}


def real_split(inputs: Roles) -> tuple[PackedSplit, set[str], set[str]]:
    """Real train, and the keys that may be trained on, and those of the selection split."""
    split = PackedSplit(inputs["real"], "train")
    train, selection = train_and_selection(split, 0.3)
    assert len(selection) > 0
    return split, {split.keys[i] for i in train}, {split.keys[i] for i in selection}


ROWS = {
    "finetuned_segmenter": ("none", 3, 2, None, {"segmenter": 7, "gan": None, "finetune": 3}),
    "both": ("task_informed", 3, 2, 0.5, {"segmenter": 7, "gan": 0, "finetune": 3}),
    "adaptsegnet": ("none", None, None, None, {"segmenter": 7, "gan": None, "finetune": 5}),
    "oracle": ("none", 6, None, None, {"segmenter": 0, "gan": None, "finetune": None}),
}


@pytest.mark.parametrize("method", list(ROWS))
def test_each_is_scored_under_its_own_name(
    method: str, tmp_path: Path, inputs: Roles, trained: Roles
) -> None:
    science = EvaluateStage.model_validate(
        {"classes": "cityscapes19", "method": method, "selection_fraction": 0.3}
    )
    roles = given(method, inputs) | {"segmenter": trained[method]}
    evaluate.run(job(tmp_path, science, roles))
    rows = json.loads((tmp_path / "scores.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {method}
    for row in rows:
        found = tuple(row[key] for key in ("translation", "labels", "draw", "alpha", "seeds"))
        assert found == ROWS[method]


@pytest.mark.parametrize("method", list(STAGES))
def test_each_learns_and_loads_as_f_does(method: str, inputs: Roles, trained: Roles) -> None:
    ours, theirs = state(trained[method]), state(inputs["segmenter"])
    assert not torch.equal(ours["net.head.weight"], theirs["net.head.weight"])
    # The input is normalised as that f expects it; the oracle's by its own data.
    assert torch.equal(ours["mean"], theirs["mean"]) == (method != "oracle")
    loaded = predict.load_segmenter(trained[method], load_class_set("cityscapes19"))
    assert same_state(dict(loaded.segmenter.state_dict()), ours)
    lines = read(trained[method] / "metrics.jsonl")
    curve = [line["values"]["miou"] for line in lines if line["kind"] == "curve"]
    assert len(curve) == 3 and all(0 <= value <= 1 for value in curve)
    terms = {"adversarial", "discriminator"} if method == "adaptsegnet" else set()
    logged = [line["values"] for line in lines if line["kind"] == "train"]
    assert all(line.keys() == {"cross_entropy", "learning_rate"} | terms for line in logged)


def test_f_that_was_trained_on_keeps_what_it_was_made_with(inputs: Roles, trained: Roles) -> None:
    first, _ = checkpoint.load_weights(inputs["segmenter"] / "segmenter.pt")
    for method in ("finetuned_segmenter", "both", "adaptsegnet"):
        config, _ = checkpoint.load_weights(trained[method] / "segmenter.pt")
        assert config["segmenter"] == first["segmenter"]
        assert config.keys() > STAGES[method][1].model_dump().keys()


def test_labelled_images_are_those_of_the_method(tmp_path: Path, inputs: Roles) -> None:
    def of_the_method(draw: int) -> set[str]:
        science = finetune_science(draw=draw)
        return keys(finetune.build(science, job(tmp_path, science, inputs)), "labelled")

    def of_the_baseline(draw: int, roles: Roles) -> set[str]:
        science = finetune_segmenter_science(draw=draw)
        return keys(finetune_segmenter.build(science, job(tmp_path, science, roles)), "labelled")

    for draw in (0, 2):
        assert of_the_baseline(draw, inputs) == of_the_method(draw)
        assert of_the_baseline(draw, given("both", inputs)) == of_the_method(draw)
    assert of_the_baseline(0, inputs) != of_the_baseline(2, inputs)


def test_selection_split_is_never_trained_on(tmp_path: Path, inputs: Roles) -> None:
    _, train, selection = real_split(inputs)
    adapt, oracle = adaptsegnet_science(), oracle_science()
    all_labels = finetune_segmenter_science(labels="all")
    for training, stream in (
        (adaptsegnet.build(adapt, job(tmp_path, adapt, inputs)), "real"),
        (segmenter.build(oracle, job(tmp_path, oracle, inputs)), "real"),
        (finetune_segmenter.build(all_labels, job(tmp_path, all_labels, inputs)), "labelled"),
    ):
        used = keys(training, stream)
        assert used == train and not used & selection


def test_adaptsegnet_takes_labels_of_synthetic_images_only(tmp_path: Path, inputs: Roles) -> None:
    science = adaptsegnet_science()
    batch = adaptsegnet.build(science, job(tmp_path, science, inputs)).batches[0]
    assert batch["synthetic"].labels is not None and batch["real"].labels is None
    assert set(batch["synthetic"].keys) <= set(PackedSplit(inputs["synthetic"], "train").keys)


def test_both_is_trained_on_crops_of_whole_translated_images(tmp_path: Path, inputs: Roles) -> None:
    plain = segmenter_science(scale=[1.0, 1.0], colour_jitter=0.0, flip=False, images=4)
    segmenter.run(job(tmp_path / "f", plain, inputs))
    roles = given("both", inputs) | {"segmenter": tmp_path / "f"}
    science = finetune_segmenter_science()
    part = finetune_segmenter.build(science, job(tmp_path, science, roles)).batches[0]["labelled"]
    split = PackedSplit(inputs["real"], "train")
    _, generator = predict.load_generator(inputs["finetune"])
    for pixels, key in zip(part.images, part.keys, strict=True):
        image = predict.image_tensor(split.image(split.keys.index(key)))
        whole = (predict.translate(generator, image, uint8=True)[0] * 255).round().byte()
        windows = whole.unfold(1, 16, 1).unfold(2, 24, 1)  # [3, 9, 9, 16, 24]
        same = (windows == pixels[:, None, None]).all((0, 3, 4))
        assert same.any(), key
        assert not torch.equal(image.mul(255).round().byte()[0], whole)


def test_translated_split_holds_the_images_that_were_asked_for(inputs: Roles) -> None:
    split, _, _ = real_split(inputs)
    _, generator = predict.load_generator(inputs["finetune"])
    translated = finetune_segmenter.TranslatedSplit(split, np.array([4, 1]), generator)
    rows, columns = slice(3, 9), slice(5, 20)
    assert np.array_equal(translated.image(4, rows, columns), translated.image(4)[rows, columns])
    assert np.array_equal(translated.labels(4), split.labels(4))
    assert not translated.image(1, copy=False).flags.writeable
    with pytest.raises(KeyError):  # an image that nobody drew
        translated.image(0)


def test_a_signal_ends_the_translation_at_the_next_image(
    inputs: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, _, _ = real_split(inputs)
    _, generator = predict.load_generator(inputs["finetune"])
    read, asked = [], iter([False, False, True])
    image = split.image
    monkeypatch.setattr(split, "image", lambda i: read.append(i) or image(i))
    monkeypatch.setattr(preemption, "agreed", lambda: next(asked))
    with pytest.raises(preemption.Preempted):
        finetune_segmenter.TranslatedSplit(split, np.array([4, 1, 0, 2]), generator)
    assert read == [4, 1]


def test_without_the_adversarial_term_it_is_plain_training(tmp_path: Path, inputs: Roles) -> None:
    off = {"lambda_adversarial": 0.0}
    quick = {"images": 6}

    def trained_with(name: str, **changes: Any) -> dict[str, torch.Tensor]:
        science = adaptsegnet_science(**quick, **changes)
        adaptsegnet.run(job(tmp_path / name, science, inputs, curve_points=0))
        return state(tmp_path / name)

    task = job(tmp_path / "plain", adaptsegnet_science(**quick, **off), inputs, curve_points=0)
    training = adaptsegnet.build(task.science, task)
    f, optimizer = training.modules["segmenter"], training.optimizers["segmenter"]
    fit(replace(training, step=partial(segmentation.step, f, optimizer, "fp32")), task)

    without = trained_with("without", **off)
    assert same_state(dict(f.state_dict()), without)
    # Neither D nor the real images matter; with the term, both do.
    others = {"discriminator_width": 8, "selection_fraction": 0.5}
    assert same_state(trained_with("without other", **off, **others), without)
    with_term = [trained_with("with"), trained_with("with other", discriminator_width=8)]
    assert not same_state(with_term[0], without) and not same_state(*with_term)


def values_of(training: Training, steps: int) -> list[dict[str, float]]:
    """The terms of several updates on one batch."""
    return [training.step(training.batches[0], True) for _ in range(steps)]


def test_d_learns_to_tell_and_f_to_pass_for_synthetic(tmp_path: Path, inputs: Roles) -> None:
    still, d = 1e-9, {"discriminator_width": 16}
    science = adaptsegnet_science(learning_rate=still, discriminator_learning_rate=2e-3, **d)
    training = adaptsegnet.build(science, job(tmp_path, science, inputs))
    values = values_of(training, 13)
    assert values[0]["discriminator"] == pytest.approx(math.log(2), rel=0.05)  # D guesses
    assert values[-1]["discriminator"] < 0.5 * values[0]["discriminator"]
    assert values[-1]["adversarial"] > 2 * values[0]["adversarial"]
    judge = training.modules["judge"].state_dict()

    science = adaptsegnet_science(lambda_adversarial=1, discriminator_learning_rate=still, **d)
    training = adaptsegnet.build(science, job(tmp_path, science, inputs))
    training.modules["judge"].load_state_dict(judge)
    values = values_of(training, 6)
    assert values[-1]["adversarial"] < 0.5 * values[0]["adversarial"]
    assert values[-1]["discriminator"] > values[0]["discriminator"]  # f leads D astray


def test_each_network_has_its_own_rate_and_both_decay_alike(trained: Roles) -> None:
    newest = checkpoint.latest(trained["adaptsegnet"])
    assert newest is not None
    optimizers = checkpoint.load(newest)[0]["optimizers"]
    decay = (1 - 10 / 12) ** 0.9  # the last of 12 images in steps of 2
    for name, rate in (("segmenter", 1e-3), ("judge", 4e-3)):
        assert optimizers[name]["param_groups"][0]["lr"] == pytest.approx(rate * decay)


def test_f_trained_on_with_labels_keeps_its_augmentation(tmp_path: Path, inputs: Roles) -> None:
    science = finetune_segmenter_science(finetune_segmenter=FINETUNE_SEGMENTER | {"images": 40})
    training = finetune_segmenter.build(science, job(tmp_path, science, inputs))
    _, config = segmentation.load(job(tmp_path, science, inputs), load_class_set("cityscapes19"))
    expected = segmenter_science(**F).segmenter
    assert config == expected
    assert training.batches[0]["labelled"].images.shape == (2, 3, *expected.crop)
    assert (training.images, training.batch_size) == (40, 2)
    assert training.learning_rate(10) == pytest.approx(1e-3 * 0.75**expected.poly_power)
    optimizer = training.optimizers["segmenter"]
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["weight_decay"] == expected.weight_decay
    trainable = sum(p.requires_grad for p in training.modules["segmenter"].parameters())
    assert trainable == len(optimizer.param_groups[0]["params"]) > 0


def test_there_is_no_curve_without_a_selection_split(tmp_path: Path, inputs: Roles) -> None:
    with_one, without = adaptsegnet_science(), adaptsegnet_science(selection_fraction=0.0)
    assert adaptsegnet.build(with_one, job(tmp_path, with_one, inputs)).measure is not None
    assert adaptsegnet.build(without, job(tmp_path, without, inputs)).measure is None


def test_f_of_another_class_set_is_refused(tmp_path: Path, inputs: Roles) -> None:
    for build, science in (
        (finetune_segmenter.build, finetune_segmenter_science(classes="synthia13")),
        (
            adaptsegnet.build,
            adaptsegnet_science().model_copy(update={"classes": "synthia13"}),
        ),
    ):
        with pytest.raises(ValueError, match=r"segmenter\.pt: trained on.*does not fit 'synthia13"):
            build(science, job(tmp_path, science, inputs))


@pytest.mark.parametrize(("size", "expected"), [((96, 128), (3, 4)), ((16, 24), (1, 1))])
def test_d_judges_patches_of_maps_of_any_size(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    judge = adaptsegnet.OutputDiscriminator(19, 4)
    outputs = torch.rand(2, 19, *size).softmax(1)
    assert judge(outputs).shape == (2, 1, *expected)
    widths = [p.shape[0] for p in judge.parameters() if p.dim() == 4]
    assert widths == [4, 8, 16, 32, 1]


def test_domain_cross_entropy_is_per_image_and_on_logits() -> None:
    logits = torch.tensor([0.0, 0.0, 2.0, -1.0]).view(2, 1, 1, 2)
    expected = [math.log(2), (math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2]
    assert losses.domain_cross_entropy(logits, 1.0).tolist() == pytest.approx(expected)
    expected[1] = (math.log1p(math.exp(2)) + math.log1p(math.exp(-1))) / 2
    assert losses.domain_cross_entropy(logits, 0.0).tolist() == pytest.approx(expected)
