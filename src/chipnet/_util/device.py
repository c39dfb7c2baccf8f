"""Where does a network compute?"""

from __future__ import annotations

import torch
from torch import nn


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's first parameter; the CPU where it has none."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))
