"""Layer norms that count channels which are gone, as zeros: for masks that come after training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import randomised
from rule_cases import gains
from torch import Tensor, nn

import chipnet
from chipnet.surgery.modules import DenseNorm


class Between(nn.LayerNorm):
    """As timm and torchvision write it."""

    def forward(self, input: Tensor) -> Tensor:
        x = input.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Net(nn.Module):
    """a 3>9 - norm - b 9>9 - add - c 9>6 - fc, with images or tokens."""

    def __init__(self, norm: nn.Module, tokens: bool = False) -> None:
        super().__init__()
        layer = nn.Linear if tokens else lambda a, b: nn.Conv2d(a, b, 1)
        self.a, self.norm, self.b, self.c = layer(3, 9), norm, layer(9, 9), layer(9, 6)
        self.fc, self.space = nn.Linear(6, 3), 1 if tokens else (2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.b(self.norm(x))
        return self.fc(F.relu(self.c(F.relu(x))).mean(self.space))


NORMS = {
    "layer norm": (lambda: nn.LayerNorm(9, eps=0.1), True),
    "no weight": (lambda: nn.LayerNorm(9, eps=0.1, elementwise_affine=False), True),
    "no bias": (lambda: nn.LayerNorm(9, eps=0.1, bias=False), True),
    "channels first": (lambda: Between(9, eps=0.1), False),
    "group norm": (lambda: nn.GroupNorm(1, 9, eps=0.1), False),
    "over images": (lambda: nn.LayerNorm([9, 6, 6], eps=0.1), False),
    "root mean square": (lambda: nn.RMSNorm(9, elementwise_affine=False), True),
}


@pytest.mark.parametrize(("build", "tokens"), NORMS.values(), ids=NORMS)
def test_compact_networks_compute_what_is_left_of_the_dense_one(build, tokens):
    shape = (2, 5, 3) if tokens else (2, 3, 6, 6)
    s, found = gains(lambda: Net(build(), tokens), {"a": 9, "b": 9, "c": 6}, shape, norms="dense")
    assert all(norm.dense for norm in s.analysis.norms)
    assert any(type(small.norm) is DenseNorm for small, *_ in found)


def test_the_masked_network_is_the_dense_one_with_zeros():
    """No statistics change: all that is done is to set rows of layers and the norm's weight and bias to zero."""
    torch.manual_seed(0)
    model, x = randomised(Net(nn.LayerNorm(9), tokens=True)), torch.randn(4, 5, 3).double()
    s = chipnet.Structure(model, x, norms="dense")
    stream = next(site for site in s.sites if site.name == "a")
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[torch.from_numpy(stream.gates[[1, 4]])] = False
    plan = s.plan(mask)
    small = chipnet.compact(model, plan)
    zeros = randomised(Net(nn.LayerNorm(9), tokens=True))
    zeros.load_state_dict(model.state_dict())
    with torch.no_grad():
        for layer in (zeros.a, zeros.b, zeros.norm):
            layer.weight[[1, 4]], layer.bias[[1, 4]] = 0, 0
    torch.testing.assert_close(chipnet.masked(model, plan)(x), zeros(x))
    torch.testing.assert_close(small(x), zeros(x))
    again = chipnet.Plan.from_json(plan.to_json())
    torch.testing.assert_close(chipnet.compact(model, again, verify=False)(x), zeros(x))


def test_statistics_by_hand():
    """Of the numbers 3, 1 and two that are gone: mean 1, variance (4 + 0 + 1 + 1) / 4."""
    model = nn.Sequential(nn.Linear(1, 4), nn.LayerNorm(4, eps=0.5), nn.Linear(4, 1)).double()
    s = chipnet.Structure(model, torch.ones(2, 1).double(), norms="dense")
    small = chipnet.compact(model, s.plan(torch.tensor([True, True, False, False])))
    with torch.no_grad():
        small[1].weight.copy_(torch.tensor([1.0, 2.0]))
        small[1].bias.copy_(torch.tensor([0.0, 5.0]))
    found = small[1](torch.tensor([[3.0, 1.0]]).double())
    torch.testing.assert_close(found, torch.tensor([[2 / 2**0.5, 5.0]]).double())


def test_a_norm_that_multiplies_by_one_plus_its_weight_keeps_live_statistics():
    class OnePlus(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(9))

        def forward(self, x: Tensor) -> Tensor:
            return (1 + self.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1)

    s, _ = gains(lambda: Net(OnePlus(), tokens=True), {"a": 8, "b": 8, "c": 6}, (2, 5, 3), norms="dense")
    assert not any(norm.dense for norm in s.analysis.norms)


def test_another_word_is_refused():
    with pytest.raises(chipnet.ConfigError, match="norms must be 'live' or 'dense', got 'all'"):
        chipnet.Structure(Net(nn.LayerNorm(9), tokens=True), torch.ones(1, 5, 3), norms="all")
