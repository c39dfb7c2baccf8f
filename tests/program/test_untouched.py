"""The user's model is read, never changed: whatever is done with it, and whatever goes wrong."""

from __future__ import annotations

import dataclasses
import random
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from harness import assert_same, outputs, randomised, snapshot
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from toys import TOYS, made, mask_of

from chipnet import CaptureError, PlanError, Pruner, Structure, compact


class Net(nn.Module):
    """A little of everything: batch norms, dropout, a head for training only, computed weights, a size in an
    attribute, a user's hook, a frozen parameter, an input that is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.split = [5, 7]
        self.left, self.right = spectral_norm(nn.Conv2d(5, 8, 3)), weight_norm(nn.Conv2d(7, 8, 3))
        self.drop = nn.Dropout(0.5)
        self.aux_bn, self.aux = nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.fc = nn.Linear(8, 3)
        self.notes = {"seen": [1, 2]}
        self.stem.bias.requires_grad_(False)
        self.fc.register_forward_hook(lambda module, args, out: out + 0)
        self.register_buffer("mean", torch.zeros(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = x.sub_(self.mean).mul_(2)
        a, b = F.relu(self.bn(self.stem(x)), inplace=True).split(self.split, 1)
        z = F.relu(self.left(a) + self.right(b)).mean((2, 3))
        out = self.fc(self.drop(z))
        return (out, self.aux(self.drop(self.aux_bn(z)))) if self.training else out


class Undecided(nn.Module):
    """Its forward depends on values: ``torch.export`` refuses it, in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return y if float(y.sum()) > 0 else -y


class BadHead(nn.Module):
    """Only its train-mode forward is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = Net(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return self.head(y[0]) if self.training and float(y[0].sum()) > 0 else y


def prepared(kind: type[nn.Module] = Net, training: bool = True) -> tuple[nn.Module, Tensor]:
    """A network whose flags are mixed, with gradients from a step before."""
    torch.manual_seed(0)
    model = kind().train(training)
    model.get_submodule("net" if kind is not Net else "").bn.train(not training)
    list(model.parameters())[-1].sum().backward()
    return model, torch.randn(2, 3, 6, 6)


def some(s: Structure) -> Tensor:
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[::3] = False
    return mask


@pytest.mark.parametrize("realisation", ["plain", "indexed"])
@pytest.mark.parametrize("training", [True, False])
def test_capture_plan_and_compaction_change_nothing(training, realisation):
    model, x = prepared(training=training)
    before, given, flag = snapshot(model), x.clone(), x.requires_grad
    s = Structure(model, x, realisation=realisation)
    assert_same(before, snapshot(model))
    s.harden(torch.rand(s.gates), {"macs": 0.6})
    plan = s.plan(some(s))
    plan.explain()
    assert_same(before, snapshot(model))
    small = compact(model, plan)
    assert_same(before, snapshot(model))
    assert plan.frozen
    assert plan.sizes
    assert small.split != model.split == [5, 7]
    assert torch.equal(x, given)
    assert x.requires_grad == flag


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", TOYS)
def test_toys_are_not_changed(name, training):
    torch.manual_seed(0)
    model = randomised(TOYS[name].build()).train(training)
    next(iter(model.children())).train(not training)
    x = torch.randn(TOYS[name].shape, dtype=torch.float64)
    before = snapshot(model)
    s = Structure(model, x, realisation="indexed")
    compact(model, s.plan(torch.ones(s.gates, dtype=torch.bool)))
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("kind", [Undecided, BadHead])
@pytest.mark.parametrize("training", [True, False])
def test_a_failed_capture_changes_nothing(kind, training):
    model, x = prepared(kind, training)
    before, given = snapshot(model), x.clone()
    if kind is Undecided:
        with pytest.raises(CaptureError, match=r"test_untouched\.py"):
            Structure(model, x)
    else:
        assert "head.weight" in Structure(model, x).untraced
    assert_same(before, snapshot(model))
    assert torch.equal(x, given)


def test_a_refused_budget_leaves_no_gates():
    model, x = prepared()
    before = snapshot(model)
    with pytest.raises(ValueError, match="smallest"):
        Pruner(model, x, {"macs": 1e-6}, steps=1)
    assert_same(before, snapshot(model))


def test_a_failed_compaction_changes_nothing():
    model, _, s = made(TOYS["chain"])
    plan = s.plan(mask_of(s, {"bn1": (0, 1)}))
    before = snapshot(model)
    keep = {n: dict(axes) for n, axes in plan.keep.items()}
    keep["conv2.weight"][1] = (0, 2)
    with pytest.raises(PlanError, match="outputs differ"):
        compact(model, dataclasses.replace(plan, keep=keep))
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("method", ["chipnet", "random"])
def test_after_detach_nothing_but_the_weights_has_changed(method):
    model, x = prepared()
    model.bn.train()
    whole, before, first = snapshot(model), snapshot(model, weights=False), model.fc.weight.detach().clone()
    pruner = Pruner(model, x, {"macs": 0.6}, steps=3, method=method)
    pruner.detach()
    assert_same(whole, snapshot(model))
    pruner = Pruner(model, x, {"macs": 0.6}, steps=3, method=method)
    for module in model.modules():  # what a train-mode forward itself changes stays out of the comparison
        module.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x.clone()).square().mean() + pruner.loss()).backward()
        optimizer.step()
        pruner.step()
    pruner.harden()
    with pruner.hardened():
        model(x.clone())
    pruner.detach()
    model.train()
    assert_same(before, snapshot(model, weights=False))
    assert not torch.equal(model.fc.weight, first)


def test_batch_norms_count_the_users_batches_only():
    model, x = prepared()
    model.train()
    pruner = Pruner(model, x, {"macs": 0.6}, steps=3)
    assert model.bn.num_batches_tracked == model.aux_bn.num_batches_tracked == 0
    for _ in range(3):
        out, aux = model(x.clone())
        (out.sum() + aux.sum() + pruner.loss()).backward()
        pruner.step()
    pruner.harden()
    pruner.detach()
    compact(model, pruner.harden())
    assert model.bn.num_batches_tracked == model.aux_bn.num_batches_tracked == 3


def test_gates_attached_and_detached_leave_the_same_outputs():
    model, x = prepared(training=False)
    out = outputs(model.eval(), (x,))[0]
    pruner = Pruner(model, x, {"macs": 0.6}, steps=3, method="random")
    pruner.harden()
    assert not torch.equal(outputs(model, (x,))[0], out)
    pruner.detach()
    assert torch.equal(outputs(model, (x,))[0], out)


class Noisy(nn.Module):
    """Draws random numbers, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.aux = nn.Conv2d(3, 8, 3), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0 * torch.rand_like(x)
        z = F.dropout(F.relu(self.a(x)), 0.1, self.training).mean((2, 3))
        return self.fc(z) + self.aux(z) if self.training else self.fc(z)


