"""Ranks, devices and reductions: the same code for one process, gloo on CPUs and NCCL on GPUs."""

import faulthandler
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import cv2
import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """This process's place among the ranks.

    `control` is a gloo group beside NCCL: flags and small objects go over it, so that asking
    'does anyone have to stop?' in every step does not stall the GPU's stream.
    """

    rank: int
    world_size: int
    device: torch.device
    control: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0


_group = Group(0, 1, torch.device("cpu"))


class UnhealthyNodes(RuntimeError):
    """Nodes on which ranks do not compute, or do not come; `nodes` names them where known."""

    def __init__(self, message: str, nodes: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.nodes = tuple(nodes)


def group() -> Group:
    """The current group; one rank on the CPU outside of `session`."""
    return _group


@contextmanager
def session(
    threads: int = 1,
    timeout_min: float = 10.0,
    health_check_s: int = 0,
    needs_gpu: bool = False,
) -> Iterator[Group]:
    """Join the ranks that the launcher describes in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_*.

    One GPU per rank by LOCAL_RANK where CUDA is there, else the CPU with `threads` threads. With
    `health_check_s`, the ranks first show within so many seconds that they compute and reach each
    other. Raises ValueError where a node has fewer GPUs than ranks; `UnhealthyNodes` where that
    check fails, or where a GPU that `needs_gpu` asks for is not there or does not work.
    """
    global _group
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    faulthandler.enable()  # a read error under a memory map is a SIGBUS, which says nothing else
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)  # OpenCV takes all cores otherwise, whatever OMP_NUM_THREADS says
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if needs_gpu:
        _require_gpu(local_rank)
    device = _device(local_rank)
    if device.type == "cpu":
        # On GPUs some of our kernels have no deterministic form; there, only state is exact.
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    control = None
    if world_size > 1:
        timeout = timedelta(minutes=timeout_min)
        backend = "nccl" if device.type == "cuda" else "gloo"
        if health_check_s:
            store = _meet(device, timedelta(seconds=health_check_s))
            rank = int(os.environ["RANK"])
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=world_size, timeout=timeout
            )
            store.set_timeout(timeout)  # which was the check's
            _check_reduction(device, timedelta(seconds=health_check_s))
        else:
            dist.init_process_group(backend, timeout=timeout)
        control = dist.new_group(backend="gloo", timeout=timeout)
    _group = Group(int(os.environ.get("RANK", "0")), world_size, device, control)
    try:
        yield _group
    finally:
        _group = Group(0, 1, torch.device("cpu"))
    # Not on the failure path: a rank that died would leave the others waiting in here.
    if world_size > 1:
        dist.destroy_process_group()


