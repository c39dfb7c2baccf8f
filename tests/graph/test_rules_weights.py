"""Weights that plain modules compute from parameters and buffers: what may be cut of them, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import conforms, random_mask, randomised
from torch import Tensor, nn

from chipnet import Structure, masked

Forward = Callable[["Computed", Tensor], Tensor]


class Computed(nn.Module):
    """A layer of its own kind, whose forward is given; with all that such layers compute weights of."""

    def __init__(self, i: int, o: int, forward: Forward, *, groups: int = 1) -> None:
        super().__init__()
        self.own, self.i, self.o, self.groups = forward, i, o, groups
        self.weight, self.bias = nn.Parameter(torch.randn(o, i // groups, 3, 3)), nn.Parameter(torch.randn(o))
        self.point = nn.Parameter(torch.randn(o, i // groups, 1, 1))
        self.flat = nn.Parameter(torch.randn(i, o))
        self.rows, self.columns = nn.Parameter(torch.randn(o)), nn.Parameter(torch.randn(i // groups))
        self.theta = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("mask", (torch.rand(o, i // groups, 3, 3) > 0.3).double())
        self.register_buffer("shape", torch.rand(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


def layer(m: Computed, x: Tensor, w: Tensor, padding: int = 1) -> Tensor:
    return F.conv2d(x, w, None, 1, padding, 1, m.groups)


def central(m: Computed, x: Tensor) -> Tensor:
    return layer(m, x, m.weight) - m.theta * layer(m, x, m.weight.sum((2, 3), keepdim=True), 0)


def radial(m: Computed, x: Tensor) -> Tensor:
    o, i, *_ = m.weight.shape
    buffer, w = torch.zeros(o, i, 25, dtype=x.dtype), m.weight.view(o, i, -1)
    buffer[:, :, [0, 2, 4, 10, 14, 20, 22, 24]] = w[:, :, 1:]
    buffer[:, :, [6, 7, 8, 11, 13, 16, 17, 18]] = -w[:, :, 1:]
    buffer[:, :, 12] = 0
    return layer(m, x, buffer.view(o, i, 5, 5), 2)


def radial_of_attributes(m: Computed, x: Tensor) -> Tensor:
    i = m.i // m.groups
    buffer = m.weight.new_zeros(m.o, i, 25)
    buffer[:, :, 1:10] = m.weight.view(m.o, i, 9)
    return layer(m, x, buffer.view(m.o, i, 5, 5), 2)


def angular(m: Computed, x: Tensor) -> Tensor:
    w = m.weight.view(*m.weight.shape[:2], -1)
    return layer(m, x, (w - m.theta * w[:, :, [3, 0, 1, 6, 4, 2, 7, 8, 5]]).view(m.weight.shape))


def standardised(m: Computed, x: Tensor, axes: tuple[int, ...] = (2, 3)) -> Tensor:
    w = m.weight - m.weight.mean(axes, keepdim=True)
    return layer(m, x, w / (w.std(axes, keepdim=True) + 1e-3))


SEPARABLE: dict[str, Forward] = {
    "central difference": central,
    "radial difference": radial,
    "radial difference, sizes in attributes": radial_of_attributes,
    "angular difference": angular,
    "mask": lambda m, x: layer(m, x, m.weight * m.mask),
    "scale of rows": lambda m, x: layer(m, x, m.weight * m.rows[:, None, None, None]),
    "scale of columns": lambda m, x: layer(m, x, m.weight * m.columns.view(1, -1, 1, 1).sigmoid()),
    "scale of places": lambda m, x: layer(m, x, m.weight * m.shape + 0.1),
    "standardised over space": standardised,
    "scaled": lambda m, x: layer(m, x, m.weight * m.theta),
    "sum of branches": lambda m, x: layer(m, x, m.weight + F.pad(m.point, [1, 1, 1, 1])),
    "turned": lambda m, x: layer(m, x, m.weight) + layer(m, x, torch.rot90(m.weight, 1, (2, 3))),
    "side by side": lambda m, x: layer(m, x, torch.cat([m.weight, m.point.expand(-1, -1, 3, 1)], 3)[..., 1:]),
    "computed bias": lambda m, x: F.conv2d(x, m.weight, m.bias.exp() * m.rows, 1, 1, 1, m.groups),
    "written in place": lambda m, x: layer(m, x, m.weight.clone().mul_(m.mask).clamp_(-1, 1)),
}


class Net(nn.Module):
    """conv 3>6, the layers, conv 1x1: what they leave of each other's gates."""

    def __init__(self, *forwards: Forward, depthwise: bool = False) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3)
        self.b = nn.ModuleList(Computed(6, 6, f, groups=6 if depthwise else 1) for f in forwards)
        self.c = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        for b in self.b:
            x = F.relu(b(x))
        return self.c(x).mean((2, 3))


