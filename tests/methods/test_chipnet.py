"""Fisher information with diminishing returns, worked out by hand."""

import pytest
import torch
from torch import nn

import chipnet
from chipnet import Pruner, Structure
from chipnet.lab.models import get_model


class Branch(nn.Module):
    """fc 4 -> 8, plus a branch of 6 inside, then fc 8 -> 2."""

    def __init__(self):
        super().__init__()
        self.stem, self.inside, self.back, self.head = (
            nn.Linear(a, b) for a, b in ((4, 8), (8, 6), (6, 8), (8, 2))
        )

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.back(self.inside(x).relu()))


def made(budget="params=0.5", setting="", **options):
    """A pruner of a `Branch`, and the gates of its stream and of its branch."""
    torch.manual_seed(0)
    net = Branch()
    structure = Structure(net, torch.zeros(1, 4), **options)
    pruner = Pruner(net, structure, budget, steps=100, method=f"chipnet{setting}")
    stream, inside = sorted((g for g in structure.analysis.site_gates if len(g)), key=len, reverse=True)
    assert (len(stream), len(inside)) == (8, 6)
    return pruner, stream, inside


@pytest.mark.parametrize("law", [0.0, 0.5, 1.0])
def test_measurements_at_a_thin_mask_count_as_what_they_were_in_the_dense_network(law):
    pruner, stream, inside = made(setting=f":law={law}")
    method = pruner.method
    method.current[inside[:3]] = False
    method.learn(torch.ones(pruner.structure.gates))
    found = method.sensitivity()
    assert found[stream].tolist() == pytest.approx([1.0] * 8)
    assert found[inside].tolist() == pytest.approx([0.5 ** (1 + law)] * 6)


@pytest.mark.parametrize("law", [0.0, 0.5, 1.0])
def test_a_gate_is_worth_more_the_thinner_its_site_for_what_it_costs_now(law):
    pruner, stream, inside = made(setting=f":law={law}")
    method = pruner.method
    fisher = torch.zeros(pruner.structure.gates)
    fisher[stream], fisher[inside] = torch.arange(8.0) + 1, 2.0
    method.current[inside[4:]] = False
    method.sensitivity = lambda: fisher
    scores = method.scores()
    # Parameters that go with one channel now: of the stream, the weights and biases of stem and back, and what
    # inside and head read; of the branch, what inside writes (with a bias) and what back reads.
    limit = pruner.structure.limits("params=0.5")["params"]
    prices = {"stream": (4 + 1 + 4 + 1 + 4 + 2) / limit, "inside": (8 + 1 + 8) / limit}
    for place, gate in enumerate(reversed(stream.tolist()), start=1):  # the last is worth most
        expected = (9 - place) * (8 / place) ** (1 + law) / prices["stream"]
        assert float(scores[gate]) == pytest.approx(expected)
    worth = sorted(scores[inside].tolist(), reverse=True)
    assert worth[4:] == [0, 0]  # shut gates have none
    # back's bias is in the stream's cost while the branch lives: eight parameters, not one of which is inside's.
    alone, least = method._alone[pruner.structure.analysis.site_of_gate[inside[0]]], method.minimum()
    least = least[int(pruner.structure.analysis.site_of_gate[inside[0]])]
    gain = [2.0 * (6 / r) ** (1 + law) for r in range(1, 5)]
    first = sum(gain[:least]) / (alone + least)
    assert worth[:4] == pytest.approx(
        [(first if r < least else gain[r]) / prices["inside"] for r in range(4)]
    )


@pytest.mark.parametrize(
    ("budget", "least"),
    # A branch adds the stream's channels: 16, 32, 64 of them. sum of r^-1.5 over (16 + b) is largest at b = 5.
    [("channels=0.5", {16: 5, 32: 7, 64: 11}), ("macs=0.25", {16: 1, 32: 1, 64: 1})],
)
def test_a_branch_lives_with_as_many_channels_as_make_the_best_of_its_cost(budget, least):
    net = get_model("resnet20", num_classes=100, in_channels=1)
    pruner = Pruner(net, torch.randn(2, 1, 14, 14), budget, steps=4, method="chipnet")
    analysis, found = pruner.structure.analysis, pruner.method.minimum()
    for gates, bypassed, few in zip(analysis.site_gates, analysis.bypassed, found, strict=True):
        assert few == (least[len(gates)] if bypassed else 1)


def test_where_no_branch_may_die_none_has_a_minimum():
    pruner, *_ = made("channels=0.8", min_channels=2)
    assert set(pruner.method.minimum()) == {1}


def test_a_branch_that_does_nothing_dies_and_the_stream_keeps_its_width():
    pruner, stream, inside = made("params=0.4")
    net = pruner.model
    with torch.no_grad():
        net.back.weight.zero_()
        net.back.bias.zero_()
    for _ in range(100):
        net(torch.randn(16, 4)).square().mean().backward()
        pruner.step()
        net.zero_grad()
    mask = pruner.mask
    assert not mask[inside].any()
    assert mask[stream].all()
    plan = pruner.harden()
    pruner.detach()
    assert chipnet.compact(net, plan).stem.out_features == 8


def test_a_kind_counts_by_how_much_of_its_limit_is_used():
    """In the dense network twice the limit of the parameters is used, and all of the MACs."""
    prices = [
        made(budget)[0].method._prices() for budget in ("params=0.5", "macs=1.0", "params=0.5,macs=1.0")
    ]
    assert torch.allclose(prices[2], prices[0] + 0.5 * prices[1])
