"""Formulas keep their truth when simplified, and the compiled program reads them softly, exactly and in batches."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chipnet.analysis.formula import FALSE, TRUE, Formulas

GATES = 5
Tree = Any  # an int (gate), a bool (constant), or ("all" | "any", subtrees)


trees = st.recursive(
    st.one_of(st.integers(0, GATES - 1), st.booleans()),
    lambda sub: st.tuples(st.sampled_from(["all", "any"]), st.lists(sub, max_size=4)),
    max_leaves=24,
)


def build(f: Formulas, tree: Tree, pairwise: bool) -> int:
    if isinstance(tree, bool):
        return TRUE if tree else FALSE
    if isinstance(tree, int):
        return f.gate(tree)
    op, parts = tree
    ids = [build(f, t, pairwise) for t in parts]
    if not pairwise:
        return f.all(ids) if op == "all" else f.any(ids)
    out = TRUE if op == "all" else FALSE
    for i in ids:
        out = f.both(out, i) if op == "all" else f.either(out, i)
    return out


def truth(tree: Tree, gates: tuple[bool, ...]) -> bool:
    if isinstance(tree, bool):
        return tree
    if isinstance(tree, int):
        return gates[tree]
    op, parts = tree
    return (all if op == "all" else any)(truth(t, gates) for t in parts)


CORNERS = list(itertools.product([False, True], repeat=GATES))
corners = torch.tensor(CORNERS, dtype=torch.float64)


@given(st.lists(trees, min_size=1, max_size=4), st.booleans())
def test_simplified_formulas_are_true_where_the_written_ones_are(written, pairwise):
    f = Formulas()
    program = f.compile([build(f, t, pairwise) for t in written], GATES)
    values = program(corners)
    expected = torch.tensor([[float(truth(t, c)) for t in written] for c in CORNERS], dtype=torch.float64)
    assert torch.equal(values, expected)


@given(trees, st.integers(0, 2**31 - 1))
def test_soft_values_are_probabilities_and_grow_with_every_gate(tree, seed):
    f = Formulas()
    program = f.compile([build(f, tree, False)], GATES)
    low = torch.rand(GATES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    value = program(low)
    assert -1e-12 <= float(value) <= 1 + 1e-12
    for g in range(GATES):
        high = low.clone()
        high[g] = (1 + low[g]) / 2
        assert float(program(high)) >= float(value) - 1e-12


@given(st.lists(trees, min_size=1, max_size=3), st.integers(0, 2**31 - 1))
def test_gradients_are_those_of_finite_differences(written, seed):
    f = Formulas()
    program = f.compile([build(f, t, True) for t in written], GATES)
    x = torch.rand(GATES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.autograd.gradcheck(program, (x.requires_grad_(),))
    at_corner = (x > 0.5).double().detach().requires_grad_()  # where masks are binary
    assert torch.autograd.gradcheck(program, (at_corner,))


@given(st.lists(trees, min_size=1, max_size=4), st.integers(0, 2**31 - 1))
def test_a_batch_gives_what_a_loop_gives(written, seed):
    f = Formulas()
    program = f.compile([build(f, t, False) for t in written], GATES)
    x = torch.rand(2, 3, GATES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    batch = program(x)
    assert batch.shape == (2, 3, len(written))
    for i, j in itertools.product(range(2), range(3)):
        assert torch.equal(batch[i, j], program(x[i, j]))


def test_or_is_the_chance_that_one_side_is_open_and_and_that_both_are():
    f = Formulas()
    a, b, c = (f.gate(i) for i in range(3))
    program = f.compile([f.any([a, b]), f.all([a, b]), f.all([c, f.any([a, b])])], 3)
    p, q, r = 0.3, 0.6, 0.5
    expected = torch.tensor([1 - 0.7 * 0.4, p * q, r * (1 - 0.7 * 0.4)], dtype=torch.float64)
    torch.testing.assert_close(program(torch.tensor([p, q, r], dtype=torch.float64)), expected)


def test_equal_formulas_have_equal_ids():
    f = Formulas()
    a, b, c = (f.gate(i) for i in range(3))
    assert f.all([a, b, c]) == f.both(c, f.both(b, a))
    assert f.any([a, f.any([b, c])]) != FALSE
    assert f.gate(1) == b


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param(lambda f, a, b, c: f.any([a, f.all([a, b])]), lambda f, a, b, c: a, id="absorb-or"),
        pytest.param(lambda f, a, b, c: f.all([a, f.any([a, b])]), lambda f, a, b, c: a, id="absorb-and"),
        pytest.param(
            lambda f, a, b, c: f.any([f.all([a, b]), f.all([a, c])]),
            lambda f, a, b, c: f.all([a, f.any([b, c])]),
            id="factor",
        ),
        pytest.param(lambda f, a, b, c: f.all([a, a, TRUE]), lambda f, a, b, c: a, id="repeat-and"),
        pytest.param(lambda f, a, b, c: f.any([b, FALSE, b]), lambda f, a, b, c: b, id="repeat-or"),
        pytest.param(lambda f, a, b, c: f.any([a, TRUE]), lambda f, a, b, c: TRUE, id="true"),
        pytest.param(lambda f, a, b, c: f.all([a, FALSE]), lambda f, a, b, c: FALSE, id="false"),
        pytest.param(lambda f, a, b, c: f.all([]), lambda f, a, b, c: TRUE, id="empty-and"),
        pytest.param(lambda f, a, b, c: f.any([]), lambda f, a, b, c: FALSE, id="empty-or"),
    ],
)
def test_no_gate_is_counted_twice(left, right):
    """An independent reading of ``a or (a and b)`` would count ``a`` twice: it is simplified when made."""
    f = Formulas()
    a, b, c = (f.gate(i) for i in range(3))
    assert left(f, a, b, c) == right(f, a, b, c)


def test_long_chains_of_either_stay_flat():
    f = Formulas()
    out = FALSE
    for i in range(61):
        out = f.either(out, f.gate(i))
    program = f.compile([out], 61)
    assert program.depth == 1
    assert float(program(torch.full((61,), 0.5, dtype=torch.float64))) == pytest.approx(1 - 0.5**61)


def test_a_program_without_gates_gives_its_constants():
    f = Formulas()
    program = f.compile([TRUE, FALSE, TRUE], 0)
    assert program(torch.zeros(0)).tolist() == [1.0, 0.0, 1.0]
