"""How a rank takes its GPU; ranks among each other are in test_ranks.py."""

from collections.abc import Callable

import pytest
import torch

from tigan import distributed
from tigan.distributed import UnhealthyNodes


def failing(message: str) -> Callable[..., None]:
    """A call to CUDA that fails."""

    def call(*_: object) -> None:
        raise RuntimeError(message)

    return call


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 3 of 4, the second on node n1 of two, each of which shows two GPUs."""
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TIGAN_NODES", "n0 n1")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def error_of_session() -> Exception:
    with pytest.raises((UnhealthyNodes, ValueError)) as caught, distributed.session(needs_gpu=True):
        pass
    return caught.value


@pytest.mark.usefixtures("node")
def test_gpu_that_does_not_start_names_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", failing("uncorrectable ECC error encountered"))
    error = error_of_session()
    assert isinstance(error, UnhealthyNodes) and error.nodes == ("n1",)
    assert "n1" in str(error) and "uncorrectable ECC error" in str(error)


@pytest.mark.usefixtures("node")
def test_gpu_that_is_lost_names_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    error = error_of_session()
    assert isinstance(error, UnhealthyNodes) and error.nodes == ("n1",)
    assert "sees 1 GPUs, rank 1 of the node needs one" in str(error)


@pytest.mark.usefixtures("node")
def test_installation_that_can_use_no_gpu_blames_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", failing("The NVIDIA driver on your system is too old"))
    error = error_of_session()
    assert isinstance(error, ValueError) and "too old" in str(error)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    error = error_of_session()
    assert isinstance(error, ValueError) and "without CUDA" in str(error)
