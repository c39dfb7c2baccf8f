"""Residual networks with pre-activation blocks, and wide residual networks, built of the same blocks.

Sources: He et al. 2016, "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027); Zagoruyko and
Komodakis 2016, "Wide Residual Networks" (arXiv 1605.07146), without dropout. Where a block changes shape, its
shortcut is a 1x1 convolution that reads the block's own first activation; elsewhere it is the identity.
"""

from __future__ import annotations

from torch import Tensor, nn

from chipnet.lab.models.init import he_init
from chipnet.lab.models.resnet import stages


def _projection(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Conv2d(inputs, outputs, 1, stride, bias=False)


class PreBasicBlock(nn.Module):
    """BN-ReLU-conv3x3 twice, plus the shortcut. Shapes: [N, inputs, H, W] -> [N, width, H/s, W/s]."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.projection = _projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(active)
        branch = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return branch + shortcut


class PreBottleneck(nn.Module):
    """BN-ReLU before each of conv1x1, conv3x3 (strided), conv1x1; 4·width output channels."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.projection = _projection(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(active)
        branch = self.conv1(active)
        branch = self.conv2(self.relu2(self.bn2(branch)))
        branch = self.conv3(self.relu3(self.bn3(branch)))
        return branch + shortcut


class PreResNet(nn.Module):
    """A pre-activation residual network: 3x3 stem of 16 channels, three stages, BN-ReLU, average, linear.

    The stages have widths 16, 32 and 64 times `widen`; the second and third halve the feature map.

    Args:
        blocks: blocks per stage. With basic blocks n of them make PreResNet-(6n + 2), called WRN-(6n + 4)
            when widened (that count includes the shortcut convolutions); with bottlenecks, PreResNet-(9n +
            2).
        widen: the widening factor k of a wide residual network.
        bottleneck: bottleneck blocks instead of basic ones.
        num_classes: size of the output.
        in_channels: channels of the images.

    Shape:
        [N, in_channels, H, W] -> [N, num_classes] for any H, W >= 1; meant for 32x32.

    References:
        He et al. 2016, arXiv 1603.05027. Zagoruyko and Komodakis 2016, arXiv 1605.07146.

    Example:
        >>> import torch
        >>> PreResNet(1, widen=2, num_classes=7)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 7])
    """

    def __init__(
        self,
        blocks: int,
        *,
        widen: int = 1,
        bottleneck: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        block, expansion = (PreBottleneck, 4) if bottleneck else (PreBasicBlock, 1)
        widths = (16 * widen, 32 * widen, 64 * widen)
        outputs = expansion * widths[-1]
        self.conv = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.stages = stages(block, expansion, 16, (blocks,) * 3, widths)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(outputs, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.conv(x))
        x = self.relu(self.bn(x))
        return self.fc(self.flatten(self.pool(x)))