def gains(build: Callable[[], nn.Module], gates: dict[str, int], *realisations: str) -> Structure:
    """Exactly the given sites are free, with so many gates each; pruning conforms."""

    def made() -> nn.Module:
        torch.manual_seed(0)
        return randomised(build())

    model, x = made(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    for realisation in realisations:
        s = Structure(model, x, realisation=realisation)  # type: ignore[arg-type]
        assert {site.name: site.free for site in s.sites if site.free} == gates
        if gates:
            conforms(model, x, s, [random_mask(s, 0.5)], factory=made)
    return s


def in_fours(cases: dict[str, Forward]) -> list[Any]:
    names = list(cases)
    fours = [names[i : i + 4] for i in range(0, len(names), 4)]
    return [pytest.param([cases[n] for n in four], id=", ".join(four)) for four in fours]


@pytest.mark.parametrize("forwards", in_fours(SEPARABLE))
def test_a_weight_that_is_computed_index_by_index_is_cut(forwards):
    gains(lambda: Net(*forwards), {"a": 5, **{f"b.{i}": 5 for i in range(len(forwards))}}, "indexed", "plain")


def test_so_is_one_of_a_depthwise_convolution():
    forwards = [central, radial, angular, standardised]
    s = gains(lambda: Net(*forwards, depthwise=True), {"a": 5}, "plain")
    assert s.cost.exact(s.harden(torch.rand(5), {"channels": 0.5})).macs < s.cost.dense.macs / 2


def rows_written(m: Computed, x: Tensor) -> Tensor:
    w = m.weight.clone()
    w[2] = 0
    return layer(m, x, w)


def chosen_columns(m: Computed, x: Tensor) -> Tensor:
    w = torch.zeros_like(m.weight)
    w[:, [0, 1, 2]] = m.weight[:, [2, 1, 0]]
    return layer(m, x, w)


COLUMNS, ROWS, WHOLE = {"a": 5}, {"b.0": 5}, {}
MIXED: dict[str, tuple[Forward, dict[str, int]]] = {
    "standardised over columns": (lambda m, x: standardised(m, x, (1, 2, 3)), ROWS),
    "standardised over rows": (lambda m, x: standardised(m, x, (0, 2, 3)), COLUMNS),
    "standardised over all": (lambda m, x: standardised(m, x, (0, 1, 2, 3)), WHOLE),
    "softmax of columns": (lambda m, x: layer(m, x, m.weight.softmax(1)), ROWS),
    "reversed rows": (lambda m, x: layer(m, x, m.weight + m.weight.flip(0)), COLUMNS),
    "rolled columns": (lambda m, x: layer(m, x, m.weight.roll(1, 1)), ROWS),
    "sizes given for columns": (
        lambda m, x: layer(m, x, m.weight.view(-1, 6, 9).tanh().unflatten(2, (3, 3))),
        ROWS,
    ),
    "rows written": (rows_written, COLUMNS),
    "chosen columns": (chosen_columns, ROWS),
    "turned about": (lambda m, x: layer(m, x, m.weight + m.weight.transpose(0, 1)), WHOLE),
    "bias of mean 0": (lambda m, x: F.conv2d(x, m.weight * m.mask, m.bias - m.bias.mean(), 1, 1), COLUMNS),
    "two uses": (lambda m, x: layer(m, x, m.weight) + standardised(m, x, (1, 2, 3)), ROWS),
    "computed from the input": (lambda m, x: layer(m, x, m.weight * x.mean()), WHOLE),
    "constants of the forward": (lambda m, x: layer(m, x, m.weight + torch.ones(6, 6, 3, 3).double()), WHOLE),
}


@pytest.mark.parametrize(("forward", "gates"), MIXED.values(), ids=MIXED)
def test_along_an_axis_that_is_mixed_it_is_kept_with_the_reason(forward, gates):
    s = gains(lambda: Net(forward), gates, "plain")
    assert all(site.reason for site in s.sites if not site.free)


class Difference(nn.Module):
    """A convolution of pixel differences, as PiDiNet's: its forward is one of four functions."""

    def __init__(self, forward: Forward, i: int, o: int, groups: int) -> None:
        super().__init__()
        self.own, self.groups, self.theta = forward, groups, 1.0
        self.weight = nn.Parameter(torch.randn(o, i // groups, 3, 3) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


class Block(nn.Module):
    """Depthwise differences, then a convolution 1x1, beside a shortcut."""

    def __init__(self, forward: Forward, i: int, o: int) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(i, o, 1) if i != o else nn.Identity()
        self.depthwise, self.pointwise = Difference(forward, i, i, i), nn.Conv2d(i, o, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(F.relu(self.depthwise(x))) + self.shortcut(x)


class PiDiNet(nn.Module):
    """Edges, at two scales."""

    def __init__(self) -> None:
        super().__init__()
        kinds = [central, angular, radial, lambda m, x: layer(m, x, m.weight)]
        self.stem = Difference(central, 3, 8, 1)
        self.first = nn.Sequential(*(Block(f, 8, 8) for f in kinds[1:]))
        self.second = nn.Sequential(*(Block(f, i, 16) for f, i in zip(kinds, (8, 16, 16, 16), strict=True)))
        self.sides = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in (8, 16))

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(self.stem(x))
        second = F.interpolate(self.sides[1](self.second(F.max_pool2d(first, 2))), scale_factor=2)
        return torch.sigmoid(self.sides[0](first) + second)


def test_a_network_of_pixel_differences_reaches_a_quarter_of_its_operations():
    def build() -> nn.Module:
        torch.manual_seed(0)
        return randomised(PiDiNet())

    model, x = build(), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    for realisation in ("plain", "indexed"):
        s = Structure(model, x, realisation=realisation)
        assert {"first.0.depthwise", "second.0.pointwise", "second.3.depthwise"} <= {
            site.name for site in s.sites if site.free
        }
        mask = s.harden(torch.rand(s.gates, generator=torch.Generator().manual_seed(0)), {"macs": 0.25})
        ((small, plan, _),) = conforms(model, x, s, [mask], factory=build)
        assert plan.compact.macs <= plan.dense.macs / 4
        big = masked(model, plan).train()
        assert torch.allclose(big(x), small.train()(x), rtol=0, atol=1e-9)


class NormWithComputed(nn.Module):
    """A linear layer, a norm with an affine parameter that is computed, and a linear layer."""

    def __init__(self, norm: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 6), norm, nn.Linear(6, 3)
        self.scale, self.shift = nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x), self.scale, self.shift))


