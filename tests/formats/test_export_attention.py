"""What pruning leaves of attention and of norms over channels goes through every format."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import random_mask, randomised
from torch import Tensor, nn

import chipnet
from chipnet.formats import export
from chipnet.program.inputs import Inputs
from chipnet.program.spelling.attention import Attention
from chipnet.surgery.modules import DenseNorm


class Net(nn.Module):
    """Patches, attention of PyTorch's behind a layer norm, a layer over tokens behind an RMS norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Conv2d(3, 12, 4, stride=4), nn.Parameter(torch.randn(1, 1, 12))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(12), nn.RMSNorm(12, eps=1e-5), nn.LayerNorm(12)
        self.attention, self.tokens = nn.MultiheadAttention(12, 2, batch_first=True), nn.Linear(10, 10)
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1)
        z = self.norm1(x)
        x = x + self.attention(z, z, z, need_weights=False)[0]
        x = x + F.gelu(self.tokens(self.norm2(x).transpose(1, 2))).transpose(1, 2)
        return self.fc(self.norm3(x)[:, 0])


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is")
@pytest.mark.parametrize("format", ["onnx", "torch-export", "torchscript"])
@pytest.mark.parametrize("norms", ["live", "dense"])
def test_spelt_out_attention_and_norms_go_through_every_format(tmp_path, format, norms):
    torch.manual_seed(0)
    model, x = randomised(Net()).float().eval(), torch.randn(2, 3, 12, 12)
    s = chipnet.Structure(model, x, norms=norms)
    small = chipnet.compact(model, s.plan(random_mask(s, 0.6)))
    assert type(small.attention) is Attention
    assert (type(small.norm1) is DenseNorm) == (norms == "dense")
    path = tmp_path / "net.any"
    done = chipnet.export(small, path, x, format=format)
    assert done.difference <= 1e-5 * done.scale
    run = export.FORMATS[format].load(path)
    other = torch.randn(5, 3, 12, 12)  # a batch size that nothing was traced or checked with
    torch.testing.assert_close(run(Inputs.of(other))[0], small(other), rtol=1e-4, atol=1e-4)
