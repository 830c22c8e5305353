"""The train step: the extended loss, and that alpha = 0 is plain CycleGAN."""

import copy

import pytest
import torch
from tiny_jobs import GAN, batch, same_state
from torch import nn

from tigan import losses, translation
from tigan.config import GanConfig, SegmenterConfig
from tigan.data import Batch
from tigan.networks import FrozenSegmenter, Segmenter
from tigan.translation import Task, Translator

CONFIG = GanConfig.model_validate(GAN)


def frozen() -> FrozenSegmenter:
    torch.manual_seed(9)
    settings = {"architecture": "unet", "width": 4, "crop": [8, 8], "images": 8, "batch_size": 2}
    return FrozenSegmenter(Segmenter(SegmenterConfig.model_validate(settings), 19))


def translator(learning_rate: float = 1e-2) -> Translator:
    torch.manual_seed(3)
    return translation.build(CONFIG, learning_rate)


def batches() -> Batch:
    return {
        "real": batch(1, seed=1),
        "synthetic": batch(1, seed=2),
        "labelled": batch(2, seed=3, labelled=True),
    }


def state(subject: Translator) -> dict[str, object]:
    return {
        "modules": {k: copy.deepcopy(m.state_dict()) for k, m in subject.modules.items()},
        "pools": {k: p.images for k, p in subject.pools.items()},
    }


def run(task: Task | None, data: Batch, *, detailed: bool = False, steps: int = 3) -> Translator:
    subject = translator()
    for number in range(steps):
        torch.manual_seed(number)
        translation.step(subject, CONFIG, task, data, detailed)
    return subject


def test_alpha_zero_is_plain_cyclegan_bit_for_bit() -> None:
    plain = run(None, batches())
    control = run(Task(frozen(), 0.0, 10.0), batches(), detailed=True)
    assert same_state(state(plain), state(control))
    informed = run(Task(frozen(), 0.5, 10.0), batches())
    assert not same_state(state(plain), state(informed))


def test_alpha_zero_does_not_call_f() -> None:
    class Refusing(FrozenSegmenter):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise AssertionError("f was called, and 0 * NaN is NaN")

    translation.step(
        translator(), CONFIG, Task(Refusing(frozen().segmenter), 0.0, 10.0), batches(), True
    )


def test_detailed_logging_changes_nothing_that_is_learned() -> None:
    task = Task(frozen(), 0.5, 10.0)
    assert same_state(state(run(task, batches())), state(run(task, batches(), detailed=True)))


@torch.no_grad()
def loss_by_the_formula(subject: Translator, task: Task, data: Batch, scales_all: bool) -> float:
    """The generators' loss, image by image, as the poster writes it."""
    nets = subject.modules
    real = [
        (p.images[i : i + 1], None if p.labels is None else p.labels[i : i + 1])
        for p in (data["real"], data["labelled"])
        for i in range(len(p.images))
    ]
    total = 0.0
    valid = sum(int((labels != 255).sum()) for _, labels in real if labels is not None)
    for pixels, labels in real:
        image = pixels.float() / 127.5 - 1
        fake = nets["to_synthetic"](image)
        weight = 1.0 if labels is None else 1 - task.alpha
        other = weight if scales_all else 1.0
        total += weight * float((nets["judge_synthetic"](fake) - 1).square().mean())
        total += other * 10 * float((nets["to_real"](fake) - image).abs().mean())
        total += other * 5 * float((nets["to_real"](image) - image).abs().mean())
        if labels is not None:
            logits = task.segmenter.segmenter((fake + 1) / 2)
            pixelwise = nn.functional.cross_entropy(
                logits, labels.long(), ignore_index=255, reduction="sum"
            )
            # The mean over the valid pixels of both labelled images, counted once per image.
            total += task.alpha * task.gamma * 2 * float(pixelwise) / valid
    total /= len(real)
    synthetic = data["synthetic"].images.float() / 127.5 - 1
    fake_real = nets["to_real"](synthetic)
    total += float((nets["judge_real"](fake_real) - 1).square().mean())
    total += 10 * float((nets["to_synthetic"](fake_real) - synthetic).abs().mean())
    total += 5 * float((nets["to_synthetic"](synthetic) - synthetic).abs().mean())
    return total


