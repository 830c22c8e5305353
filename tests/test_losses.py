import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tigan import losses, scores


def test_lsgan_is_mean_squared_error_on_raw_logits() -> None:
    logits = torch.tensor([[[[0.5, 3.0]]], [[[-1.0, 1.0]]]])
    assert losses.lsgan(logits, 1.0).tolist() == pytest.approx([(0.25 + 4) / 2, (4 + 0) / 2])
    assert losses.lsgan(logits, 0.0).tolist() == pytest.approx([(0.25 + 9) / 2, (1 + 1) / 2])


def test_weights_scale_single_images() -> None:
    logits = torch.randn(3, 1, 2, 2)
    weights = torch.tensor([1.0, 0.25, 0.0])
    first, second, _ = losses.lsgan(logits, 1.0).tolist()
    mean = losses.weighted_mean(losses.lsgan(logits, 1.0), weights)
    assert mean.item() == pytest.approx((first + 0.25 * second) / 3)


def test_cross_entropy_ignores_255() -> None:
    logits, labels = torch.randn(2, 4, 3, 3), torch.randint(0, 4, (2, 3, 3)).byte()
    labels[0] = 255
    expected = F.cross_entropy(logits[1:], labels[1:].long())
    assert losses.cross_entropy(logits, labels).item() == pytest.approx(expected.item())


def test_batch_without_a_valid_pixel_gives_zero_and_no_gradient() -> None:
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    loss = losses.cross_entropy(logits, torch.full((1, 3, 3), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_cross_entropy_is_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = F.conv2d(torch.randn(1, 3, 4, 4), torch.randn(5, 3, 1, 1))
        assert logits.dtype == torch.bfloat16
        loss = losses.cross_entropy(logits, torch.zeros(1, 4, 4, dtype=torch.uint8))
    assert loss.dtype == torch.float32


def test_loss_that_is_not_finite_names_term_and_images() -> None:
    terms = {"cycle": torch.tensor(1.0), "lsgan": torch.tensor(float("nan"))}
    with pytest.raises(FloatingPointError, match=r"lsgan.*aachen_000001_000019"):
        losses.check_finite(terms, ["aachen_000001_000019"])
    losses.check_finite({"cycle": torch.tensor(1.0)}, [])


def test_gradient_that_is_not_finite_stops_before_the_update() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([1.0, float("inf")])
    with pytest.raises(FloatingPointError, match=r"gradient not finite.*key_7"):
        losses.check_gradients([weight], ["key_7"])
    weight.grad = torch.tensor([1.0, 2.0])
    losses.check_gradients([weight], [])


def test_confusion_counts_rows_as_ground_truth_and_drops_ignored() -> None:
    labels = torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)
    predictions = torch.tensor([[0, 1, 1, 2]])
    confusion = scores.confusion_matrix(labels, predictions, 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert scores.class_iou(confusion) == [0.5, 0.5, None]
    assert scores.mean_iou(confusion) == 0.5


def test_miou_is_of_one_matrix_and_not_a_mean_over_images() -> None:
    first = scores.confusion_matrix(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 0]), 2)
    second = scores.confusion_matrix(torch.tensor([1, 1]), torch.tensor([1, 1]), 2)
    together = scores.mean_iou(first + second)
    assert together == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert together != pytest.approx((scores.mean_iou(first) + scores.mean_iou(second)) / 2)


def test_empty_matrix_has_miou_zero() -> None:
    assert scores.mean_iou(torch.from_numpy(np.zeros((3, 3), np.int64))) == 0.0
