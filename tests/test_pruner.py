"""A pruner refuses what it cannot use before anything changes, and says what went wrong while it was used."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import chipnet
from chipnet import CaptureError, ChipNetError, ConfigError, Pruner, Structure
from chipnet.gates.hooks import hooks
from chipnet.methods import METHODS, Fisher

X, Y = torch.randn(8, 3, 6, 6), torch.arange(8) % 3


class Net(nn.Module):
    """conv 3>10 - norm - relu - conv 10>12 - norm - relu - mean - linear 12>3"""

    def __init__(self, width=12):
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10)
        self.b, self.m = nn.Conv2d(10, width, 3), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 3)

    def forward(self, x):
        return self.fc(F.relu(self.m(self.b(F.relu(self.n(self.a(x)))))).mean((2, 3)))


def made(method="chipnet", budget="macs=0.5", steps=8, net=None, **options):
    torch.manual_seed(0)
    net = net or Net()
    return net, Pruner(net, X[:1], budget, steps=steps, method=method, **options)


def train(net, pruner, steps, x=X, skip=False):
    learnt = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learnt, lr=0.01) if learnt else None
    for _ in range(steps):
        net.zero_grad()
        (F.cross_entropy(net(x), Y) + pruner.loss()).backward()
        if optimizer is not None and not skip:
            optimizer.step()
        pruner.step()


def unchanged(pruner, before):
    now = pruner.state_dict()
    assert {k: now[k] for k in ("for", "taken", "steps")} == {k: before[k] for k in ("for", "taken", "steps")}
    torch.testing.assert_close(now["method"], before["method"])


def bad():
    x = X.clone()
    x[0, 0, 0, 0] = float("nan")
    return x


@pytest.mark.parametrize("method", METHODS)
def test_one_nan_in_an_image_is_noticed_in_its_step(method):
    net, pruner = made(method)
    train(net, pruner, 2)
    with pytest.raises(
        ChipNetError, match=r"in step 3 of 8 weights of this Net are NaN or infinite: .*a\.weight"
    ):
        train(net, pruner, 1, bad())
    with pytest.raises(ChipNetError, match="after 2 of 8 steps weights of this Net are NaN or infinite"):
        pruner.harden()
    for p in pruner.method.learnt():
        assert p.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_a_step_that_the_user_skips_poisons_nothing(method):
    measures = ":every=1" if method in ("fisher", "chipnet") else ""
    net, pruner = made(method + measures)
    net.eval()  # batch norms keep their statistics
    train(net, pruner, 2)
    if method in ("chipnet-2026a", "chipnet-paper", "bar", "taylor", "fisher", "chipnet"):
        with pytest.warns(UserWarning, match="in step 3 of 8 the gradient of the gates was not finite"):
            train(net, pruner, 1, bad(), skip=True)
    else:
        train(net, pruner, 1, bad(), skip=True)
    train(net, pruner, 5)
    plan = pruner.harden()
    assert all(p.isfinite().all() for p in chipnet.compact(net, plan).parameters())


def test_steps_that_overflow_a_scale_are_no_faults():
    net, pruner = made()
    net.eval()
    (F.cross_entropy(net(bad()), Y) + pruner.loss()).backward()
    pruner.step(loss_scale=1024.0)
    net.zero_grad()
    train(net, pruner, 7)
    pruner.harden()


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), "2", None, torch.tensor(2.0)])
def test_a_loss_scale_that_is_none_is_refused_and_the_step_not_taken(scale):
    net, pruner = made()
    F.cross_entropy(net(X), Y).backward()
    with pytest.raises(ConfigError, match=r"loss_scale must be a number above 0, got .*scaler.get_scale"):
        pruner.step(scale)
    assert pruner.taken == 0
    pruner.step(2)
    assert pruner.taken == 1


def test_infinities_that_a_network_is_made_with_are_its_own():
    net = Net()
    net.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    net, pruner = made(net=net)
    train(net, pruner, 8)
    pruner.harden()
    pruner.detach()
    for odd in (float("nan"), torch.inf):
        with torch.no_grad():
            net.fc.weight[0, 0] = odd
        with pytest.raises(ChipNetError, match=r"NaN or infinite: fc\.weight"):
            made(net=net)
    assert not list(hooks(net))


OTHERS = {
    "method": ({"method": "taylor"}, "method was taylor, and is chipnet"),
    "setting": ({"method": "chipnet:floor=0.2"}, "floor was 0.2, and is 0"),
    "budget": ({"budget": "params=0.5"}, "budget was params=0.5, and is macs=0.5"),
    "steps": ({"steps": 9}, "the saved pruner runs 9 steps, this one 8"),
    "structure": ({"net": Net(13)}, r"gates was 23, and is 22.*sites differ, .* 13 channels.* 12 channels"),
    "sites": ({"ignore": "m"}, "gates was 10, and is 22"),
}


@pytest.mark.parametrize("old", [False, True], ids=["", "of-before"])
@pytest.mark.parametrize("other", OTHERS)
def test_a_state_of_another_pruner_is_refused(other, old):
    options, said = copy.deepcopy(OTHERS[other])
    _, theirs = made(**options)
    net, pruner = made()
    state, before = theirs.state_dict(), copy.deepcopy(pruner.state_dict())
    if old:
        del state["for"]
        if other in ("method", "setting", "budget"):
            pytest.skip("its shapes are the same")
        said = "." if other != "steps" else said
    with pytest.raises(ConfigError, match=said):
        pruner.load_state_dict(state)
    unchanged(pruner, before)
    train(net, pruner, 8)
    pruner.harden()


@pytest.mark.parametrize("method", METHODS)
def test_states_of_before_fit_and_damaged_ones_change_nothing(method):
    net, pruner = made(method)
    train(net, pruner, 2)
    state = copy.deepcopy(pruner.state_dict())
    del state["for"]
    other, again = made(method, seed=3)
    again.load_state_dict(state)
    assert again.taken == 2
    before = copy.deepcopy(again.state_dict())
    for damaged in ({}, {**state, "method": {}}, {**state, "taken": -1}, {**state, "for": {"version": 99}},
                    {**state, "for": None},
                    {**state, "method": {**state["method"], "generator": torch.zeros(3)}}):  # fmt: skip
        with pytest.raises(ConfigError):
            again.load_state_dict(damaged)
    unchanged(again, before)
    again.detach()
    assert not list(hooks(other))


def test_options_beside_a_structure_and_structures_of_others_are_refused():
    net = Net()
    structure = Structure(net, X[:1])
    with pytest.raises(
        ConfigError, match=r"ignore, min_channels, round_to too: give them to Structure\(...\)"
    ):
        Pruner(net, structure, "macs=0.5", steps=1, ignore="a", min_channels=8, round_to=8)
    for other, why in ((Net(13), r"'b.bias' has shape \(13,\), not \(12,\)"), (nn.Linear(3, 3), "a Linear")):
        with pytest.raises(ConfigError, match=f"of another network than the model: .*{why}"):
            Pruner(other, structure, "macs=0.5", steps=1)
        assert not list(hooks(other))
    Pruner(copy.deepcopy(net), structure, "macs=0.5", steps=1)
    Pruner(net, structure, "macs=0.5", steps=1)
    with pytest.raises(CaptureError, match=r"chipnet\.detach\(model\)"):
        Pruner(net, structure, "macs=0.5", steps=1)
    with pytest.raises(CaptureError, match=r"chipnet\.detach\(model\)"):
        Structure(copy.deepcopy(net), X[:1])


@pytest.mark.parametrize("frozen", ["all", "gated", "head"])
@pytest.mark.parametrize("method", METHODS)
def test_masks_of_frozen_networks_are_learnt_to_the_end(method, frozen):
    net = Net()
    parts = {"all": [net], "gated": [net.n, net.m], "head": [net.fc]}[frozen]
    for part in parts:
        part.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    net, pruner = made(method, net=net)
    train(net, pruner, 8)
    small = chipnet.compact(net, pruner.harden())
    for name, p in net.named_parameters():
        assert p.requires_grad or torch.equal(p, before[name])
        assert small.get_parameter(name).requires_grad == p.requires_grad


def test_hardening_early_is_said_unless_it_is_meant():
    net, pruner = made()
    train(net, pruner, 3)
    with pytest.warns(UserWarning, match=r"hardened after 3 of 8 steps: .*harden\(early=True\)") as caught:
        pruner.harden()
    assert caught[0].filename == __file__
    assert pruner.harden(early=True) == pruner.harden(pruner.mask)
    train(net, pruner, 5)
    pruner.harden()


def test_a_pruner_that_cannot_be_made_leaves_no_hooks():
    class Broken(Fisher):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            raise RuntimeError("no")

    net = Net()
    with pytest.raises(RuntimeError, match="no"):
        made(Broken, net=net)
    assert not list(hooks(net))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_pruner_is_of_one_network():
    net, pruner = made()
    net.pruner = pruner
    assert copy.deepcopy(net).pruner is pruner
    with pytest.raises(ConfigError, match=r"save its state_dict\(\)"):
        pickle.dumps(pruner)


def test_a_compiled_network_is_pruned_as_the_one_inside():
    net, pruner = made()
    twin = copy.deepcopy(chipnet.detach(copy.deepcopy(net)))
    other = Pruner(torch.compile(twin, backend="eager"), X[:1], "macs=0.5", steps=8)
    train(net, pruner, 8)
    train(twin, other, 8)
    assert pruner.harden() == other.harden()
