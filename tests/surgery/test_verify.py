"""A verification counts what it compared: where that is nothing, nothing is verified."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from chipnet import PlanError, Structure, compact, verify_compact
from chipnet.program.inputs import Inputs
from chipnet.surgery import apply
from chipnet.surgery.masked import agree
from chipnet.surgery.verify import compare_outputs, repeatable

NAN, INF = math.nan, math.inf


class Net(nn.Module):
    """Linear 3>6(g) - relu - linear 6>2, and what `tail` makes of it."""

    def __init__(self, tail=None, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 6, bias), nn.ReLU(), nn.Linear(6, 2, bias))
        self.tail = tail

    def forward(self, x):
        y = self.net(x)
        return y if self.tail is None else self.tail(y)


MASK = [1, 0, 1, 1, 0, 1]
X = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))


def planned(model: nn.Module, x: Tensor = X):
    plan = Structure(model, x).plan(MASK)
    return plan, compact(model, plan, verify=False)


def scrambled(small):
    with torch.no_grad():
        small.net[0].weight.neg_().add_(1)
    return small


class Const(nn.Module):
    def __init__(self, *outs):
        super().__init__()
        self.outs = outs

    def forward(self, x):
        return tuple(torch.as_tensor(o) for o in self.outs)


@pytest.mark.parametrize(
    ("a", "b", "difference", "compared", "unverified"),
    [
        ([[1.0, 2.0]], [[1.0, 2.5]], 0.5, 2, ()),
        ([[1.0, NAN]], [[1.0, NAN]], 0.0, 1, ()),
        ([[1.0, NAN]], [[NAN, 1.0]], INF, 0, ()),
        ([[1.0, NAN]], [[1.0, INF]], INF, 0, ()),
        ([[1.0, INF]], [[1.0, -INF]], INF, 0, ()),
        ([[1.0, -INF]], [[1.0, -INF]], 0.0, 1, ()),
        ([[NAN, NAN]], [[NAN, NAN]], NAN, 0, (0,)),
        ([[1.0], [INF]], [[1.0], [INF]], 0.0, 1, (1,)),
        ([[1, 2]], [[1, 2]], 0.0, 2, ()),
        ([[1, 2]], [[1, 3]], INF, 0, ()),
        ([[True]], [[False]], INF, 0, ()),
        ([[1]], [[1.0]], INF, 0, ()),
        ([[1j, 2.0]], [[1j, 2.5]], 0.5, 4, ()),
        ([[0.0] * 0], [[0.0] * 0], NAN, 0, ()),
        ([], [], NAN, 0, ()),
        ([[1.0]], [[1.0], [1.0]], INF, 0, ()),
        ([[1.0]], [[1.0, 1.0]], INF, 0, ()),
    ],
)
def test_what_is_compared(a, b, difference, compared, unverified):
    found = compare_outputs(Const(*a), Const(*b), Inputs.of(torch.tensor([1, 2])))
    assert found.difference == difference or (math.isnan(found.difference) and math.isnan(difference))
    assert (found.compared, found.unverified) == (compared, unverified)
    assert found.within(1.0) == (difference < 1 and not unverified and compared > 0)
    assert list(found) == [found.difference, found.scale] or math.isnan(difference)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["net.0.weight", "net.2.bias"])
def test_weights_that_are_not_finite_are_named(name, value):
    model = Net()
    structure = Structure(model, X)
    plan = structure.plan(MASK)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    for call in (lambda: compact(model, plan), lambda: structure.plan(MASK)):
        with pytest.raises(PlanError, match=rf"NaN or infinite: {name}: 1 of .* numbers\."):
            call()
    assert Structure(model, X).gates == 6  # what may be pruned is no matter of weights
    compact(model, plan, verify=False)


def test_statistics_of_norms_are_weights_and_masks_of_infinities_are_not():
    class Masked(Net):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)
            self.register_buffer("mask", torch.tensor([0.0, -INF]))
            self.fixed = nn.Parameter(torch.tensor([-INF, 0.0]), requires_grad=False)

        def forward(self, x):
            y = self.norm(self.net(x))
            return torch.cat([y + self.mask, y + self.fixed], 1)

    model = Masked().eval()
    plan, small = planned(model)
    assert verify_compact(model, small, plan, X).compared == 4
    compact(model, plan)
    model.norm.running_var[0] = NAN
    with pytest.raises(PlanError, match=r"norm\.running_var: 1 of 2 numbers"):
        compact(model, plan)


def test_where_nothing_is_finite_nothing_is_verified():
    model = Net()
    plan, small = planned(model)
    nans = Net(lambda y: y * NAN)
    assert not agree(nans, nans, plan, Inputs.of(X))
    for network in (small, scrambled(small)):
        network.tail = nans.tail
        found = verify_compact(nans, network, plan, X)
        assert (found.compared, found.unverified) == (0, (0,))
        assert math.isnan(found.difference)
    for tail in (lambda y: y * NAN, lambda y: y[:0], lambda y: None, lambda y: (y, y / 0)):
        with pytest.raises(PlanError, match="cannot be verified: there is no finite number to compare"):
            compact(Net(tail), plan)


def test_inputs_that_tell_nothing_are_no_proof():
    """Zeros through layers without biases are zeros; their logarithm is not finite: others are drawn."""
    for model in (Net(bias=False), nn.Sequential(nn.Identity(), Net())):
        net = model if isinstance(model, Net) else model[1]
        if net is not model:
            model[0].forward = torch.log
        plan, small = planned(model, torch.zeros(2, 3))
        good = verify_compact(model, small, plan, torch.zeros(2, 3))
        assert good.drawn
        assert good.within(1e-9)
        compact(model, plan)
        scrambled(small if net is model else small[1])
        assert not agree(model, small, plan, Inputs.of(torch.zeros(2, 3)))
        assert verify_compact(model, small, plan, torch.zeros(2, 3)).difference > 1e-2


def test_whole_numbers_alone_are_compared():
    model = Net(lambda y: y.argmax(1))
    plan, small = planned(model)
    assert verify_compact(model, small, plan, X).compared == 2
    compact(model, plan)
    with torch.no_grad():
        small.net[2].weight.neg_()
        small.net[2].bias.neg_()
    assert verify_compact(model, small, plan, X).difference == INF


def test_outputs_that_never_have_numbers_do_not_keep_channels():
    assert Structure(Net(lambda y: (y, y * INF)), X).gates == 6


def test_a_wrong_output_is_told_though_another_has_no_numbers(monkeypatch):
    model = Net(lambda y: (y, y * NAN))
    plan = Structure(model, X).plan(MASK)
    cut = apply._cut
    monkeypatch.setattr(apply, "_cut", lambda small, plan: [cut(small, plan), scrambled(small)])
    with pytest.raises(PlanError, match="does not compute what the masked one does: outputs differ by"):
        compact(model, plan)


class Constant(nn.Module):
    """An output of constants, nearly; ``cast``: whatever the inputs are, the end is computed in float32."""

    def __init__(self, cast):
        super().__init__()
        self.first, self.last, self.cast = nn.Linear(3, 4), nn.Linear(4, 2), cast
        nn.init.normal_(self.last.weight, std=1e-6)
        nn.init.ones_(self.last.bias)

    def forward(self, x):
        x = self.last(self.first(x))
        return x.float() if self.cast else x


@pytest.mark.parametrize("cast", [False, True])
def test_an_error_that_hardly_shows_is_seen_where_rounding_does_not_explain_it(cast):
    net, x = Constant(cast), torch.randn(5, 3)
    structure = Structure(net, x)
    mask = torch.tensor([True, True, True, False])
    plan = structure.plan(mask)
    small = compact(net, plan)
    assert agree(net, small, plan, structure.analysis.inputs)
    with torch.no_grad():
        small.last.weight.mul_(1.5)
    difference, scale = verify_compact(net, small, plan, x)
    assert 1e-9 < difference / scale < 1e-5
    assert agree(net, small, plan, structure.analysis.inputs) == cast


class Drawing(Net):
    """Multiplies by ``noise(y)`` in train mode."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, x):
        y = self.net[1](self.net[0](x))
        return self.net[2](y * self.noise(y) if self.training else y)


@pytest.mark.parametrize(
    ("noise", "random_numbers"),
    [
        (torch.ones_like, False),
        (lambda y: nn.functional.dropout(torch.ones_like(y), 0.0), False),
        (lambda y: nn.functional.dropout(torch.ones_like(y), 1e-9), True),
        (lambda y: float(random.random() < 2), True),
        (lambda y: float(np.random.rand() < 2), True),
        (lambda y: float(np.random.randn() < 99), True),
    ],
)
def test_random_numbers_are_seen_though_they_change_nothing(noise, random_numbers):
    """A dropout of few elements may drop the same in two draws; a compact network draws fewer, and others."""
    model = Drawing(noise)
    assert Inputs.of(X).draws(model.train()) == random_numbers
    assert not Inputs.of(X).draws(model.eval())
    assert repeatable(model, Inputs.of(X)) != random_numbers
