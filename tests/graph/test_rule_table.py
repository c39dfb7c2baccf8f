"""The table of rules: an operator's namespace counts, and a rule that fails keeps whole what it read."""

from __future__ import annotations

import functools
import random
import zlib

import harness
import pytest
import torch
from harness import conforms, corner_masks, random_mask, randomised
from random_networks import check, random_recipe
from torch import nn

from chipnet import Structure
from chipnet.graph.call import Call
from chipnet.graph.rules.table import RULES


def failing(rule, seed, kinds):
    """``rule``, which fails at some nodes: before it does anything, or after all that it does."""

    @functools.wraps(rule)
    def wrapped(op, *args, **kwargs):
        drawn = zlib.crc32(f"{seed} {op.name} {op.key}".encode()) % kinds
        if drawn == 0:
            raise TypeError("early")
        out = rule(op, *args, **kwargs)
        if drawn == 1:
            raise KeyError("late")
        return out

    return wrapped


@pytest.mark.parametrize("seed", range(3))
def test_networks_stay_exact_when_rules_fail_at_random(seed, monkeypatch):
    monkeypatch.setattr(harness, "RULES_MAY_FAIL", True)
    for operator, rule in [(o, r) for o, r in RULES.items() if not isinstance(o, str)]:
        monkeypatch.setitem(RULES, operator, failing(rule, seed, 16))
    for i in range(3):
        check(random_recipe(random.Random(100 * seed + i).randint))


@pytest.mark.parametrize(
    ("name", "late"),
    [(n, True) for n in ("conv2d", "batch_norm", "mean", "linear", "max_pool2d")]
    + [("relu", False), ("add", False)],
)
def test_a_rule_that_fails_says_which_and_where_and_all_else_is_pruned(name, late, monkeypatch):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv1d(8, 6, 1)
            self.c, self.pool, self.fc = nn.Conv1d(6, 5, 1), nn.MaxPool2d(2), nn.Linear(5, 2)

        def forward(self, x):
            x = torch.relu(self.norm(self.a(x)))
            x = (self.pool(x) + 1.0).flatten(2)
            return self.fc(self.c(self.b(x) ** 2).mean(2))

    operator, calls = getattr(torch.ops.aten, name), []
    rule = RULES[operator]

    def broken(op, *args, **kwargs):
        calls.append(op.module)
        if late:
            rule(op, *args, **kwargs)
        raise ZeroDivisionError("nothing to divide by\nmore")

    monkeypatch.setitem(RULES, operator, broken)
    monkeypatch.setattr(harness, "RULES_MAY_FAIL", True)
    model, x = randomised(Net()), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for realisation in ("plain", "indexed"):
        s = Structure(model, x, realisation=realisation)
        assert calls
        said = f"the rule for '{name}' failed (ZeroDivisionError: nothing to divide by)"
        pins = [row["pin"] for row in s.report() if row["pin"] and said in row["pin"]["reason"]]
        assert pins or name == "linear"  # an output of the network is kept anyway
        assert all(p["operator"] and p["line"].startswith("test_rule_table.py:") for p in pins)
        assert {"b"} <= {site.name for site in s.sites if site.free}
        conforms(model, x, s, [random_mask(s, 0.5), *corner_masks(s)])


@pytest.fixture
def library():
    with torch.library._scoped_library("chipnet_test", "FRAGMENT") as lib:
        yield lib


@pytest.mark.parametrize("name", ["mul", "cat_"])
def test_an_operator_of_another_namespace_is_not_atens(name, library):
    """``chipnet_test::mul`` adds one: nobody said that it multiplies."""
    library.define(f"{name}(Tensor x, Tensor y) -> Tensor")
    library.impl(name, lambda x, y: x + y + 1.0, "CompositeExplicitAutograd")
    torch.library.register_fake(f"chipnet_test::{name}", lambda x, y: torch.empty_like(x), lib=library)
    operator = getattr(torch.ops.chipnet_test, name)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.fc = (
                nn.Conv2d(3, 6, 1),
                nn.Conv2d(3, 6, 1),
                nn.Conv2d(6, 5, 1),
                nn.Linear(5, 2),
            )

        def forward(self, x):
            return self.fc(torch.relu(self.c(operator(self.a(x), self.b(x)))).mean((2, 3)))

    model, x = randomised(Net()), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    s = Structure(model, x)
    rows = {row["name"]: row for row in s.report()}
    assert f"no rule for operator 'chipnet_test::{name}'" in rows["a"]["reason"]
    assert rows["c"]["gates"] == 5
    conforms(model, x, s, [random_mask(s, 0.5), *corner_masks(s)], train=False)


SCALARS = {
    "exp": lambda s: s.exp(),
    "sigmoid": lambda s: s.sigmoid(),
    "softplus": lambda s: nn.functional.softplus(s),
    "reciprocal": lambda s: 1 / s,
    "cos of a square": lambda s: (s * s).cos(),
    "power": lambda s: s**-2,
    "clamped": lambda s: s.exp().clamp(max=100.0),
    "softmax of two": lambda s: torch.softmax(torch.stack([s, s * 2]), 0)[0],
    "one minus": lambda s: 1 - s,
    "where": lambda s: torch.where(s > 0, s, s + 1),
    "minimum": lambda s: torch.minimum(s.exp(), s + 3),
}


@pytest.mark.parametrize("shape", [(), (1,)])
def test_functions_of_a_single_number_are_constants(shape):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1), nn.Linear(5, 2)
            self.s = nn.Parameter(torch.full(shape, 0.7))

        def forward(self, x):
            x = self.a(x)
            for f in SCALARS.values():
                x = x * f(self.s)
            s = SCALARS["exp"](self.s)
            return self.fc((self.b(x) / (s + 2)).mean((2, 3))) * s

    model, x = randomised(Net()), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    s = Structure(model, x)
    assert {site.name: site.free for site in s.sites if site.free} == {"a": 6, "b": 5}
    conforms(model, x, s, [random_mask(s, 0.5), *corner_masks(s)])


def test_complex_products_are_counted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 4, 3, 3, 2))
            self.a, self.fc = nn.Conv2d(4, 6, 1), nn.Linear(6, 2)

        def forward(self, x):
            f = torch.fft.rfft2(x)[:, :, :3, :3]
            y = torch.einsum("bixy,ioxy->boxy", f, torch.view_as_complex(self.w))
            return self.fc(torch.relu(self.a(torch.fft.irfft2(y, s=x.shape[-2:]))).mean((2, 3)))

    model, x = randomised(Net()), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    s = Structure(model, x)
    conforms(model, x, s, [random_mask(s, 0.5), *corner_masks(s)])  # counts both with PyTorch's counter


def test_what_no_rule_counts_is_counted_all_the_same(monkeypatch):
    """A budget is never exceeded because an operator was not counted: one real forward is counted too."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 6, 1), nn.Linear(6, 2)

        def forward(self, x):
            x = self.a(x).flatten(2)
            return self.fc(torch.linalg.multi_dot([x[0], x[0].T, x[0]]).mean(1))

    model, x = randomised(Net()), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    monkeypatch.setattr(Call, "macs", lambda self: 0)
    conforms(model, x, Structure(model, x), [])  # it compares the dense count with PyTorch's
