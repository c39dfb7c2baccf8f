"""Which channels exist under a mask: hand-worked answers of every toy, in every realisation."""

from __future__ import annotations

import pytest
import torch
from toys import (
    ANSWERS,
    OPTIONS,
    RESIDUAL,
    TOYS,
    TWO_OUTPUTS,
    Answer,
    independently_masked,
    made,
    mask_of,
    outputs,
    random_mask,
)

from chipnet import PlanError, compact


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
def test_gates_sit_where_worked_out_by_hand(name, share):
    toy = TOYS[name]
    _, _, s = made(toy, share=share)
    assert {site.name: site.free for site in s.sites if site.free} == dict(toy.gated)
    assert s.gates == sum(toy.gated.values()) - (toy.shared if share else 0)


@pytest.mark.parametrize("name", [n for n, t in TOYS.items() if t.whole])
def test_what_is_kept_whole_says_why(name):
    toy = TOYS[name]
    _, _, s = made(toy)
    reasons = {site.name: site.reason for site in s.sites}
    for site, words in toy.whole.items():
        for word in words:
            assert word in reasons[site]


@pytest.mark.parametrize(("name", "answer", "realisation"), ANSWERS)
def test_indices_that_stay_are_those_worked_out_by_hand(name: str, answer: Answer, realisation: str):
    _, _, s = made(TOYS[name], realisation=realisation, share=answer.share)
    plan = s.plan(mask_of(s, answer.open))
    assert {n: dict(axes) for n, axes in plan.keep.items()} == answer.keep
    for weight, shut in answer.zero.items():
        assert plan.zero[weight] == (0, shut)
    assert {d.module: d.kind for d in plan.stand_ins} == dict(answer.stand_ins)
    assert {(r.module, r.side, r.index) for r in plan.remaps} == set(answer.remaps)


def test_a_shut_gate_and_a_dead_branch_read_the_same():
    _, _, s = made(RESIDUAL)
    dead = mask_of(s, {"bn1": ()})
    ends = {site.name: i for i, site in enumerate(s.sites)}
    opened = torch.split(s.analysis.open(dead), [site.channels for site in s.sites])
    assert opened[ends["bn0"]].all()
    assert not opened[ends["bn1"]].any()
    assert not opened[ends["bn2"]].any()  # its gates are open, but the input no longer reaches it


def test_canonical_closes_what_does_nothing():
    _, _, s = made(RESIDUAL, share=False)
    names = {site.name: site for site in s.sites}
    for shut in ("bn1", "bn2"):
        mask = s.canonical(mask_of(s, {shut: ()}))
        assert not mask[names["bn1"].gates].any()
        assert not mask[names["bn2"].gates].any()
        assert mask[names["bn0"].gates].all()
        assert torch.equal(s.canonical(mask), mask)


@pytest.mark.parametrize(("realisation", "share"), OPTIONS)
@pytest.mark.parametrize("name", TOYS)
def test_canonical_changes_no_output(name, realisation, share):
    model, x, s = made(TOYS[name], realisation=realisation, share=share)
    for seed in range(3):
        mask = torch.rand(s.gates, generator=torch.Generator().manual_seed(seed)) < 0.4
        if not s.connected(mask):
            continue
        a, b = (compact(model, s.plan(m), verify=False) for m in (mask, s.canonical(mask)))
        for p, q in zip(outputs(a, x), outputs(b, x), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9 * float(p.abs().max()))


def test_every_output_must_be_reached():
    _, _, s = made(TWO_OUTPUTS)
    shut = mask_of(s, {"bn1": ()})
    assert not s.connected(shut)
    with pytest.raises(PlanError, match="does not reach every output"):
        s.plan(shut)
    assert s.connected(mask_of(s, {"bn1": (3,)}))


@pytest.mark.parametrize("name", TOYS)
def test_connected_is_whether_the_input_changes_every_output(name):
    """The formula against the network itself: with random parameters an input that is read shows."""
    model, x, s = made(TOYS[name], share=False)
    seen = set()
    for seed in range(12):
        mask = torch.rand(s.gates, generator=torch.Generator().manual_seed(seed)) < 0.15 + 0.05 * seed
        masked = independently_masked(model, s, mask)
        first, second = (masked(v) for v in (x, torch.randn_like(x) * 3))
        pairs = zip(*(o if isinstance(o, tuple) else (o,) for o in (first, second)), strict=True)
        changes = all(bool((a != b).any()) for a, b in pairs)
        if s.connected(mask):
            seen.add(True)
        else:
            seen.add(False)
            assert not changes
        if changes:
            assert s.connected(mask)
    assert True in seen


def test_random_masks_of_a_toy_are_sometimes_connected():
    _, _, s = made(RESIDUAL)
    assert random_mask(s, 0.7, 0) is not None
    assert random_mask(s, 0.0, 0) is None