@pytest.mark.parametrize("kind", [Net, Noisy])
def test_the_users_random_numbers_are_not_used_up(kind, monkeypatch):
    torch.manual_seed(0)

    def seeded(seed):
        raise AssertionError("an accelerator that is not used is seeded, and not put back")

    monkeypatch.setattr("torch.cuda.manual_seed_all", seeded)
    model, x = kind(), torch.randn(2, 3, 6, 6)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    s = Structure(model, x)
    small = compact(model, s.plan(some(s)))
    pruner = Pruner(model, x, {"macs": 0.6}, steps=3)
    pruner.harden()
    pruner.detach()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert small is not model


class Counting(nn.Module):
    """A forward that takes notes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)
        self.calls, self.shapes, self.mode = 0, [], ""

    def train(self, mode: bool = True) -> Counting:
        self.mode = "train" if mode else "eval"
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.shapes.append(tuple(x.shape))
        return self.fc(F.relu(self.a(x)).mean((2, 3)))


def test_notes_that_a_forward_takes_are_the_users_own():
    model, x = Counting().train(), torch.randn(2, 3, 6, 6)
    before = snapshot(model)
    s = Structure(model, x)
    compact(model, s.plan(some(s)))
    assert_same(before, snapshot(model))


def test_an_input_that_needs_gradients_is_taken_as_it_is():
    leaf = torch.randn(2, 3, 6, 6, requires_grad=True)
    for given in (leaf, leaf * 1):
        s = Structure(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)), given)
        assert s.gates == 8
        assert given.requires_grad
        assert leaf.grad is None


# -- forwards that store things -----------------------------------------------------------------------------
class Detector(nn.Module):
    """Keeps grids: on itself, in lists and dicts, on its class; registers a buffer and counts in another."""

    shape: torch.Size | None = None
    grid = torch.empty(0)
    known: ClassVar[dict[int, Tensor]] = {}
    seen: ClassVar[list[list[int]]] = [[]]

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.history: list[Tensor] = []
        self.by_name = {"old": torch.ones(1)}
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        if self.shape != x.shape:
            self.grid, self.shape = torch.arange(x.shape[-1], dtype=x.dtype), x.shape
            self.register_buffer("anchors", torch.ones(x.shape[-1], dtype=x.dtype), persistent=False)
        self.calls += 1
        self.last = y
        self.by_name["new"] = y * 2
        self.history.append(y)
        self.known.setdefault(x.shape[-1], torch.arange(x.shape[-1], dtype=x.dtype))
        self.seen[0].append(len(x))
        type(self).total = random.random() + np.random.rand()
        return y + self.grid + self.anchors + self.known[x.shape[-1]]


class Kept(Detector):
    """What it writes to its class is its own."""

    known: ClassVar[dict[int, Tensor]] = {}
    seen: ClassVar[list[list[int]]] = [[]]


class Raising(Detector):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise OSError("no weights")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [Detector, Raising])
def test_what_a_forward_stores_is_stored_on_a_copy(kind, training):
    model, x = kind().train(training), torch.randn(2, 3, 6, 6)
    random.seed(3)
    np.random.seed(3)
    before = snapshot(model), random.getstate(), np.random.get_state()[1].tolist()
    shared = {n: v for n, v in vars(Detector).items() if not n.startswith("__")}
    if kind is Raising:
        with pytest.raises(CaptureError, match="OSError: no weights"):
            Structure(model, x)
    else:
        assert Structure(model, x).gates == 8
    assert_same(before[0], snapshot(model))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert {n: v for n, v in vars(Detector).items() if not n.startswith("__")} == shared
    assert (Detector.known, Detector.seen) == ({}, [[]])


def test_a_network_that_stores_things_is_pruned_trained_and_copied():
    model, x = Kept().double(), torch.randn(2, 3, 6, 6).double()
    pruner = Pruner(model, x, "macs=0.6", steps=2)
    for _ in range(2):
        (model(x).sum() + pruner.loss()).backward()  # `last` and `history` have gradients now
        pruner.step()
    plan = pruner.harden()
    pruner.detach()
    small = compact(model, plan)
    assert small.a.out_channels == sum(plan.mask) < 8
    assert small.last.shape == model.last.shape
