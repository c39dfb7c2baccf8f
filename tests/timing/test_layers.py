"""What a layer computes and moves is what PyTorch counts; memory by hand."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from chipnet.lab.models import get_model
from chipnet.program.inputs import Inputs
from chipnet.timing.layers import parts, peak_memory

CPU = torch.device("cpu")


def test_parts_count_what_pytorch_counts():
    network, x = get_model("mobilenetv2-cifar", 10, 3).eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        found = parts(network, x, passes=1)
        with FlopCounterMode(display=False) as counter:
            network(x)
    assert sum(p.macs for p in found.values()) == counter.get_total_flops() // 2
    first = next(p for p in found.values() if p.kind == "Conv2d")
    assert (first.reads, first.writes) == (3, 32)
    assert first.bytes == 4 * (2 * 3 * 256 + 2 * 32 * 256 + 32 * 3 * 9)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_peak_memory_by_hand():
    """Between the layers two maps live at once: 7 and 7 channels around the ReLU, then 7 and 5."""
    network = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.ReLU(), nn.Conv2d(7, 5, 3, padding=1)).eval()
    with torch.no_grad():
        peak = peak_memory(network, Inputs.of(torch.randn(1, 3, 4, 4)), CPU)
        inplace = nn.Sequential(nn.Conv2d(3, 7, 1), nn.ReLU(inplace=True))
        assert peak_memory(inplace, Inputs.of(torch.randn(1, 3, 4, 4)), CPU) == 4 * 16 * 7
    assert peak == 4 * 16 * (7 + 7)
