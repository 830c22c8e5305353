import socket

import pytest
import torch
from torch import nn

from tigan.config import DiscriminatorConfig, GeneratorConfig, SegmenterConfig
from tigan.networks import (
    Discriminator,
    FrozenSegmenter,
    Generator,
    GlobalBatchNorm,
    ImagePool,
    Segmenter,
    load_backbone,
)


def segmenter(**changes: object) -> Segmenter:
    base = {"architecture": "unet", "width": 4, "crop": [8, 8], "images": 8, "batch_size": 2}
    return Segmenter(SegmenterConfig.model_validate(base | changes), 5)


def test_backbone_is_not_loaded_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    # torchvision's weights=None alone would download an ImageNet backbone.
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    net = segmenter(architecture="deeplabv3", backbone="mobilenet_v3_large")
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(isinstance(m, GlobalBatchNorm) for m in norms)
    assert all(not m.running_mean.any() for m in norms if m.running_mean is not None)
    assert net.eval()(torch.rand(1, 3, 33, 40)).shape == (1, 5, 33, 40)


def test_pretrained_backbone_loads_and_a_misfit_names_the_key(tmp_path) -> None:
    source = segmenter(architecture="deeplabv3", backbone="mobilenet_v3_large")
    body = source.net.net.backbone.state_dict()
    file = tmp_path / "backbone.pth"
    classifier = {"classifier.0.weight": torch.zeros(2)}
    torch.save({f"features.{k}": v for k, v in body.items()} | classifier, file)
    target = segmenter(
        architecture="deeplabv3", backbone="mobilenet_v3_large", pretrained=str(file)
    )
    loaded = target.net.net.backbone.state_dict()
    assert all(torch.equal(loaded[key], body[key]) for key in body)
    with pytest.raises(ValueError, match=r"segmenter\.pretrained.*does not fit"):
        load_backbone(segmenter(architecture="unet").net, file)
    with pytest.raises(ValueError, match="cannot be read"):
        load_backbone(target.net.net.backbone, tmp_path / "absent.pth")


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (8, 8)])
def test_unet_keeps_the_size(size: tuple[int, int]) -> None:
    assert segmenter().eval()(torch.rand(2, 3, *size)).shape == (2, 5, *size)


def test_frozen_f_survives_its_parents_train_and_still_passes_gradients() -> None:
    frozen = FrozenSegmenter(segmenter())
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    parent = nn.Sequential(nn.Conv2d(3, 3, 1), frozen)
    parent.train()
    assert not any(module.training for module in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    parent(torch.rand(2, 3, 8, 8)).square().mean().backward()
    grad = parent[0].weight.grad
    assert grad is not None and grad.abs().sum() > 0
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())


def test_frozen_f_maps_the_generators_range_to_its_own() -> None:
    frozen = FrozenSegmenter(segmenter())
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(frozen(image * 2 - 1), frozen.segmenter(image))


@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
@pytest.mark.parametrize("skip", [False, True])
def test_generator_keeps_size_and_range(upsample: str, skip: bool) -> None:
    config = GeneratorConfig.model_validate(
        {"width": 4, "blocks": 1, "upsample": upsample, "skip": skip}
    )
    images = Generator(config)(torch.rand(2, 3, 16, 24) * 2 - 1)
    assert images.shape == (2, 3, 16, 24) and images.abs().max() <= 1


def test_identity_start_is_nearly_the_identity_and_trains() -> None:
    net = Generator(GeneratorConfig(width=4, blocks=1, start="identity"))
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    assert (net(image) - image).abs().max() < 0.02
    net(image).mean().backward()
    assert net.last.weight.grad is not None and net.last.weight.grad.abs().sum() > 0


def test_instance_norm_has_no_scale_and_no_running_statistics() -> None:
    nets = [Generator(GeneratorConfig(width=4, blocks=1)), Discriminator(DiscriminatorConfig())]
    norms = [m for net in nets for m in net.modules() if isinstance(m, nn.InstanceNorm2d)]
    assert len(norms) > 5
    assert not any(m.affine or m.track_running_stats for m in norms)


@pytest.mark.parametrize(("layers", "field"), [(3, 70), (2, 34), (1, 16)])
def test_discriminator_sees_the_stated_patch(layers: int, field: int) -> None:
    size = 128
    # Layers of ones and no InstanceNorm: it would spread every pixel over the whole image.
    net = Discriminator(DiscriminatorConfig(width=4, layers=layers))
    for module in list(net.net):
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)
    plain = nn.Sequential(*(m for m in net.net if isinstance(m, nn.Conv2d)))
    image = torch.zeros(1, 3, size, size, requires_grad=True)
    logits = plain(image)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert image.grad is not None
    rows = image.grad[0, 0].abs().sum(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == field
    assert not any(isinstance(m, nn.Sigmoid) for m in net.modules())


def test_pool_passes_until_full_then_swaps_about_half() -> None:
    torch.manual_seed(0)
    pool = ImagePool(4)
    first = torch.arange(4.0).view(4, 1, 1, 1)
    assert torch.equal(pool.query(first), first)
    old = 0
    for number in range(100, 300):
        returned = pool.query(torch.full((1, 1, 1, 1), float(number)))
        old += int(returned.item() != number)
    assert len(pool.images) == 4
    assert 70 < old < 130


def test_pool_of_size_zero_passes_everything() -> None:
    images = torch.rand(3, 1, 2, 2)
    pool = ImagePool(0)
    assert torch.equal(pool.query(images), images) and not pool.images
