"""Norms over channels in the masked network: their statistics are those of channels that exist."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from harness import conforms, randomised
from torch import Tensor, nn
from toys import random_mask

import chipnet
from chipnet import Pruner, Structure, compact, masked
from chipnet.gates.hooks import LiveHook, add_gates
from chipnet.gates.values import Constants
from chipnet.graph.facts import LiveNorm

LAST = LiveNorm("", -1, (-1,), True, "weight", "bias")


def hung(norm: nn.Module, how: LiveNorm, p: list[float]) -> nn.Module:
    """A norm with values for its channels."""
    values = Constants([len(p)])
    values.set(torch.tensor(p))
    add_gates(norm, [], values, norms=[how])
    return norm


def test_layer_norm_of_the_live_channels_as_worked_out_by_hand():
    norm = hung(nn.LayerNorm(5, eps=0.0).double(), LAST, [1, 0, 1, 0, 1])
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 1, 2, 1, 1]))
        norm.bias.copy_(torch.tensor([0.0, 7, 1, 7, 0]))
    # 1, 4 and 7: the mean is 4, the variance 6
    out = norm(torch.tensor([[1.0, 0, 4, 0, 7]], dtype=torch.float64))
    root = 6**0.5
    torch.testing.assert_close(
        out, torch.tensor([[-3 / root, 0, 1, 0, 3 / root]]).double(), rtol=1e-6, atol=1e-12
    )


def test_rms_norm_of_the_live_channels_as_worked_out_by_hand():
    how = LiveNorm("", -1, (-1,), False, None, None)
    norm = hung(nn.RMSNorm(4, eps=7.0, elementwise_affine=False).double(), how, [1, 0, 0, 1])
    # squares of 3 and 5: their mean is 17, the root of 24
    out = norm(torch.tensor([[3.0, 0, 0, 5]], dtype=torch.float64))
    torch.testing.assert_close(out, torch.tensor([[3.0, 0, 0, 5]]).double() / 24**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("build", "how", "shape"),
    [
        (lambda: nn.LayerNorm(37), LAST, (4, 9, 37)),
        (lambda: nn.GroupNorm(1, 37), LiveNorm("", -3, (-3, -2, -1), True, "weight", "bias"), (4, 37, 5, 3)),
        (lambda: nn.RMSNorm(37), LiveNorm("", -1, (-1,), False, "weight", None), (4, 9, 37)),
    ],
    ids=["layer", "group", "rms"],
)
def test_with_all_gates_open_every_bit_is_as_before(build, how, shape, dtype):
    torch.manual_seed(0)
    norm = build().to(dtype)
    nn.init.normal_(norm.weight)
    x = 3 * torch.randn(shape, dtype=dtype) + 1
    wanted = norm(x)
    assert torch.equal(hung(norm, how, [1.0] * 37)(x), wanted)
    assert not torch.equal(hung(norm, how, [0.0] + [1.0] * 36)(x), wanted)


def test_soft_values_are_weights_and_their_gradients_are_those_of_the_formula():
    """With x of gates already multiplied: m = sum x / sum p, variance sum (x - p m)^2 / sum p^2."""
    torch.manual_seed(0)
    norm, x = nn.LayerNorm(6).double(), torch.randn(3, 6, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)

    def formula(p: Tensor) -> Tensor:
        u = x * p
        d = u - p * u.sum(-1, keepdim=True) / p.sum()
        variance = d.square().sum(-1, keepdim=True) / p.square().sum()
        return d * (variance + norm.eps).rsqrt() * norm.weight + norm.bias * p

    p = torch.rand(6, dtype=torch.float64).requires_grad_()
    wanted = formula(p)
    hook = LiveHook(LAST, 0, Constants([6]), lambda: [p])
    hook.hang(norm)
    found = norm(x * p)
    torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad((y**3).sum(), [p, *norm.parameters()]) for y in (found, wanted)]
    for a, b in zip(*slopes, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("eps", [1e-5, 1e-12])
@pytest.mark.parametrize("width", [3, 48])
def test_of_one_live_channel_nothing_is_left_but_the_bias(eps, width):
    """Its variance is 0. Rounding of 1e-7 over the root of an eps of 1e-12 would be a tenth."""
    torch.manual_seed(0)
    norm = hung(nn.LayerNorm(width, eps=eps), LAST, [0.0, 1.0] + [0.0] * (width - 2))
    nn.init.normal_(norm.bias)
    x = torch.zeros(1000, width)
    x[:, 1] = 3.7 * torch.randn(1000)
    assert torch.equal(norm(x)[:, 1], norm.bias[1].expand(1000))


def test_a_norm_without_channels_gives_zeros_and_finite_gradients():
    norm = nn.LayerNorm(3).double()
    p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    LiveHook(LAST, 0, Constants([3]), lambda: [p]).hang(norm)
    out = norm(torch.zeros(2, 3, dtype=torch.float64))
    out.sum().backward()
    assert not out.any()
    assert p.grad is not None and torch.isfinite(p.grad).all()


def test_input_by_keyword_copies_and_pickles():
    norm, x = hung(nn.LayerNorm(4), LAST, [1, 1, 0, 1]), torch.tensor([[1.0, 2, 0, 5]])
    assert torch.equal(norm(input=x), norm(x))
    assert torch.equal(copy.deepcopy(norm)(x), norm(x))
    assert torch.equal(pickle.loads(pickle.dumps(norm))(x), norm(x))


# -- whole networks -------------------------------------------------------------------------------------------
class Block(nn.Module):
    """x + down(gelu(up(norm(x)))), a block of a transformer without its attention"""

    def __init__(self, width: int, norm) -> None:
        super().__init__()
        self.norm, self.up, self.down = norm(width), nn.Linear(width, 11), nn.Linear(11, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Tokens(nn.Module):
    """Patches, two blocks, a norm, a head"""

    def __init__(self, norm) -> None:
        super().__init__()
        self.patch, self.norm, self.head = nn.Conv2d(3, 7, 2, 2), norm(7), nn.Linear(7, 5)
        self.blocks = nn.Sequential(Block(7, norm), Block(7, norm))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


class LlamaRMSNorm(nn.Module):
    """As Hugging Face writes it."""

    def __init__(self, width: int, eps: float = 0.1) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), eps

    def forward(self, hidden: Tensor) -> Tensor:
        given = hidden.dtype
        hidden = hidden.to(torch.promote_types(given, torch.float32))
        hidden = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * hidden.to(given)


NORMS = {
    "layer": nn.LayerNorm,
    "layer-without-bias": lambda width: nn.LayerNorm(width, bias=False),
    "layer-without-affine": lambda width: nn.LayerNorm(width, elementwise_affine=False),
    "rms": nn.RMSNorm,
    "rms-with-eps": lambda width: nn.RMSNorm(width, eps=0.1),
    "rms-without-affine": lambda width: nn.RMSNorm(width, elementwise_affine=False),
    "llama": LlamaRMSNorm,
}


@pytest.mark.parametrize("options", [{}, {"share": False}, {"realisation": "indexed"}], ids=str)
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_streams_behind_norms_are_pruned_exactly(norm, options):
    torch.manual_seed(0)
    model, x = randomised(Tokens(norm)), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    s = Structure(model, x, **options)
    free = {site.name: site.free for site in s.sites if site.free}
    assert free["blocks.0.up"] == free["blocks.1.up"] == 11
    assert {"patch", "blocks.0.down", "blocks.1.down"} <= free.keys()
    assert free["patch"] == (6 if norm is LlamaRMSNorm else 7)  # nothing stands in for a class of the user's
    masks = [m for m in (random_mask(s, d, i) for i, d in enumerate((0.3, 0.5, 0.7))) if m is not None]
    assert masks
    found = conforms(model, x, s, masks, factory=lambda: Tokens(norm))
    again = found[0].network  # it is pruned further
    further = Structure(again, x, **options) if not options else None
    if further is not None:
        conforms(again, x, further, [m for m in [random_mask(further, 0.5, 1)] if m is not None])


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_hard_masks_of_a_pruner_compute_what_ships(norm):
    torch.manual_seed(0)
    model, x = randomised(Tokens(norm)), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    dense = model(x)
    pruner = Pruner(model, x[:1], "macs=0.5", steps=2, method="uniform")
    with pruner.hardened(torch.ones(pruner.structure.gates, dtype=torch.bool)):
        assert torch.equal(model(x), dense)
    plan = pruner.harden(early=True)
    soft = model(x)
    pruner.detach()
    assert torch.equal(model(x), dense)
    torch.testing.assert_close(soft, masked(model, plan)(x))
    torch.testing.assert_close(soft, compact(model, plan)(x))


def test_what_a_plan_says_of_norms(tmp_path):
    torch.manual_seed(0)
    model, x = randomised(Tokens(nn.LayerNorm)), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    s = Structure(model, x)
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[[g for site in s.sites if site.name == "patch" for g in site.gates.tolist()][1:3]] = False
    plan = s.plan(mask)
    assert {(live.norm.module, live.kept) for live in plan.live} == {
        (name, (0, 3, 4, 5, 6)) for name in ("blocks.0.norm", "blocks.1.norm", "norm")
    }
    assert "norm: 5 of 7, follows the gates of what it reads" in plan.explain()
    plan.save(tmp_path / "plan.json")
    assert chipnet.Plan.load(tmp_path / "plan.json") == plan
    assert compact(model, plan).norm.normalized_shape == (5,)


def test_a_network_with_norms_learns_its_masks():
    torch.manual_seed(0)
    model = Tokens(nn.LayerNorm)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = torch.randn(32, 3, 6, 6), torch.randint(5, (32,))
    pruner = Pruner(model, x[:1], "macs=0.4", steps=8)
    for _ in range(8):
        (F.cross_entropy(model(x), y) + pruner.loss()).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    plan = pruner.harden()
    model.eval()
    torch.testing.assert_close(compact(chipnet.detach(copy.deepcopy(model)), plan)(x), model(x))
