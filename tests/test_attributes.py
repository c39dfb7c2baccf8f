"""Sizes that a network keeps as numbers: only those follow that forward uses as the size of something pruned."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from harness import corner_masks, random_mask, randomised
from torch import Tensor, nn

from chipnet import Structure, compact, masked

X = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def pruned(model: nn.Module, gates: dict[str, int], realisations=("plain", "indexed")):
    """Prune by several masks; eval and train outputs equal the masked network's. The compact networks and plans."""
    model, found = randomised(model), []
    for realisation in realisations:
        s = Structure(model, X, realisation=realisation)
        free = {site.name: site.free for site in s.sites if site.free}
        assert {name: free.get(name, 0) for name in gates} == gates
        for mask in (random_mask(s, 0.5), random_mask(s, 0.3), *corner_masks(s)):
            plan = s.plan(mask)
            small, big = compact(model, plan), masked(model, plan)
            for train in (False, True):
                torch.testing.assert_close(
                    copy.deepcopy(small).train(train)(X),
                    copy.deepcopy(big).train(train)(X),
                    rtol=0,
                    atol=1e-9,
                )
            found.append((small, plan))
    return found


class Base(nn.Module):
    """Convolution, something in between, convolution."""

    def __init__(self, out: int = 16, **attributes) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(out, 5, 1), nn.Linear(5, 3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(self.between(F.relu(self.a(x))))).mean((2, 3)))

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class View(Base):
    """One number is a size, another divides in training, a third is not read: all are 16."""

    def between(self, x):
        x = x.view(len(x), self.width, -1).view(*x.shape)
        return x / self.temperature if self.training else x


class Both(Base):
    """The size divides, too, in training only."""

    def between(self, x):
        x = x.view(x.shape[0], self.width, -1).view(x.shape)
        return x / self.width if self.training else x


class Scaled(Base):
    """The size scales, too, through a float that no operator shows."""

    def between(self, x):
        return x.view(x.shape[0], self.width, -1).view(x.shape) * self.width**-0.5


class Rest(Base):
    def between(self, x):
        u, v = x.split([self.k, self.rest], 1)
        return torch.cat([v, u], 1)


class Difference(Base):
    def between(self, x):
        u, v = torch.split(x, [self.k, self.dim - self.k], 1)
        return torch.cat([v, u], 1)


class Half(Base):
    def between(self, x):
        u, v = x.split(self.c // 2, 1)
        return u * v.sigmoid()


class Double(Base):
    def between(self, x):
        u, v = x.view(x.shape[0], self.c * 2, *x.shape[2:]).chunk(2, 1)
        return u * v.sigmoid()


class Heads(Base):
    def between(self, x):
        y = x.view(x.shape[0], self.heads, self.dim // self.heads, -1)
        return (y * y.amax(3, keepdim=True)).reshape(x.shape)


class Slices(Base):
    def between(self, x):
        return torch.cat([x[:, self.k :], F.silu(x[:, : self.k])], 1)


class Element(Base):
    """Numbers in a tuple."""

    def between(self, x):
        return x.reshape(x.shape[0], self.sizes[1], -1).reshape(x.shape[0], -1, *self.sizes[2:])


class Expanded(Base):
    """A tensor as wide as the attribute says meets the features."""

    def between(self, x):
        return x + x.mean((1, 2, 3), keepdim=True).expand(-1, self.c, 1, 1)


class Shuffled(Base):
    """Groups in an attribute, the rest from the tensor."""

    def between(self, x):
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class Groups(Base):
    def between(self, x):
        return F.group_norm(x, self.groups, self.scale, self.shift)


FOLLOW = {
    "a size, beside equal numbers": (View(width=16, temperature=16, epochs_seen=16), 15, {"width"}),
    "pieces": (Rest(k=4, rest=12), 16, {"rest", "k"}),
    "a difference": (Difference(k=4, dim=16), 16, {"dim", "k"}),
    "a half": (Half(out=8, c=16), 7, {"c"}),
    "twice": (Double(out=8, c=8), 7, {"c"}),
    "heads": (Heads(heads=4, dim=16), 3, {"heads", "dim"}),
    "slices": (Slices(k=4), 16, {"k"}),
    "an element": (Element(sizes=(16, 16, 4, 4)), 15, {"sizes"}),
    "groups beside a tensor's size": (Shuffled(groups=4), 3, {"groups"}),
    "groups": (
        Groups(groups=4, scale=nn.Parameter(torch.rand(16)), shift=nn.Parameter(torch.rand(16))),
        0,
        {"groups"},
    ),
}


@pytest.mark.parametrize("name", FOLLOW)
def test_a_number_that_forward_uses_as_a_size_follows_it_and_no_other_does(name):
    model, gates, follow = FOLLOW[name]
    before = {n: v for n, v in vars(model).items() if n != "training" and isinstance(v, (int, tuple))}
    changed: set[str] = set()
    for small, plan in pruned(model, {"a": gates}):
        said = {size.name for size in plan.sizes if size.value != size.was}
        mine = {n for n in before if vars(small)[n] != before[n]}
        assert mine == said
        assert all(type(v) is type(before[n]) for n, v in vars(small).items() if n in before)
        assert all(f"{n}" in plan.explain().split("\n", 5)[-1] for n in said)
        changed |= mine
    assert changed == follow
    assert {n: v for n, v in vars(model).items() if n in before} == before


@pytest.mark.parametrize("net", [Both, Scaled])
def test_a_number_that_is_a_size_and_a_value_does_not_follow(net):
    found = pruned(net(width=16), {"a": 0, "b": 5})
    assert all(small.width == 16 for small, _ in found)
    (site,) = [site for site in Structure(randomised(net(width=16)), X).sites if site.name == "a"]
    assert "'self.width' holds this width and is a fixed number elsewhere (test_attributes.py:" in site.reason


def test_a_tensor_expanded_to_an_attribute_follows_what_it_meets():
    assert {small.c for small, _ in pruned(Expanded(c=16), {"b": 5})}


def test_capture_marks_no_number_of_the_users():
    model = View(width=16, temperature=16, epochs_seen=16)
    Structure(randomised(model), X)
    assert all(type(v) is int for v in (model.width, model.temperature, model.a.in_channels))


def test_a_layer_that_computes_its_weight_owns_no_parameter_of_a_layer_whose_name_begins_alike():
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            w = self.weight
            scale = self.other[0].weight.mean() if hasattr(self, "other") else 1.0
            return F.conv2d(x, w * scale, self.bias, self.stride, self.padding)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv10, self.fc = Standardised(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)
            self.conv1.other = (self.conv10,)  # not its own: nobody may freeze a weight that this changes

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.conv10(F.relu(self.conv1(x)))).mean((2, 3)))

    s = Structure(randomised(Net()), X)
    assert "conv1" not in s.graph.frozen


class TrainLiteral(Base):
    """A width that only training has as a number, from the tensor itself."""

    def between(self, x):
        return x * x.shape[1] ** -0.5 if self.training else x


def test_outputs_in_training_are_compared_too():
    assert all(plan.sizes == () for _, plan in pruned(TrainLiteral(), {"a": 0, "b": 5}))
