"""Checks that need several ranks; started by torchrun from test_ranks.py. Prints one line each."""

import sys
from pathlib import Path

import torch
from tiny_jobs import (
    GAN,
    adaptsegnet_science,
    batch,
    finetune_science,
    finetune_segmenter_science,
    gan_science,
    job,
    oracle_science,
    segmenter_science,
)
from torch import nn

from tigan import (
    adaptsegnet,
    checkpoint,
    distributed,
    finetune,
    finetune_segmenter,
    gan,
    losses,
    segmenter,
    translation,
)
from tigan.config import GanConfig
from tigan.data import Batch, StreamBatch
from tigan.loop import Training, fit
from tigan.networks import GlobalBatchNorm


def close(a: torch.Tensor | None, b: torch.Tensor | None) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def part(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's half of a batch."""
    group = distributed.group()
    each = len(tensor) // group.world_size
    return tensor[group.rank * each : (group.rank + 1) * each]


def batch_norm_is_over_all_ranks() -> None:
    """Output, gradients and running statistics equal one BatchNorm over the whole batch."""
    torch.manual_seed(0)
    whole = torch.randn(2, 3, 1, 1) * 3 + 5  # one value per channel and rank, as in ASPP's pooling
    device = distributed.group().device
    whole = whole.to(device)
    plain, ours = nn.BatchNorm2d(3).to(device), GlobalBatchNorm(3).to(device)
    for norm in (plain, ours):
        nn.init.uniform_(norm.weight)
    ours.load_state_dict(plain.state_dict())
    a, b = whole.clone().requires_grad_(), part(whole).clone().requires_grad_()
    target = torch.tensor([[[[0.3]], [[-1.0]], [[2.0]]], [[[1.3]], [[0.5]], [[-2.0]]]])
    target = target.to(device)
    expected, result = plain(a), ours(b)
    (expected - target).pow(3).mean().backward()
    (result - part(target)).pow(3).mean().backward()
    close(result, part(expected))
    assert a.grad is not None and b.grad is not None
    close(b.grad / distributed.group().world_size, part(a.grad))
    close(ours.running_mean, plain.running_mean)
    close(ours.running_var, plain.running_var)
    distributed.average_gradients(ours.parameters())
    close(ours.weight.grad, plain.weight.grad)


def batch_norm_gradients_are_exact_in_bfloat16() -> None:
    """Under autocast too, scale and shift get their gradients from float32 sums."""
    torch.manual_seed(2)
    whole = (torch.randn(4, 3, 32, 32) + 2).bfloat16().to(distributed.group().device)
    weights = torch.randn_like(whole)
    plain, ours = (kind(3).to(whole.device) for kind in (nn.BatchNorm2d, GlobalBatchNorm))
    (plain(whole.float()) * weights).mean().backward()
    (ours(part(whole)) * part(weights)).float().mean().backward()
    distributed.average_gradients(ours.parameters())
    assert ours.weight.grad is not None and plain.weight.grad is not None
    error = (ours.weight.grad - plain.weight.grad).abs().max() / plain.weight.grad.abs().max()
    assert error < 1e-2, float(error)


def cross_entropy_is_over_all_valid_pixels() -> None:
    """With 3 ignored images of 4, ranks hold unequal numbers of valid pixels."""
    torch.manual_seed(1)
    device = distributed.group().device
    logits = torch.randn(4, 5, 4, 4).to(device)
    labels = torch.randint(0, 5, (4, 4, 4)).byte().to(device)
    labels[0], labels[1], labels[2, :2] = 255, 255, 255
    whole = logits.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(whole, labels.long(), ignore_index=255)
    expected.backward()
    mine = nn.Parameter(part(logits).clone())
    losses.cross_entropy(mine, part(labels)).backward()
    assert whole.grad is not None and mine.grad is not None
    close(mine.grad / distributed.group().world_size, part(whole.grad))


def gan_step_equals_one_rank() -> None:
    """One step on two halves moves the weights as one step on the whole batch."""
    config = GanConfig.model_validate(GAN | {"pool_size": 0})
    data: Batch = {"real": batch(4, seed=1), "synthetic": batch(4, seed=2)}
    halves: Batch = {name: StreamBatch(part(b.images), None, b.keys) for name, b in data.items()}
    steps = []
    for own in (True, False):
        torch.manual_seed(0)
        translator = translation.build(config, 1e-3)
        if own:
            translation.step(translator, config, None, halves, True)
        else:
            group, distributed._group = (
                distributed._group,
                distributed.Group(0, 1, distributed.group().device),
            )
            translation.step(translator, config, None, data, True)
            distributed._group = group
        steps.append(translator.modules)
    for name in steps[0]:
        for a, b in zip(steps[0][name].parameters(), steps[1][name].parameters(), strict=True):
            # Adam's first step has the size of the learning rate wherever a gradient is: a bias
            # in front of InstanceNorm has only rounding noise for a gradient.
            if a.dim() > 1:
                assert ((a - b).abs() > 2e-4).float().mean() < 0.02, name


def same_on_all_ranks(folder: Path) -> None:
    """After a stage all ranks hold the same weights."""
    roles = {"synthetic": folder / "synthia", "real": folder / "cityscapes"}
    segmenter.run(job(folder / "segmenter", segmenter_science(), roles))
    gan.run(job(folder / "gan", gan_science(), roles))
    distributed.barrier()  # rank 0 writes the weights
    roles |= {"segmenter": folder / "segmenter", "gan": folder / "gan"}
    task = job(folder / "finetune", finetune_science(), roles)
    training = finetune.build(task.science, task)
    fit(training, task)
    flat = torch.cat(
        [p.detach().flatten() for m in training.modules.values() for p in m.parameters()]
    )
    assert len({t.numpy().tobytes() for t in distributed.gather_objects(flat.cpu())}) == 1
    found = checkpoint.latest(task.stage_dir)
    assert found is not None and (found / "rank001.pt").is_file()


def baselines_equal_one_rank(folder: Path) -> None:
    """Whole trainings of f, each on its halves of the same batches, end as those of one rank.

    With sgd: Adam makes a full step of a gradient that is rounding noise.
    """
    roles = {"synthetic": folder / "synthia", "real": folder / "cityscapes"}
    roles |= {"gan": folder / "gan", "translator": folder / "gan", "segmenter": folder / "sgd"}
    sgd = {"optimizer": "sgd", "learning_rate": 1e-2}
    segmenter.run(job(roles["segmenter"], segmenter_science(**sgd), roles))
    distributed.barrier()
    for name, build, science in (
        ("oracle", segmenter.build, oracle_science(**sgd)),
        ("both", finetune_segmenter.build, finetune_segmenter_science()),
        ("adaptsegnet", adaptsegnet.build, adaptsegnet_science()),
    ):

        def trained(part: str) -> Training:
            task = job(folder / name / part, science, roles)  # noqa: B023
            training = build(science, task)  # noqa: B023
            fit(training, task)
            return training

        both = trained("both")
        group = distributed.group()
        distributed._group = distributed.Group(0, 1, group.device)
        alone = trained(f"alone{group.rank}")
        distributed._group = group
        for module in both.modules:
            for a, b in zip(
                both.modules[module].parameters(), alone.modules[module].parameters(), strict=True
            ):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def main() -> None:
    """All checks, on every rank."""
    folder = Path(sys.argv[1])
    torch.backends.cudnn.allow_tf32 = False  # GPUs' default, too coarse for what is compared here
    with distributed.session(threads=1) as group:
        assert group.world_size == 2 and distributed.agree_max(group.rank) == 1
        for check in (
            batch_norm_is_over_all_ranks,
            batch_norm_gradients_are_exact_in_bfloat16,
            cross_entropy_is_over_all_valid_pixels,
            gan_step_equals_one_rank,
        ):
            check()
        same_on_all_ranks(folder)
        baselines_equal_one_rank(folder)
        if group.is_first:
            print("all rank checks passed")


if __name__ == "__main__":
    main()