@pytest.mark.parametrize("scales_all", [False, True])
def test_the_loss_is_the_posters(monkeypatch: pytest.MonkeyPatch, scales_all: bool) -> None:
    task, data, subject = Task(frozen(), 0.3, 7.0, scales_all), batches(), translator()
    expected = loss_by_the_formula(subject, task, data, scales_all)
    seen = []
    update = translation._update

    def spy(
        subject: Translator, phase: str, names: tuple[str, ...], loss: torch.Tensor, keys: list[str]
    ) -> None:
        seen.append((phase, loss.item()))
        update(subject, phase, names, loss, keys)

    monkeypatch.setattr(translation, "_update", spy)
    translation.step(subject, CONFIG, task, data, False)
    assert [phase for phase, _ in seen] == ["generators", "discriminators"]
    assert seen[0][1] == pytest.approx(expected, rel=1e-5)


def test_discriminator_loss_is_halved_and_on_pooled_images() -> None:
    subject, data = translator(learning_rate=0.0), batches()
    values = translation.step(subject, CONFIG, None, data, True)
    judge = subject.modules["judge_synthetic"]
    synthetic = data["synthetic"].images.float() / 127.5 - 1
    history = torch.stack(subject.pools["judge_synthetic"].images)
    expected = 0.5 * (
        losses.lsgan(judge(synthetic), 1.0) + losses.lsgan(judge(history), 0.0).mean()
    )
    assert values["discriminator_synthetic"] == pytest.approx(expected.item(), rel=1e-5)


def test_f_is_untouched_and_raw_terms_are_logged() -> None:
    segmenter = frozen()
    before = copy.deepcopy(segmenter.state_dict())
    subject = translator()
    values = translation.step(subject, CONFIG, Task(segmenter, 0.5, 10.0), batches(), True)
    assert same_state(before, dict(segmenter.state_dict()))
    assert all(p.grad is None for p in segmenter.parameters())
    assert values["gradient_task"] > 0 and values["gradient_lsgan"] > 0
    # Raw: the same whatever alpha weighs them with.
    plain = translation.step(translator(), CONFIG, None, batches(), True)
    assert values["lsgan_synthetic"] == plain["lsgan_synthetic"]
    assert {"lsgan_synthetic", "cycle_real", "identity_real", "cross_entropy"} <= values.keys()


def test_all_labels_ignored_still_trains_finitely() -> None:
    data = batches()
    assert data["labelled"].labels is not None
    data["labelled"].labels.fill_(255)
    subject = translator()
    values = translation.step(subject, CONFIG, Task(frozen(), 0.5, 10.0), data, True)
    assert values["cross_entropy"] == 0
    assert all(p.isfinite().all() for m in subject.modules.values() for p in m.parameters())


def test_discriminators_can_stand_still() -> None:
    subject = translator()
    before = copy.deepcopy(subject.modules["judge_real"].state_dict())
    translation.step(subject, CONFIG, None, batches(), False, train_discriminators=False)
    assert same_state(before, dict(subject.modules["judge_real"].state_dict()))


def test_nan_names_the_batch_before_anything_is_updated() -> None:
    subject = translator()
    with torch.no_grad():
        next(subject.modules["to_real"].parameters()).fill_(float("nan"))
    before = copy.deepcopy(subject.modules["to_synthetic"].state_dict())
    with pytest.raises(FloatingPointError, match="1_0"):
        translation.step(subject, CONFIG, None, batches(), False)
    assert same_state(before, dict(subject.modules["to_synthetic"].state_dict()))


def test_learning_rates_are_functions_of_images() -> None:
    rates = [
        translation.linear_decay(2e-4, 100, 200, images) for images in (0, 99, 100, 150, 200, 220)
    ]
    assert rates == pytest.approx([2e-4, 2e-4, 2e-4, 1e-4, 0.0, 0.0])
