"""Networks for the grids in ``benchmarks/configs``, as `module:callable` names them."""

from __future__ import annotations

from chipnet.lab.models.preresnet import PreResNet


def preresnet56_bottleneck(num_classes: int = 10, in_channels: int = 3) -> PreResNet:
    """What PreResNet-164 is made of, a third of its depth: small enough for two cores."""
    return PreResNet(6, bottleneck=True, num_classes=num_classes, in_channels=in_channels)
