"""Residual networks with post-activation blocks, for small images.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.2 for the
three-stage networks. Where a block changes shape its shortcut is a 1x1 convolution and a batch norm ("option
B" of the paper). The paper's own CIFAR runs use zero-padded identities instead ("option A"); option B is
chosen because it is made of ordinary layers, and it adds 2,752 parameters to a network of width 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from chipnet.lab.models.init import he_init


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """conv3x3-BN-ReLU-conv3x3-BN, plus the shortcut, then ReLU: [N, inputs, H, W] -> [N, width, H/s, W/s]."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu1(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        return self.relu2(branch + self.shortcut(x))


class Bottleneck(nn.Module):
    """conv1x1-conv3x3-conv1x1, each with BN; 4·width output channels. The 3x3 convolution has the stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = _shortcut(inputs, 4 * width, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu1(self.bn1(self.conv1(x)))
        branch = self.relu2(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        return self.relu3(branch + self.shortcut(x))


def stages(
    block: Callable[[int, int, int], nn.Module],
    expansion: int,
    inputs: int,
    blocks: Sequence[int],
    widths: Sequence[int],
) -> nn.Sequential:
    """Stages of blocks that give ``expansion`` times their width; all but the first halve the feature map."""
    built = []
    for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        layers = []
        for position in range(count):
            layers.append(block(inputs, width, 2 if index > 0 and position == 0 else 1))
            inputs = expansion * width
        built.append(nn.Sequential(*layers))
    return nn.Sequential(*built)


class ResNet(nn.Module):
    """A residual network for small images: 3x3 stem at full resolution, stages of blocks, average, linear.

    Every stage but the first halves the feature map.

    Args:
        blocks: blocks of each stage; `(3, 3, 3)` is ResNet-20 (6n + 2 layers for n basic blocks a stage).
        widths: width of each stage (its output channels; four times as many with bottlenecks).
        stem: channels of the first convolution.
        bottleneck: bottleneck blocks instead of basic ones.
        num_classes: size of the output.
        in_channels: channels of the images.

    Shape:
        [N, in_channels, H, W] -> [N, num_classes] for any H, W >= 1; meant for 32x32.

    References:
        He et al. 2016, arXiv 1512.03385.

    Example:
        >>> import torch
        >>> net = ResNet((1, 1, 1), (16, 32, 64), num_classes=7, in_channels=1)
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 7])
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        stem: int = 16,
        bottleneck: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        block, expansion = (Bottleneck, 4) if bottleneck else (BasicBlock, 1)
        self.conv = nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.stages = stages(block, expansion, stem, blocks, widths)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(expansion * widths[-1], num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(x)))
        return self.fc(self.flatten(self.pool(self.stages(x))))
