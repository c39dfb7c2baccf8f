"""Gate values without a network: what forwards see, and what of their gradients reaches what is learnt."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from chipnet.gates import values as module
from chipnet.gates.values import GateValues

CPU = torch.device("cpu")


@st.composite
def layouts(draw):
    """Gates, and of several sites the gate of each channel; -1: none."""
    gates = draw(st.integers(1, 5))
    channel = st.integers(-1, gates - 1)
    return gates, draw(st.lists(st.lists(channel, min_size=1, max_size=4), min_size=1, max_size=3))


def made(sites, gates, soft=None):
    psi = nn.Parameter(torch.linspace(-1, 1, gates, dtype=torch.float64))
    found = GateValues([np.array(s) for s in sites], gates, soft or (lambda: torch.sigmoid(psi)), CPU)
    return psi, found


def channels(sites, per_gate):
    """Per site, the values of its channels: the slow reference."""
    return [torch.tensor([1.0 if g < 0 else float(per_gate[g]) for g in site]).double() for site in sites]


@given(layouts(), st.integers(1, 3), st.booleans(), st.randoms(use_true_random=False))
def test_gradients_of_all_backward_passes_reach_what_is_learnt(layout, passes, scaled, random):
    """The gradient of sum(weights * values) is weight * derivative, summed over channels and backward passes."""
    gates, sites = layout
    psi, values = made(sites, gates)
    scale = 8.0 if scaled else 1.0
    expected = torch.zeros(gates, dtype=torch.float64)
    z = torch.sigmoid(psi.detach())
    for _ in range(passes):
        seen = values.by_site()
        for found, reference in zip(seen, channels(sites, z), strict=True):
            torch.testing.assert_close(found.detach(), reference)
        weights = [[random.uniform(-1, 1) for _ in site] for site in sites]
        loss = sum((torch.tensor(w).double() * s).sum() for w, s in zip(weights, seen, strict=True))
        (loss * scale).backward()
        for site, mine in zip(sites, weights, strict=True):
            for g, w in zip(site, mine, strict=True):
                if g >= 0:
                    expected[g] += w * z[g] * (1 - z[g])
    assert psi.grad is None  # until the step ends
    assert bool(values.pass_gradient_on([psi], scale))
    torch.testing.assert_close(psi.grad, expected, rtol=1e-5, atol=1e-7)
    psi.grad = None
    assert bool(values.pass_gradient_on([psi]))  # nothing has gathered since
    assert psi.grad is None


@given(layouts(), st.data())
def test_hard_values_are_what_forwards_and_copies_see(layout, data):
    gates, sites = layout
    psi, values = made(sites, gates)
    total = sum(map(len, sites))
    opened = torch.tensor(data.draw(st.lists(st.booleans(), min_size=total, max_size=total)))
    values.by_site()
    values.fix(opened)
    for seen in (values.by_site(), values.constants.on(CPU)):
        assert torch.equal(torch.cat(list(seen)), opened.float())
        assert not any(part.requires_grad for part in seen)
    values.forget()
    values.publish()
    expected = channels(sites, torch.sigmoid(psi.detach()))
    with torch.no_grad():
        for found, reference in zip(values.by_site(), expected, strict=True):
            torch.testing.assert_close(found, reference)


def test_values_are_made_once_a_step_and_never_without_gradients():
    made_values = []
    psi = nn.Parameter(torch.zeros(2))

    def soft():
        made_values.append(torch.is_grad_enabled())
        return torch.sigmoid(psi)

    _, values = made([[0, 1], [1]], 2, soft)
    values.publish()
    with torch.no_grad():
        values.by_site()
    first = values.by_site()
    assert values.by_site() is first
    assert made_values == [False, True]
    values.pass_gradient_on([psi])
    values.by_site()
    assert made_values == [False, True, True]


def test_values_that_nothing_is_learnt_behind_are_constants():
    _, values = made([[0, -1]], 1, lambda: torch.full((1,), 0.25))
    (seen,) = values.by_site()
    assert seen.tolist() == [0.25, 1.0]
    assert not seen.requires_grad
    assert bool(values.pass_gradient_on([]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_teach_nothing(bad):
    psi, values = made([[0, 1]], 2)
    (seen,) = values.by_site()
    (seen * torch.tensor([1.0, bad])).sum().backward()
    assert not bool(values.pass_gradient_on([psi]))
    assert psi.grad.tolist() == [0.0, 0.0]
    psi.grad = None
    (seen,) = values.by_site()
    (seen * torch.tensor([1.0, bad])).sum().backward()
    assert bool(values.pass_gradient_on([psi], 1024.0))  # a scale that is too large explains it
    assert psi.grad is None


def test_own_gradients_are_unscaled_only_where_they_were_scaled():
    for own_scaled, expected in ((True, 1.0), (False, 4.0)):
        psi, values = made([[0]], 1)
        psi.grad = torch.full((1,), 4.0, dtype=torch.float64)
        (0.0 * values.by_site()[0]).sum().backward()
        values.pass_gradient_on([psi], 4.0, own_scaled=own_scaled)
        assert psi.grad.item() == expected


@pytest.mark.parametrize("backward", [True, False])
def test_processes_average_once_a_step_and_each_takes_part(monkeypatch, backward):
    """Two processes: the other one has the gradient 3 everywhere."""
    shared = []

    def mean(gradient, group):
        shared.append(group)
        return (gradient + 3) / 2

    monkeypatch.setattr(module, "world", lambda group: 2)
    monkeypatch.setattr(module, "mean_", mean)
    psi, values = made([[0, 0], [0]], 1, None)
    seen = values.by_site()
    if backward:
        (seen[0].sum() + seen[1].sum()).backward()
    values.pass_gradient_on([psi], group="ours")
    assert shared == ["ours"]
    z = torch.sigmoid(psi.detach())
    torch.testing.assert_close(psi.grad, (2.0 if backward else 1.5) * 3 * z * (1 - z))


def test_copies_share_values_and_pickles_keep_those_of_their_time():
    _, values = made([[0, 1]], 2)
    values.publish()
    copied, written = copy.deepcopy(values.constants), pickle.dumps(values.constants)
    then = values.constants.on(CPU)[0].clone()
    values.fix(torch.tensor([True, False]))
    assert copied.on(CPU)[0].tolist() == [1.0, 0.0]
    assert torch.equal(pickle.loads(written).on(CPU)[0], then)


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_what_is_made_in_another_mode_is_learnt_as_any(mode):
    psi, values = made([[0, 1]], 2, None)
    with mode():
        values.publish()
        values.by_site()
    (seen,) = values.by_site()
    assert seen.dtype == torch.float64
    seen.sum().backward()
    values.pass_gradient_on([psi])
    assert psi.grad.abs().min() > 0
