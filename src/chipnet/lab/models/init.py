"""Weight initialisation shared by the networks here."""

from __future__ import annotations

import math

from torch import nn


def he_init(model: nn.Module) -> None:
    """He's normal initialisation of every convolution of `model`, in place; biases start at 0.

    The standard deviation is √(2 / fan_out), fan_out = kernel area × output channels / groups, so that the
    variance of the gradient survives each convolution and ReLU (He et al. 2015, arXiv 1502.01852). Batch
    norms and linear layers keep PyTorch's defaults.

    Args:
        model: any module.

    Example:
        >>> import torch
        >>> layer = nn.Conv2d(3, 5, 3)
        >>> he_init(layer)
        >>> torch.count_nonzero(layer.bias).item()
        0
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # nn.init.kaiming_normal_ ignores groups, which makes depthwise kernels far too small.
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
