"""The compact network: the user's class, smaller tensors, the masked network's outputs; the model untouched."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from toys import (
    ANSWERS,
    RESIDUAL,
    TOYS,
    Answer,
    Chain,
    assert_same_outputs,
    independently_masked,
    made,
    mask_of,
    outputs,
    randomised,
)

from chipnet import PlanError, Structure, compact, masked, verify_compact


def prepared(name: str, answer: Answer, realisation: str):
    model, x, s = made(TOYS[name], realisation=realisation, share=answer.share)
    plan = s.plan(mask_of(s, answer.open))
    return model, x, s, plan


@pytest.mark.parametrize(("name", "answer", "realisation"), ANSWERS)
def test_compact_computes_what_the_masked_network_computes(name, answer, realisation):
    model, x, s, plan = prepared(name, answer, realisation)
    small = compact(model, plan, verify=False)
    assert_same_outputs(independently_masked(model, s, mask_of(s, answer.open)), small, x)
    assert_same_outputs(masked(model, plan), small, x)
    difference, scale = verify_compact(model, small, plan, (x,))
    assert difference <= 1e-9 * scale


@pytest.mark.parametrize(("name", "answer", "realisation"), ANSWERS)
def test_compact_works_for_other_batches_and_sizes(name, answer, realisation):
    model, x, _s, plan = prepared(name, answer, realisation)
    small, big = compact(model, plan), masked(model, plan)
    assert_same_outputs(big, small, torch.randn(7, *x.shape[1:], dtype=torch.float64))
    if name not in ("flatten", "layer_norm"):  # which are of one size
        assert_same_outputs(big, small, torch.randn(1, 3, 11, 13, dtype=torch.float64))


@pytest.mark.parametrize(("name", "answer", "realisation"), ANSWERS)
def test_compact_trains(name, answer, realisation):
    model, x, _s, plan = prepared(name, answer, realisation)
    small = compact(model, plan).train()
    for _ in range(2):
        loss = sum((o**2).mean() for o in (lambda o: o if isinstance(o, tuple) else (o,))(small(x)))
        loss.backward()  # type: ignore[union-attr]
    for n, p in small.named_parameters():
        assert p.numel() == 0 or p.grad is not None, n
        assert p.grad is None or (p.grad.shape == p.shape and torch.isfinite(p.grad).all())
    changed = small.eval()
    with torch.no_grad():
        for p in changed.parameters():
            p.sub_(0.01 * (p.grad if p.grad is not None else 0))
    outputs(changed, x)


@pytest.mark.parametrize(("name", "answer", "realisation"), ANSWERS)
def test_compact_keeps_class_keys_and_says_its_sizes(name, answer, realisation):
    model, _, _, plan = prepared(name, answer, realisation)
    small = compact(model, plan)
    assert type(small) is type(model)
    gone = {d.module for d in plan.stand_ins}
    expected = [k for k in model.state_dict() if k.rpartition(".")[0] not in gone]
    constants = [f"{d.module}.bias" for d in plan.stand_ins if d.kind == "constant"]
    assert sorted(small.state_dict()) == sorted(expected + constants)
    assert [n for n, _ in small.named_children()] == [n for n, _ in model.named_children()]
    for m in small.modules():
        if isinstance(m, nn.Conv2d):
            assert m.weight.shape[:2] == (m.out_channels, m.in_channels // m.groups)
        elif isinstance(m, nn.Linear):
            assert m.weight.shape == (m.out_features, m.in_features)
        elif isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None
            assert m.running_mean.shape == (m.num_features,)


@pytest.mark.parametrize(("name", "answer", "realisation"), ANSWERS)
def test_compact_copies_and_takes_its_own_state_dict(name, answer, realisation):
    model, x, _, plan = prepared(name, answer, realisation)
    small = compact(model, plan)
    assert_same_outputs(small, copy.deepcopy(small), x)
    state = {k: v.clone() for k, v in small.state_dict().items()}
    torch.manual_seed(1)
    other = compact(randomised(TOYS[name].build()), plan)
    assert any(not torch.equal(p, q) for p, q in zip(outputs(other, x), outputs(small, x), strict=True))
    other.load_state_dict(state)
    assert_same_outputs(small, other, x)


def test_verification_catches_a_wrong_index():
    """One wrong column, one missing zero, one swapped map: each is an error, not a worse network."""
    model, _, s = made(TOYS["chain"])
    plan = s.plan(mask_of(s, {"bn1": (0, 2, 5), "bn2": (1, 4, 6, 10)}))
    compact(model, plan)
    keep = {n: dict(axes) for n, axes in plan.keep.items()}
    keep["fc.weight"][1] = (1, 4, 6, 9)
    with pytest.raises(PlanError, match="does not compute what the masked one does"):
        compact(model, dataclasses.replace(plan, keep=keep))
    zero = {k: v for k, v in plan.zero.items() if not k.startswith("bn1.")}
    with pytest.raises(PlanError, match="outputs differ by"):
        compact(model, dataclasses.replace(plan, zero=zero))


def test_verification_catches_a_wrong_index_map():
    model, _, s = made(RESIDUAL, realisation="indexed", share=False)
    plan = s.plan(mask_of(s, {"bn0": (0, 1), "bn1": (2, 3), "bn2": (1, 4)}))
    remaps = tuple(dataclasses.replace(r, index=(0, -1, 1)) if r.module == "bn2" else r for r in plan.remaps)
    assert remaps != plan.remaps
    with pytest.raises(PlanError, match="outputs differ"):
        compact(model, dataclasses.replace(plan, remaps=remaps))
    compact(model, dataclasses.replace(plan, remaps=remaps), verify=False)  # whoever asks for it gets it


def test_verification_is_strict_in_float32_too():
    torch.manual_seed(0)
    model = randomised(Chain()).float()
    s = Structure(model, torch.randn(2, 3, 5, 5))
    plan = s.plan(mask_of(s, {"bn1": (0, 2, 5)}))
    compact(model, plan)
    keep = {n: dict(axes) for n, axes in plan.keep.items()}
    keep["conv2.weight"][1] = (0, 2, 4)
    with pytest.raises(PlanError, match="outputs differ"):
        compact(model, dataclasses.replace(plan, keep=keep))


def test_frozen_parameters_stay_frozen_and_a_shared_module_shared():
    class Aliased(nn.Module):
        """conv0 3>7(g) - relu - a 7>7(g) - relu - b, which is a - relu - head 7>5"""

        def __init__(self) -> None:
            super().__init__()
            self.conv0, self.a = nn.Conv2d(3, 7, 1), nn.Conv2d(7, 7, 1)
            self.b = self.a
            self.head = nn.Conv2d(7, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            for layer in (self.conv0, self.a, self.b):
                x = torch.relu(layer(x))
            return self.head(x)

    torch.manual_seed(0)
    model = randomised(Aliased())
    model.conv0.weight.requires_grad_(False)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    for realisation in ("plain", "indexed"):
        s = Structure(model, x, realisation=realisation)  # type: ignore[arg-type]
        plan = s.plan(s.harden(torch.rand(s.gates), {"macs": 0.5}))
        small = compact(model, plan)
        assert small.a is small.b
        assert small.a.weight.shape[0] < 7
        assert plan.compact.params == sum(p.numel() for p in small.parameters())
        assert not small.conv0.weight.requires_grad
        assert small.a.weight.requires_grad
