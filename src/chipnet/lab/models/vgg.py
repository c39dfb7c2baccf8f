"""VGG networks for small images.

Source: Simonyan and Zisserman 2015 (arXiv 1409.1556), table 1, columns A, B, D and E. As is usual on 32x32
images, the three fully connected layers (which hold most of the original's weights) are replaced by a global
average and one linear layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from chipnet.lab.models.init import he_init

# 3x3 convolutions in each of the five groups, whose widths are 64, 128, 256, 512 and 512
VGG_GROUPS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """A VGG network for small images: five groups of 3x3 convolutions, max pooling between, average, linear.

    Args:
        depth: 11, 13, 16 or 19.
        batch_norm: a batch norm after each convolution, which then has no bias.
        num_classes: size of the output.
        in_channels: channels of the images.

    Shape:
        [N, in_channels, H, W] -> [N, num_classes] for any H, W >= 1; meant for 32x32.

    References:
        Simonyan and Zisserman 2015, arXiv 1409.1556.

    Example:
        >>> import torch
        >>> VGG(11, batch_norm=True, num_classes=7)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 7])
    """

    def __init__(
        self, depth: int, *, batch_norm: bool = False, num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        inputs = in_channels
        layers: list[nn.Module] = []
        for count, width in zip(VGG_GROUPS[depth], (64, 128, 256, 512, 512), strict=True):
            if layers:
                # Rounding up changes nothing at 32x32 and lets images of any size through.
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            for _ in range(count):
                layers.append(nn.Conv2d(inputs, width, 3, 1, 1, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU())
                inputs = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(inputs, num_classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(self.pool(self.features(x))))
