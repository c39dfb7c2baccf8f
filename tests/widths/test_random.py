"""Whatever the network: a refit makes no layer worse, and what is shrunk meets its budget."""

import random

import pytest
import torch
from harness import assert_same, snapshot
from random_networks import build, inputs_of, random_recipe

import chipnet
from chipnet import BudgetError


def _described(model):
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(n, type(m)) for n, m in model.named_modules()], [(n, t.shape, t.dtype) for n, t in tensors]


@pytest.mark.parametrize(
    "number",
    # dead branches, stand-ins, gates that share channels, inputs that never vary
    [7, 15, 20, 24, 37],
)
def test_random_networks(number):
    recipe = random_recipe(random.Random(f"0-{number}").randint)
    model = build(recipe)
    batches = [inputs_of(recipe, seed=seed) for seed in range(3)]
    before = snapshot(model)
    s = chipnet.Structure(model, batches[0], realisation=recipe.realisation)
    generator = torch.Generator().manual_seed(recipe.seed)
    masks = [s.canonical(torch.rand(s.gates, generator=generator) < density) for density in (0.6, 0.8)]
    for mask in [m for m in masks if s.connected(m)]:
        plan = s.plan(mask)
        small = chipnet.compact(model, plan)
        as_cut = _described(small)
        assert all(layer.after <= layer.before for layer in chipnet.refit(model, small, plan, batches))
        assert _described(small) == as_cut
        assert all(bool(torch.isfinite(t).all()) for t in small.parameters())
        small(*batches[1])
    try:
        found = chipnet.shrink(
            model, batches, "macs=0.6", example_inputs=batches[0], realisation=recipe.realisation
        )
    except BudgetError:
        found = None
    if found is not None:
        assert found.plan.compact.macs <= s.limits("macs=0.6")["macs"]
        assert found.refitted <= found.cut * (1 + 1e-6) + 1e-12
        found.model(*batches[1])
    assert_same(before, snapshot(model))
