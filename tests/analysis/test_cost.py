"""Costs are integers of the network that is shipped: by hand, by PyTorch's own counters, and by hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toys import (
    ANSWERS,
    OPTIONS,
    TOYS,
    Answer,
    assert_same_outputs,
    counted_channels_and_volume,
    counted_macs,
    counted_params,
    made,
    mask_of,
    random_mask,
)

from chipnet import Cost, Structure, compact, masked
from chipnet.analysis.kinds import KINDS
from chipnet.program.counting import counting


@pytest.mark.parametrize(("name", "answer", "realisation"), ANSWERS)
def test_costs_are_those_worked_out_by_hand(name: str, answer: Answer, realisation: str):
    _, _, s = made(TOYS[name], realisation=realisation, share=answer.share)
    mask = mask_of(s, answer.open)
    assert s.cost.exact(mask) == answer.cost
    assert s.plan(mask).compact == answer.cost


@pytest.mark.parametrize(("realisation", "share"), OPTIONS)
@pytest.mark.parametrize("name", TOYS)
def test_predicted_costs_are_counted_costs_and_outputs_are_equal(name, realisation, share):
    """Under random masks: parameters, MACs, channels and volume of the compact network, counted four ways."""
    model, x, s = made(TOYS[name], realisation=realisation, share=share)
    tried = 0
    for density, seed in [(0.9, 1), (0.6, 2), (0.5, 3), (0.4, 4), (0.3, 5), (0.2, 6)]:
        mask = random_mask(s, density, seed)
        if mask is None:
            continue
        tried += 1
        plan = s.plan(mask)
        small = compact(model, plan, verify=False)
        assert_same_outputs(masked(model, plan), small, x)
        assert plan.compact.params == counted_params(small)
        assert plan.compact.macs == counted_macs(small, x)
        if name != "functional":  # its convolution is no module
            assert (plan.compact.channels, plan.compact.volume) == counted_channels_and_volume(small, x)
    assert tried >= 2


@pytest.mark.parametrize("name", TOYS)
def test_dense_costs_are_those_of_the_model_itself(name):
    model, x, s = made(TOYS[name])
    assert s.cost.dense == s.cost.exact(torch.ones(s.gates, dtype=torch.bool))
    assert s.cost.dense.params == counted_params(model)
    assert s.cost.dense.macs == counted_macs(model, x)
    if name != "functional":
        assert (s.cost.dense.channels, s.cost.dense.volume) == counted_channels_and_volume(model, x)


@pytest.mark.parametrize(("realisation", "share"), OPTIONS)
@pytest.mark.parametrize("name", TOYS)
def test_soft_cost_at_binary_gates_is_the_exact_cost(name, realisation, share):
    _, _, s = made(TOYS[name], realisation=realisation, share=share)
    masks = torch.rand(8, s.gates, generator=torch.Generator().manual_seed(0)) < 0.5
    soft = s.cost(masks.float())
    assert soft.shape == (8, len(KINDS))
    for row, mask in zip(soft, masks, strict=True):
        exact = s.cost.exact(mask)
        assert [round(v) for v in row.tolist()] == [exact[k] for k in KINDS]


@pytest.mark.parametrize(("realisation", "share"), OPTIONS)
@pytest.mark.parametrize("name", TOYS)
def test_soft_cost_grows_with_every_gate(name, realisation, share):
    _, _, s = made(TOYS[name], realisation=realisation, share=share)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        z = torch.rand(s.gates, generator=generator, dtype=torch.float64)
        up = z + (1 - z) * 0.5 * torch.eye(s.gates, dtype=torch.float64)
        assert (s.cost(up) >= s.cost(z) - 1e-9).all()


@pytest.mark.parametrize("name", ["chain", "residual", "pre_activation", "squeeze_excite", "few_groups"])
def test_soft_cost_has_the_gradient_of_finite_differences(name):
    _, _, s = made(TOYS[name], share=False)
    z = torch.rand(s.gates, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(s.cost, (z.requires_grad_(),))


def test_soft_cost_of_a_chain_is_a_sum_of_products_of_gate_sums():
    _, _, s = made(TOYS["chain"])
    z = torch.rand(s.gates, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    names = {site.name: site for site in s.sites}
    n1, n2 = (float(z[names[n].gates].sum()) for n in ("bn1", "bn2"))
    any1, any2 = (float(1 - (1 - z[names[n].gates]).prod()) for n in ("bn1", "bn2"))
    macs = float(s.cost(z)[KINDS.index("macs")])
    upper = 50 * 9 * 3 * n1 + 50 * 9 * n1 * n2 + 2 * 5 * n2
    assert macs <= upper + 1e-9
    assert macs >= upper * (any1 * any2) ** 2  # rows and layers count as far as the others are alive


def test_cost_reads_by_kind_and_serialises():
    cost = Cost(channels=2, volume=3, params=5, macs=7)
    assert [cost[k] for k in KINDS] == [2, 3, 5, 7]
    assert Cost(**cost.to_json()) == cost


def test_cost_follows_the_example_inputs():
    net = nn.Sequential(nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 5, 1)).eval()
    one, two = (Structure(net, torch.randn(b, 3, 9, n)).cost.dense for b, n in [(1, 9), (2, 11)])
    assert one.macs == 7 * 7 * (3 * 7 * 9 + 7 * 5)
    assert two.macs == 2 * 7 * 9 * (3 * 7 * 9 + 7 * 5)
    assert one.volume == 7 * 7 * (7 + 5)
    assert (one.params, one.channels) == (two.params, two.channels)


def test_transposed_convolution_counts_input_positions():
    net = nn.Sequential(
        nn.Conv2d(3, 7, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(7, 11, 3, 2),
        nn.ReLU(),
        nn.Conv2d(11, 5, 1),
    )
    net = net.double().eval()
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    s = Structure(net, x)
    assert {t.name: t.free for t in s.sites if t.free} == {"0": 7, "2": 11}
    assert s.cost.dense.macs == 25 * 9 * 3 * 7 + 25 * 9 * 7 * 11 + 121 * 11 * 5
    mask = mask_of(s, {"0": (1, 4, 6), "2": (0, 10)})
    plan = s.plan(mask)
    assert dict(plan.keep["2.weight"]) == {0: (1, 4, 6), 1: (0, 10)}
    small = compact(net, plan)
    assert plan.compact.macs == 25 * 9 * 3 * 3 + 25 * 9 * 3 * 2 + 121 * 2 * 5 == counted_macs(small, x)
    assert plan.compact.params == 3 * 3 * 9 + 3 + 3 * 2 * 9 + 2 + 2 * 5 + 5 == counted_params(small)


class _ClassToken(nn.Module):
    """A parameter's view passes from module to module, as in class-attention networks."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 1, 4))
        self.identity = nn.Identity()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.identity(self.token.expand(len(x), -1, -1)) + x)


def test_a_parameters_view_is_counted_without_gradients() -> None:
    with torch.no_grad(), counting() as counter:
        _ClassToken().eval()(torch.ones(3, 5, 4))
    assert counter.get_total_flops() == 2 * 3 * 5 * 4 * 2
