"""Heads go and features do, with ``heads="both"``: a slot is live by several gates, and what is left is a box."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import conforms, corner_masks, random_mask, randomised
from torch import Tensor, nn

import chipnet
from chipnet import Structure


class Net(nn.Module):
    """A stream of 4 channels and attention of 3 heads beside it. Values have a width of their own; all sizes are
    attributes."""

    def __init__(self, how: str = "fused") -> None:
        super().__init__()
        self.stream, self.how, self.heads, self.width, self.values = nn.Linear(3, 4), how, 3, 4, 5
        self.q, self.k, self.v, self.out = (nn.Linear(*n) for n in ((4, 12), (4, 12), (4, 15), (15, 4)))
        self.bias, self.head = nn.Parameter(torch.randn(3, 5, 5)), nn.Linear(4, 2)
        self.table = nn.Parameter(torch.randn(9, 3))
        self.register_buffer("apart", (torch.arange(5)[:, None] - torch.arange(5)).flatten() + 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stream(x)
        q, k = (f(x).view(*x.shape[:2], self.heads, self.width).transpose(1, 2) for f in (self.q, self.k))
        v = self.v(x).view(*x.shape[:2], -1, self.values).transpose(1, 2)
        bias = {
            "bias": self.bias.unsqueeze(0),
            "table": self.table[self.apart].view(5, 5, -1).permute(2, 0, 1).unsqueeze(0),
        }.get(self.how)
        if self.how == "written out":
            y = ((q * 0.4) @ k.transpose(-2, -1)).softmax(-1) @ v
        elif self.how == "einsum":
            y = torch.einsum("bhts,bhsf->bhtf", torch.einsum("bhtf,bhsf->bhts", q, k).softmax(-1), v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, bias, scale=0.3 if self.how == "scale" else None)
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


def made(how: str, **options: object) -> tuple[nn.Module, Tensor, Structure]:
    torch.manual_seed(0)
    model, x = randomised(Net(how)), torch.randn(2, 5, 3, dtype=torch.float64)
    return model, x, Structure(model, x, heads="both", **options)  # type: ignore[arg-type]


def gates(s: Structure, name: str) -> list[int]:
    return next(
        [*dict.fromkeys(site.gates[site.gates >= 0].tolist())] for site in s.sites if site.name == name
    )


@pytest.mark.parametrize("realisation", ["plain", "indexed"])
@pytest.mark.parametrize("how", ["fused", "scale", "bias", "table", "written out"])
def test_heads_and_features_go_in_every_spelling(how, realisation):
    """The first head and the first feature have no gates but that of the block."""
    model, x, s = made(how, realisation=realisation)
    free = {site.name: site.free for site in s.sites}
    assert [free[n] for n in ("q", "k", "v", "v heads", "v block")] == [3, 3, 4, 2, 1]
    whole = torch.ones(s.gates, dtype=torch.bool)
    drawn = [random_mask(s, d) for d in (0.3, 0.5, 0.7)]
    for mask in drawn:
        mask[gates(s, "v block")] = True
    found = conforms(model, x, s, [whole, *drawn, *corner_masks(s)])
    shapes = {(small.heads, small.width, small.values) for small, *_ in found}
    assert {heads for heads, *_ in shapes} == {1, 2, 3}
    assert len({width for _, width, _ in shapes}) > 2 < len({values for *_, values in shapes})
    for small, *_ in found:
        if "v" not in {n for n, m in small.named_modules() if type(m) is not nn.Linear}:
            assert small.v.out_features == small.heads * small.values
            assert small.q.out_features == small.k.out_features == small.heads * small.width
            assert how != "bias" or small.bias.shape == (small.heads, 5, 5)


def test_heads_of_an_einsum_go_whole():
    """It keeps two features of each: with one it multiplies, and costs nothing to PyTorch's counter."""
    model, x, s = made("einsum")
    assert {site.name: site.free for site in s.sites if site.name in "qkv"} == {"q": 0, "k": 0, "v": 3}
    conforms(model, x, s, [random_mask(s, d) for d in (0.3, 0.5, 0.7)])


def test_which_rows_stay_as_worked_out_by_hand():
    model, _, s = made("fused")
    mask = torch.ones(s.gates, dtype=torch.bool)
    heads, values, queries = gates(s, "v heads"), gates(s, "v"), gates(s, "q")
    assert queries == gates(s, "k")  # a product of both is summed
    mask[heads[0]] = mask[values[1]] = mask[values[3]] = mask[queries[2]] = False
    plan = s.plan(mask)
    small = chipnet.compact(model, plan)
    assert (small.heads, small.width, small.values) == (2, 3, 3)
    v = [h * 5 + f for h in (0, 2) for f in (0, 1, 3)]
    q = [h * 4 + f for h in (0, 2) for f in (0, 1, 2)]
    assert torch.equal(small.v.weight, model.v.weight[v])
    assert torch.equal(small.k.weight, model.k.weight[q])
    assert torch.equal(small.out.weight, model.out.weight[:, v])
    torch.testing.assert_close(small.q.weight, model.q.weight[q] * (3 / 4) ** 0.5)
    tokens = 2 * 5
    layers = tokens * (3 * 4 + 4 * 6 + 4 * 6 + 4 * 6 + 6 * 4 + 4 * 2)
    assert plan.compact.macs == layers + tokens * 5 * 2 * (3 + 3)


