"""Networks: segmenters (DeepLabV3, a compact U-Net), ResNet generators, PatchGAN, image pool.

Images inside the GAN are in [-1, 1], images for f in [0, 1]; both are [n, 3, H, W].
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision.models.segmentation as zoo
from torch import Tensor, nn
from torch.nn import functional as F

from tigan import distributed
from tigan.backbone import misfits, read_body
from tigan.config import DiscriminatorConfig, GeneratorConfig, SegmenterConfig

# Of red, green, blue; values in [0, 1]: what weights trained on ImageNet expect.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class GlobalBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all ranks; plain BatchNorm at one rank and in eval mode.

    torch's SyncBatchNorm refuses CPU tensors. The ranks' sums go through one all-reduce that
    autograd follows, in float64, where E[x^2] - E[x]^2 loses nothing; the pixels stay float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.group().world_size == 1:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        # Under bfloat16 too: the gradients of scale and shift are sums over all pixels.
        pixels = x.float()
        variance, mean = torch.var_mean(pixels, (0, 2, 3), correction=0)
        mean, variance = mean.double(), variance.double()
        count = mean.new_full((1,), x.numel() // x.shape[1])
        sums = torch.cat([mean * count, (variance + mean.square()) * count, count])
        sums = distributed.differentiable_sum(sums)
        number = sums[-1]
        mean, squares = (sums[:-1] / number).chunk(2)
        variance = (squares - mean.square()).clamp(min=0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            unbiased = variance * number / (number - 1)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        return (pixels * scale.float()[:, None, None] + shift.float()[:, None, None]).to(x.dtype)


def use_global_batch_norm(module: nn.Module) -> nn.Module:
    """Turn every BatchNorm2d of `module` into a GlobalBatchNorm, in place."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = GlobalBatchNorm  # same parameters and buffers, other forward
    return module


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class UNet(nn.Module):
    """Compact residual U-Net (Ronneberger et al. 2015) for images too small for stride 8.

    Full-resolution blocks, though narrow, are what finds poles, lights and wheels.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        widths = [width, width * 2, width * 4, width * 6]
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList(
            _ResidualBlock(a, b) for a, b in zip([width, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            _ResidualBlock(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        kept: list[Tensor] = []
        for depth, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2, ceil_mode=True) if depth else x)
            kept.append(x)
        kept.pop()
        for block in self.up:
            skip = kept.pop()
            # Odd sizes: 2x is one pixel too large there, and is cut to the skip's size.
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = x[..., : skip.shape[-2], : skip.shape[-1]]
            x = block(torch.cat([x, skip], 1))
        return self.head(x)


class _DeepLab(nn.Module):
    """torchvision's DeepLabV3 (Chen et al. 2017), giving its logits instead of a dict."""

    def __init__(self, backbone: str, classes: int) -> None:
        super().__init__()
        build = {
            "resnet101": zoo.deeplabv3_resnet101,
            "resnet50": zoo.deeplabv3_resnet50,
            "mobilenet_v3_large": zoo.deeplabv3_mobilenet_v3_large,
        }[backbone]
        # `weights=None` alone would still load a backbone trained on ImageNet.
        self.net = build(weights=None, weights_backbone=None, num_classes=classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)["out"]