def _meet(device: torch.device, patience: timedelta) -> dist.TCPStore:
    """Compute a little and wait for all other ranks; the store at which they met.

    Raises `UnhealthyNodes` naming the nodes of the ranks that cannot compute or did not come. The
    process group itself would only say, after its own long time-out, that someone is missing.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    problem = _compute_a_little(device)
    if problem:  # the others need not be asked: this node is named already
        raise UnhealthyNodes(f"rank {rank} on {_node_of(rank)}: {problem}", [_node_of(rank)])
    try:
        store = dist.TCPStore(host, port, None, rank == 0, patience, wait_for_workers=False)
    except dist.DistError as error:
        if rank == 0:  # most likely the port is taken; a restart takes another
            raise
        raise UnhealthyNodes(
            f"health check: no answer from rank 0 at {host}:{port}: {error}", [_node_of(0)]
        ) from None
    store.set(f"here/{rank}", "1")
    everyone = [f"here/{other}" for other in range(world_size)]
    try:
        # Rank 0 has to be the first to give up: it knows who is missing.
        store.wait(everyone, patience + timedelta(seconds=30 if rank else 0))
    except dist.DistError:
        missing = [other for other, key in enumerate(everyone) if not store.check([key])]
        nodes = sorted({_node_of(other) for other in missing})
        raise UnhealthyNodes(
            f"health check: {_some(missing)} of {world_size} on {', '.join(nodes)} did not come to "
            f"{host}:{port} in {patience.total_seconds():.0f} s",
            nodes,
        ) from None
    return store


def _some(ranks: list[int]) -> str:
    """The first few ranks in words."""
    more = f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
    return "ranks " + ", ".join(map(str, ranks[:4])) + more


def _compute_a_little(device: torch.device) -> str:
    """What is wrong with a small matrix product on `device`; empty where nothing is."""
    try:
        ones = torch.ones(64, 64, device=device)
        total = float((ones @ ones).sum().item())
    except RuntimeError as error:
        return f"{device} does not compute: {error}"
    return "" if total == 64.0**3 else f"{device} computes wrongly: {total}, expected {64.0**3}"


def _check_reduction(device: torch.device, patience: timedelta) -> None:
    """One all-reduce in a group with a short time-out. Raises `UnhealthyNodes`."""
    group: Any = dist.new_group(timeout=patience)
    total = torch.ones(1, device=device)
    try:
        work: Any = dist.all_reduce(total, group=group, async_op=True)
        work.wait(patience)  # without a time, NCCL's returns at once and item() waits for ever
        count = int(total.item())
    except RuntimeError as error:
        raise UnhealthyNodes(f"health check: the ranks cannot all-reduce: {error}") from None
    assert count == dist.get_world_size(), f"all-reduce counted {count} ranks"
    dist.destroy_process_group(group)


def _node_of(rank: int) -> str:
    """The node of a rank, by the launcher's list (ranks are dealt out in blocks)."""
    nodes = os.environ.get("TIGAN_NODES", "").split()
    per_node = -(-int(os.environ.get("WORLD_SIZE", "1")) // max(1, len(nodes)))
    return nodes[rank // per_node] if nodes else socket.gethostname()


def _require_gpu(local_rank: int) -> None:
    """Take this rank's GPU: training on CPUs would waste the job.

    Raises `UnhealthyNodes` where this node has no such GPU, or one that does not start; ValueError
    where PyTorch could use no GPU of any node.
    """
    asked = "the partition profile asks for GPUs (gpus_per_node)"
    if not torch.backends.cuda.is_built():
        raise ValueError(
            f"PyTorch {torch.__version__} is built without CUDA, and {asked}; install one with CUDA"
        )
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    why = ""
    try:
        if seen == 0:
            torch.cuda.init()  # says why
        if local_rank < seen:
            torch.cuda.set_device(local_rank)  # where a GPU in trouble shows first
            return
    except RuntimeError as error:
        why = f": {error}"
    if "too old" in why:
        raise ValueError(f"PyTorch {torch.__version__} cannot use the GPUs, and {asked}{why}")
    node = _node_of(int(os.environ.get("RANK", "0")))
    raise UnhealthyNodes(
        f"{node}: PyTorch {torch.__version__} sees {seen} GPUs, rank {local_rank} of the node "
        f"needs one that works{why}",
        [node],
    )


def _device(local_rank: int) -> torch.device:
    """This rank's device. Raises ValueError for more ranks than GPUs on a node."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"LOCAL_RANK {local_rank}: this node shows {torch.cuda.device_count()} GPUs; start at "
            "most one rank per GPU"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def share(count: int, name: str) -> int:
    """This rank's part of a global `count`. Raises ValueError where the ranks do not divide it."""
    if count % _group.world_size:
        raise ValueError(
            f"{name}: {count} cannot be shared evenly by {_group.world_size} ranks; choose a "
            f"multiple of {_group.world_size} or another number of ranks"
        )
    return count // _group.world_size


def agree_max(value: int) -> int:
    """The largest `value` of all ranks, over the control group."""
    if _group.world_size == 1:
        return value
    tensor = torch.tensor([value])
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_group.control)
    return int(tensor.item())


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank, over the control group."""
    if _group.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_group.control)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's `value`, in rank order, on every rank, over the control group."""
    if _group.world_size == 1:
        return [value]
    box: list[Any] = [None] * _group.world_size
    dist.all_gather_object(box, value, group=_group.control)
    return box


def barrier() -> None:
    """Wait for all ranks, over the control group."""
    agree_max(0)


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks, outside of autograd; a new tensor."""
    total = tensor.detach().clone()
    if _group.world_size > 1:
        dist.all_reduce(total)
    return total


def broadcast_module(module: torch.nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers."""
    if _group.world_size > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


class _AllSum(torch.autograd.Function):
    """Sum over ranks whose gradient is summed over ranks too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_sum(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return all_sum(grads[0])


def differentiable_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks, within autograd: every rank's loss reaches every rank's input."""
    return tensor if _group.world_size == 1 else _AllSum.apply(tensor)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Average the gradients over ranks in one all-reduce of one flat tensor.

    DistributedDataParallel expects one forward per backward, which a GAN step breaks; one
    flattened reduction per phase is simple and right (as in NVlabs/stylegan3).
    """
    if _group.world_size == 1:
        return
    # Every parameter takes part, so that the ranks' flat tensors always have one layout.
    for parameter in (parameters := list(parameters)):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= _group.world_size
    offset = 0
    for parameter in parameters:
        size = parameter.numel()
        parameter.grad = flat[offset : offset + size].view_as(parameter)
        offset += size