def test_soft_values_are_products_of_the_gates_of_a_slot():
    """How many columns the last projection has, of 3 heads with 5 features."""
    _, _, s = made("scale")
    values = torch.ones(s.gates, dtype=torch.float64)
    values[gates(s, "v heads")[1]], values[gates(s, "v")[0]], values[gates(s, "v block")] = 0.5, 0.25, 0.5
    formulas = s.analysis.liveness.present(next(site.slots for site in s.sites if site.name == "v block"))
    program = s.analysis.liveness.formulas.compile(formulas.tolist(), s.gates)
    features, heads = torch.tensor([1, 0.25, 1, 1, 1]), torch.tensor([1, 1, 0.5])
    expected = 0.5 * heads[:, None] * features
    expected[0, 0] = 1  # it is there whatever the mask
    torch.testing.assert_close(program(values).view(3, 5).float(), expected)


def test_a_pruner_of_heads_and_features_computes_what_ships():
    model, x, _ = made("table")
    for method in ("uniform", "magnitude"):
        pruner = chipnet.Pruner(model, x, "macs=0.5", steps=2, method=method, heads="both")
        plan = pruner.harden(early=True)
        soft = model(x)
        pruner.detach()
        torch.testing.assert_close(soft, chipnet.masked(model, plan)(x))
        torch.testing.assert_close(soft, chipnet.compact(model, plan)(x))


def test_gates_learn_where_several_act_on_a_slot():
    """The gradient of each is the sum over its slots of what the others leave."""
    torch.manual_seed(0)
    model, x = randomised(Net("scale")).float(), torch.randn(2, 5, 3)
    pruner = chipnet.Pruner(model, x, "macs=0.5", steps=4, method="chipnet", heads="both")
    for _ in range(4):
        model(x).square().mean().backward()
        pruner.step()
    plan = pruner.harden()
    pruner.detach()
    assert plan.compact.macs <= 0.5 * plan.dense.macs
    chipnet.compact(model, plan)


def test_a_block_is_shut_last():
    _, _, s = made("fused")
    block = gates(s, "v block")
    scores = torch.rand(s.gates, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[block] = 0
    mask = s.harden(scores, {"macs": 0.6})
    assert mask[block].all()
    inside = [g for name in ("v", "v heads") for g in gates(s, name)]
    scores[inside] = 0
    assert not s.harden(scores, {"macs": 0.1})[block].any()


def test_a_plan_is_read_back_and_small_networks_are_loaded(tmp_path):
    model, x, s = made("bias")
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[[gates(s, "v heads")[1], *gates(s, "v")[:2], gates(s, "q")[0]]] = False
    plan = s.plan(mask)
    assert chipnet.Plan.from_json(plan.to_json()) == plan
    small = chipnet.compact(model, plan)
    chipnet.save(small, plan, tmp_path / "small.safetensors")
    again = chipnet.load(lambda: Net("bias").double(), tmp_path / "small.safetensors")
    torch.testing.assert_close(again(x), small(x))
    assert (again.heads, again.width, again.values) == (2, 3, 3)


def test_what_is_said_of_sites_and_gates():
    _, _, s = made("fused")
    said = {site.name: site.reason for site in s.sites}
    assert (
        said["v"]
        == said["v heads"]
        == "its weight has gates of several kinds: of features, of heads, of the block"
    )
    names = [site["name"] for site in s.report()]
    assert [n for n in names if n.startswith("v")] == ["v", "v heads", "v block"]
    assert "or(" in str(s.graph) and "gate v.weight" in str(s.graph)


def test_masks_go_to_another_network_of_the_class():
    _, x, s = made("fused")
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[gates(s, "v heads")[:1]] = False
    other = Structure(randomised(Net()), x, heads="both")
    assert torch.equal(chipnet.Masks.of(s, mask).transfer(other), mask)


@pytest.mark.parametrize("pair", [("v", "v heads"), ("v heads", "v")])
def test_gates_of_several_sites_on_one_weight_are_all_zero_in_the_masked_network(pair):
    _, _, s = made("scale")
    mask = torch.ones(s.gates, dtype=torch.bool)
    for name in pair:
        mask[gates(s, name)[0]] = False
    _, rows = s.plan(mask).zero["v.weight"]
    assert rows == tuple(sorted({1, 6, 11, *range(5, 10)}))
