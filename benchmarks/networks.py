"""Networks for the grids in ``benchmarks/configs``, as `module:callable` names them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chipnet.lab.models.preresnet import PreResNet


def preresnet56_bottleneck(num_classes: int = 10, in_channels: int = 3) -> PreResNet:
    """What PreResNet-164 is made of, a third of its depth: small enough for two cores."""
    return PreResNet(6, bottleneck=True, num_classes=num_classes, in_channels=in_channels)


def _conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _classifier(features: list[nn.Module], channels: int, num_classes: int) -> nn.Sequential:
    """Features, their mean over the image, and a linear layer."""
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def chain(num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Nine convolutions one behind the other."""
    widths = (16, 16, 32, 32, 32, 64, 64, 64, 64)
    strides = (1, 1, 2, 1, 1, 2, 1, 1, 1)
    inputs = (in_channels, *widths)
    layers: list[nn.Module] = [
        _conv_bn(a, b, stride=s) for a, b, s in zip(inputs, widths, strides, strict=False)
    ]
    return _classifier(layers, widths[-1], num_classes)


class _Inverted(nn.Module):
    """1×1 expansion by four, 3×3 depthwise, linear 1×1; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = 4 * inputs
        self.expand = _conv_bn(inputs, hidden, 1)
        self.depthwise = _conv_bn(hidden, hidden, 3, stride, groups=hidden)
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


Blocks = tuple[tuple[int, int], ...]
"""Width and stride of each block."""


def inverted(
    num_classes: int = 10,
    in_channels: int = 3,
    blocks: Blocks = ((16, 1), (16, 1), (24, 2), (24, 1), (24, 1), (40, 2), (40, 1), (40, 1)),
) -> nn.Sequential:
    """Inverted residuals with depthwise convolutions, eight if not told."""
    layers: list[nn.Module] = [_conv_bn(in_channels, 16)]
    inputs = 16
    for width, stride in blocks:
        layers.append(_Inverted(inputs, width, stride))
        inputs = width
    layers.append(_conv_bn(inputs, 96, 1))
    return _classifier(layers, 96, num_classes)


class _Dense(nn.Module):
    """What it makes is concatenated to what it read."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.norm(x).relu())], dim=1)


def dense_concatenation(num_classes: int = 10, in_channels: int = 3, depth: int = 4) -> nn.Sequential:
    """Three stages of ``depth`` densely connected layers, with transitions of half the channels."""
    layers: list[nn.Module] = [nn.Conv2d(in_channels, 24, 3, padding=1, bias=False)]
    channels = 24
    for stage in range(3):
        if stage:
            half = [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2, ceil_mode=True)]
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), *half]
            channels //= 2
        for _ in range(depth):
            layers.append(_Dense(channels, 16))
            channels += 16
    layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return _classifier(layers, channels, num_classes)


class _Branches(nn.Module):
    """1×1, 3×3 and two 3×3 side by side, concatenated, scaled by squeeze and excitation, added to the input."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 3 * width
        self.one = _conv_bn(inputs, width, 1, stride)
        self.three = _conv_bn(inputs, width, 3, stride)
        self.five = nn.Sequential(_conv_bn(inputs, width, 3, stride), _conv_bn(width, width))
        self.squeeze, self.excite = nn.Conv2d(outputs, outputs // 4, 1), nn.Conv2d(outputs // 4, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out = torch.cat([self.one(x), self.three(x), self.five(x)], dim=1)
        scale = self.excite(self.squeeze(out.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x + out * scale if self.residual else out * scale


def branches(
    num_classes: int = 10,
    in_channels: int = 3,
    blocks: Blocks = ((8, 1), (8, 1), (16, 2), (16, 1), (24, 2), (24, 1)),
) -> nn.Sequential:
    """Blocks of parallel branches with squeeze and excitation, six if not told."""
    layers: list[nn.Module] = [_conv_bn(in_channels, 16)]
    inputs = 16
    for width, stride in blocks:
        layers.append(_Branches(inputs, width, stride))
        inputs = 3 * width
    return _classifier(layers, inputs, num_classes)


def vit(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """timm's vision transformer for images of 14×14: 49 tokens of 64 features, four blocks of four heads."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(14, 2, in_channels, num_classes, embed_dim=64, depth=4, num_heads=4)


def convnext(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """timm's ConvNeXt for images of 14×14: it begins with single pixels, and has five blocks."""
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(in_channels, num_classes, depths=(1, 1, 2, 1), dims=(16, 32, 64, 96), patch_size=1)
