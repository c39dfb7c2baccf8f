"""Which modules are exactly one operator of PyTorch's, so that surgery knows their calls and numbers?"""

from __future__ import annotations

from typing import Any

from torch import nn

STANDARD_MIX = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
STANDARD_NORM = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
STANDARD_POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
FITTED = frozenset("in_channels out_channels in_features out_features num_features num_parameters".split())  # noqa: SIM905
"""Widths that PyTorch's layers keep as numbers: surgery sets them by the tensors."""


def is_torch_nn(module: Any) -> bool:
    """Is a module of one of the classes of ``torch.nn`` itself? These check their widths.

    Example:
        >>> is_torch_nn(nn.Linear(1, 1)), is_torch_nn(None)
        (True, False)
    """
    return type(module).__module__.startswith("torch.nn.")
