import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from chipnet.methods.losses import budget_loss, crispness, distillation
from chipnet.methods.projections import heaviside

fractions = st.floats(0.01, 1.0)


@given(st.floats(0.0, 256.0), st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=7))
def test_crispness_is_zero_for_discrete_masks(gamma, mask):
    z = torch.tensor(mask, dtype=torch.float64)
    assert crispness(z, heaviside(z, gamma)).item() == pytest.approx(0.0, abs=1e-30)


@given(st.floats(0.5, 256.0), st.floats(0.01, 0.99))
def test_crispness_is_positive_between(gamma, value):
    z = torch.tensor([0.0, value, 1.0], dtype=torch.float64)
    assert crispness(z, heaviside(z, gamma)).item() > 0


def test_crispness_is_a_mean_over_channels():
    z_tilde, z = torch.tensor([0.0, 0.5, 0.5, 1.0]), torch.tensor([0.0, 0.7, 0.9, 1.0])
    assert crispness(z_tilde, z).item() == pytest.approx((0.04 + 0.16) / 4)


def test_crispness_gradient():
    z_tilde = torch.rand(13, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda v: crispness(v, heaviside(v, 4.0)), z_tilde)


@given(fractions, fractions)
def test_budget_loss_is_the_squared_difference(cost, budget):
    loss = budget_loss(torch.tensor(cost, dtype=torch.float64), budget)
    assert loss.item() == pytest.approx((cost - budget) ** 2)


@given(fractions, fractions)
def test_one_sided_forgives_a_cost_below_the_budget(cost, budget):
    at = torch.tensor(cost, dtype=torch.float64)
    two, one = budget_loss(at, budget), budget_loss(at, budget, one_sided=True)
    assert one.item() == (two.item() if cost > budget else 0.0)


def test_budget_loss_sums_over_budgets():
    cost, budget = torch.tensor([0.5, 0.1]), torch.tensor([0.25, 0.2])
    assert budget_loss(cost, budget).item() == pytest.approx(0.0625 + 0.01)
    loss = budget_loss(cost, budget, one_sided=True)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(0.0625)


@pytest.mark.parametrize("one_sided", [False, True])
def test_budget_loss_gradient(one_sided):
    # 0.25 itself is left out: the one-sided loss has a kink in its second derivative there, not in its first.
    cost = torch.tensor([0.1, 0.24, 0.3, 0.9], dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda c: budget_loss(c, 0.25, one_sided=one_sided), cost)


def test_budget_loss_pulls_towards_the_budget():
    for cost, sign in ((0.1, -1.0), (0.9, 1.0)):
        at = torch.tensor(cost, requires_grad=True)
        budget_loss(at, 0.25).backward()
        assert torch.sign(at.grad).item() == sign


@given(st.floats(0.5, 8.0))
def test_distillation_is_zero_and_flat_where_both_predict_the_same(temperature):
    teacher = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = (teacher + 1).requires_grad_()  # softmax does not see a shift
    loss = distillation(logits, teacher, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert logits.grad.abs().max() < 1e-12


def test_distillation_by_its_definition():
    logits, teacher = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p, q = torch.softmax(teacher / 4, 1), torch.softmax(logits / 4, 1)
    assert distillation(logits, teacher, 4.0).item() == pytest.approx(
        16 * (p * (p / q).log()).sum(1).mean().item()
    )
    assert gradcheck(lambda x: distillation(x, teacher, 4.0), logits.requires_grad_())