@pytest.mark.parametrize(
    "norm",
    [
        lambda x, scale, shift: F.layer_norm(x, (6,), F.softplus(scale), shift),
        lambda x, scale, shift: F.layer_norm(x, (6,), scale, shift.exp()),
        lambda x, scale, shift: F.rms_norm(x, (6,), F.softplus(scale) * shift),
        lambda x, scale, shift: F.group_norm(x, 3, scale.exp(), shift),
        lambda x, scale, shift: F.instance_norm(
            x[..., None].expand(-1, -1, 2), None, None, scale.exp(), shift
        ).sum(-1),
    ],
    ids=["layer", "layer-bias", "rms", "group", "instance"],
)
def test_what_a_norm_multiplies_by_and_adds_is_kept_with_what_it_reads_where_it_is_computed(norm):
    torch.manual_seed(0)
    model, x = randomised(NormWithComputed(norm)), torch.randn(5, 4, dtype=torch.float64)
    s = Structure(model, x)
    conforms(model, x, s, [torch.ones(s.gates, dtype=torch.bool)], train=False)
    assert {site.name: site.free for site in s.sites if site.host.is_layer and site.name != "b"}["a"] == 0


def test_so_are_parameters_of_parametrised_norms():
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    x = torch.randn(5, 4, dtype=torch.float64)
    s = Structure(randomised(model), x)
    assert s.plan(torch.ones(s.gates, dtype=torch.bool)).keep == {}


class Conditional(nn.Module):
    """A norm whose scale another layer computes from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale, self.b = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.layer_norm(self.a(x), (6,), self.scale(x).mean(0)))


def test_a_layer_that_computes_the_scale_of_a_norm_is_no_dead_one():
    torch.manual_seed(0)
    model, x = randomised(Conditional()), torch.randn(5, 4, dtype=torch.float64)
    s = Structure(model, x)
    conforms(model, x, s, [torch.ones(s.gates, dtype=torch.bool)], train=False)
    assert not s.gates
