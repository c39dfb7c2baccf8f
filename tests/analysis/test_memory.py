"""Bytes of activations that are alive at once: counted by hand, and as compact networks take them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves

import chipnet
from chipnet import Budget, BudgetError, Structure
from chipnet.analysis.kinds import KIND, KINDS
from chipnet.analysis.kinds.memory import moments
from chipnet.graph.facts import Activation


class Peak(torch.fx.Interpreter):
    """Runs a graph and forgets every value after its last reader; measures the memory of those that are left."""

    def __init__(self, module, inputs):
        super().__init__(module)
        tensors = [*module.parameters(), *module.buffers(), *inputs]
        self.given = {t.untyped_storage()._cdata for t in tensors}
        self.peak = 0

    def run_node(self, node):
        result = super().run_node(node)
        found = [
            v.untyped_storage()
            for v in tree_leaves([*self.env.values(), result])
            if isinstance(v, torch.Tensor)
        ]
        self.peak = max(
            self.peak, sum({s._cdata: s.nbytes() for s in found if s._cdata not in self.given}.values())
        )
        return result


def measured(model, *inputs):
    """The largest sum of memory of activations, by running the exported forward."""
    interpreter = Peak(torch.export.export(model.eval(), inputs).module(), inputs)
    interpreter.run(*inputs)
    return interpreter.peak


class Residual(nn.Module):
    """An addition, a concatenation, an activation in place, and a reshape that copies."""

    def __init__(self, inplace):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.c, self.head = nn.Conv2d(16, 6, 1, groups=2), nn.Linear(6, 5)
        self.relu = nn.ReLU(inplace)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        y = self.b(self.relu(self.a(x)))
        x = torch.cat([x + y, y], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.c(x).mean((2, 3)))


NETWORKS = {
    "chain": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.ReLU(True), nn.Flatten()
    ),
    "residual": lambda: Residual(False),
    "in place": lambda: Residual(True),
}
X = torch.randn(2, 3, 6, 6)


def test_a_chain_by_hand():
    # 8 channels of 2 x 4 x 4 floats, and the activation of as many; then 4 of 2 x 2 x 2, in place
    structure = Structure(NETWORKS["chain"](), X)
    cost = structure.analysis.priced(["memory"]).cost
    assert cost.kinds == (*KINDS, "memory")
    assert cost.dense["memory"] == 4 * 2 * (8 * 16 + 8 * 16)
    half = torch.tensor([True, False] * (structure.gates // 2))
    assert cost.exact(half)["memory"] == 4 * 2 * (4 * 16 + 4 * 16)
    assert structure.cost.kinds == KINDS  # nobody asked here


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("realisation", ["plain", "indexed"])
def test_counted_as_the_compact_network_takes_it(name, realisation):
    net = NETWORKS[name]().eval()
    structure = Structure(net, X, realisation=realisation)
    cost = structure.analysis.priced(["memory"]).cost
    assert cost.dense["memory"] == measured(net, X)
    for seed in range(6 if realisation == "plain" else 0):  # index maps copy: no activations of the network
        torch.manual_seed(seed)
        mask = structure.canonical(torch.rand(structure.gates) < 0.5 + 0.05 * seed)
        if structure.connected(mask) and (structure.widths(mask) > 0).all():
            assert cost.exact(mask)["memory"] == measured(chipnet.compact(net, structure.plan(mask)), X)


def test_a_budget_of_memory_is_met_and_used_up():
    net = NETWORKS["residual"]()
    structure = Structure(net, X)
    budget = Budget.parse("memory=0.5")
    limit = structure.limits(budget)["memory"]
    mask = structure.harden(torch.rand(structure.gates), budget)
    plan = structure.plan(mask, budget)
    assert plan.compact["memory"] <= limit == plan.dense["memory"] // 2
    assert "memory" in plan.explain() and chipnet.Plan.from_json(plan.to_json()) == plan
    cost = structure.analysis.priced(["memory"]).cost
    for gate in torch.nonzero(~mask).flatten():
        more = mask.clone()
        more[gate] = True
        if (structure.canonical(more) == more).all():
            assert cost.exact(more)["memory"] > limit
    assert measured(chipnet.compact(net, plan), X) <= limit


def test_methods_train_to_a_budget_of_memory():
    net = NETWORKS["residual"]().train()
    pruner = chipnet.Pruner(net, X, "memory=0.6,macs=0.6", steps=3)
    for _ in range(3):
        (net(X).square().mean() + pruner.loss()).backward()
        pruner.step()
    plan = pruner.harden()
    assert plan.compact["memory"] <= 0.6 * plan.dense["memory"] and plan.compact.macs <= 0.6 * plan.dense.macs


def test_masks_of_other_budgets_do_not_depend_on_it():
    structure = Structure(NETWORKS["residual"](), X)
    scores = torch.rand(structure.gates)
    before = structure.harden(scores, "macs=0.5")
    structure.harden(scores, "memory=0.5")
    assert torch.equal(structure.harden(scores, "macs=0.5"), before)


@pytest.mark.parametrize(
    ("text", "bytes_", "again"),
    [
        ("64MB", 64_000_000, "64000000 bytes"),
        ("1.5KiB", 1536, "1536 bytes"),
        ("2000 bytes", 2000, "2000 bytes"),
    ],
)
def test_sizes_as_people_write_them(text, bytes_, again):
    budget = Budget.parse({"memory": text})
    assert dict(budget.targets)["memory"] == bytes_ and budget.to_json() == {"memory": again}
    assert Budget.from_json(budget.to_json()) == budget


def test_a_size_needs_its_unit():
    for wrong in ("64M", 3000, "64 params"):
        with pytest.raises(BudgetError, match=r"a size needs its unit: write '64MB'|params measure params"):
            Budget.parse({"memory": wrong})


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(1, 9)), max_size=12))
def test_moments_have_the_largest_sum_of_all_times(lives):
    known = [Activation(torch.arange(1).numpy(), size, first, first + lasts) for first, lasts, size in lives]
    largest = max((sum(a.bytes for a in known if a.first <= t <= a.last) for t in range(20)), default=0)
    assert max((sum(a.bytes for a in group) for group in moments(known)), default=0) == largest


def test_kinds_are_found_by_their_files():
    assert tuple(KIND)[:4] == KINDS and {"latency", "memory"} <= KIND.keys()
    assert all(kind.name == name and kind.about for name, kind in KIND.items())
