"""MobileNetV2 for small images.

Source: Sandler et al. 2018 (arXiv 1801.04381), table 2. The network for 224x224 images divides the resolution
by 32; on 32x32 it would average one pixel. Here the stem and the 24-channel stage keep their resolution, so
that 32x32 images end as 4x4 maps. Strides have no parameters: the parameter count is that of the original.
"""

from __future__ import annotations

from torch import Tensor, nn

from chipnet.lab.models.init import he_init

# expansion, output channels, blocks, stride of the first block
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [*_conv_bn(inputs, hidden, 1), nn.ReLU6()]
        layers += [*_conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
        layers += _conv_bn(hidden, outputs, 1)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1 with the strides of 32x32 images, without dropout.

    Args:
        num_classes: size of the output.
        in_channels: channels of the images.

    Shape:
        [N, in_channels, H, W] -> [N, num_classes] for any H, W >= 1; meant for 32x32.

    References:
        Sandler et al. 2018, arXiv 1801.04381.

    Example:
        >>> import torch
        >>> MobileNetV2(num_classes=7)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 7])
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv_bn(in_channels, 32, 3), nn.ReLU6())
        inputs = 32
        blocks = []
        for expansion, outputs, count, first_stride in _STAGES:
            for position in range(count):
                stride = first_stride if position == 0 else 1
                blocks.append(InvertedResidual(inputs, outputs, stride, expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_conv_bn(inputs, 1280, 1), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(1280, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.fc(self.flatten(self.pool(x)))