class Segmenter(nn.Module):
    """f: images in [0, 1] -> logits [n, classes, H, W] at the images' size.

    `mean` and `std` of each channel normalise the input; they are kept with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: SegmenterConfig,
        classes: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        if config.architecture == "unet":
            self.net: nn.Module = UNet(classes, config.width)
        else:
            self.net = _DeepLab(config.backbone, classes)
            if config.pretrained != "none":
                load_backbone(self.net.net.backbone, Path(config.pretrained))
        use_global_batch_norm(self.net)

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images - self.mean) / self.std)


def load_backbone(backbone: nn.Module, path: Path) -> None:
    """Load a torchvision classification checkpoint into a backbone; its classifier is dropped.

    Raises ValueError where the file is missing or does not fit.
    """
    try:
        state = read_body(path)
    except ValueError as error:
        raise ValueError(f"segmenter.pretrained: {path}: {error}") from None
    problems = misfits(state, backbone.state_dict())
    if problems:
        raise ValueError(
            f"segmenter.pretrained: {path} does not fit segmenter.backbone: {'; '.join(problems)}"
        )
    backbone.load_state_dict(state)


class FrozenSegmenter(nn.Module):
    """f as part of a loss: never trained, always in eval mode, yet differentiable in its input.

    `requires_grad_(False)` keeps its weights, the fixed eval mode its BatchNorm statistics, also
    where a parent calls `train()`. There is no `no_grad`: the gradient must pass through f.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenSegmenter":
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images in [-1, 1], the generators' range."""
        return self.logits((images + 1) / 2)

    def logits(self, images: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        return self.segmenter(images)


def _norm(channels: int) -> nn.Module:
    # CycleGAN's: no learned scale, no running statistics, so training and evaluation agree.
    return nn.InstanceNorm2d(channels, affine=False, track_running_stats=False)


class _GeneratorBlock(nn.Module):
    """CycleGAN's residual block: reflection padding, InstanceNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"),
            _norm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect"),
            _norm(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _upsampling(kind: str, inputs: int, outputs: int) -> list[nn.Module]:
    if kind == "transposed":
        first: list[nn.Module] = [
            nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
        ]
    else:
        first = [
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect"),
        ]
    return [*first, _norm(outputs), nn.ReLU(inplace=True)]


class Generator(nn.Module):
    """ResNet generator (Johnson et al. 2016; Zhu et al. 2017): [-1, 1] -> [-1, 1], same size.

    Height and width must be divisible by 4.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        w = config.width
        self.identity_start = config.start == "identity"
        self.skip = config.skip
        self.stem = nn.Sequential(
            nn.Conv2d(3, w, 7, padding=3, padding_mode="reflect"), _norm(w), nn.ReLU(inplace=True)
        )
        body: list[nn.Module] = []
        for inputs in (w, 2 * w):
            body += [nn.Conv2d(inputs, 2 * inputs, 3, stride=2, padding=1)]
            body += [_norm(2 * inputs), nn.ReLU(inplace=True)]
        body += [_GeneratorBlock(4 * w) for _ in range(config.blocks)]
        body += _upsampling(config.upsample, 4 * w, 2 * w) + _upsampling(config.upsample, 2 * w, w)
        self.body = nn.Sequential(*body)
        last_inputs = 2 * w if config.skip else w
        self.last = nn.Conv2d(last_inputs, 3, 7, padding=3, padding_mode="reflect")
        self.apply(initialise)
        if self.identity_start:
            nn.init.normal_(self.last.weight, 0.0, 1e-4)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-2] % 4 == 0 and x.shape[-1] % 4 == 0, f"size {tuple(x.shape[-2:])}"
        first = self.stem(x)
        y = self.body(first)
        y = self.last(torch.cat([y, first], 1) if self.skip else y)
        if self.identity_start:
            # 0.99: atanh(1) is infinite; white stays within 1 % of white.
            y = y + torch.atanh(x.float().clamp(-0.99, 0.99))
        return torch.tanh(y.float())


class Discriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): [-1, 1] images -> raw logits [n, 1, h, w]."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        w = config.width
        layers: list[nn.Module] = [nn.Conv2d(3, w, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        inputs = w
        for depth in range(1, config.layers + 1):
            outputs = w * min(2**depth, 8)
            stride = 2 if depth < config.layers else 1
            layers += [nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1)]
            layers += [_norm(outputs), nn.LeakyReLU(0.2)]
            inputs = outputs
        layers += [nn.Conv2d(inputs, 1, 4, padding=1)]
        self.net = nn.Sequential(*layers)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def initialise(module: nn.Module) -> None:
    """CycleGAN's start: weights from N(0, 0.02), biases 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ImagePool:
    """History of generated images for a discriminator (Shrivastava et al. 2017), of one rank.

    Until it is full, images pass and are stored; then each is, with probability 1/2, swapped for
    a stored one. Draws from torch's global generator, which `fit` seeds anew in every step.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def query(self, images: Tensor) -> Tensor:
        """As many images as were given, [n, 3, H, W], detached."""
        result = []
        for image in images.detach():
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif self.size > 0 and torch.rand(()).item() < 0.5:
                place = int(torch.randint(self.size, ()).item())
                image, self.images[place] = self.images[place], image.clone()
            result.append(image)
        return torch.stack(result)
