import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from chipnet.methods.projections import heaviside, logistic, project, sharpen

gammas = st.floats(0.0, 256.0)
betas = st.floats(0.05, 6.0)
slopes = st.floats(1.0, 60.0)
unit = torch.linspace(0, 1, 101, dtype=torch.float64)


def test_logistic_is_one_half_at_its_centre():
    psi = torch.tensor([0.0, 0.7, -1.3])
    torch.testing.assert_close(logistic(psi, 3.0, psi0=psi), torch.full((3,), 0.5))


def test_logistic_known_value():
    psi = torch.tensor([0.5], dtype=torch.float64)
    assert logistic(psi, 2.0, psi0=0.25).item() == pytest.approx(1 / (1 + math.exp(-0.5)))


@given(betas)
def test_logistic_is_increasing_and_symmetric(beta):
    psi = torch.linspace(-5, 5, 51, dtype=torch.float64)
    z = logistic(psi, beta)
    assert (z.diff() > 0).all()
    torch.testing.assert_close(z + z.flip(0), torch.ones_like(z))


def test_logistic_tends_to_a_step():
    assert logistic(torch.tensor([-0.1, 0.1]), 1e4).tolist() == [0.0, 1.0]


@given(gammas)
def test_heaviside_fixes_both_end_points(gamma):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    z = heaviside(ends, gamma)
    assert z[0].item() == 0.0
    assert z[1].item() == pytest.approx(1.0, abs=1e-15)


@given(gammas)
def test_heaviside_is_increasing_and_above_the_identity(gamma):
    z = heaviside(unit, gamma)
    # Where the exponential is below float64's resolution the curve is flat at one.
    assert (z.diff() >= -1e-15).all()
    assert (z >= unit - 1e-15).all()
    assert (z <= 1 + 1e-15).all()


def test_heaviside_is_the_identity_at_gamma_zero():
    torch.testing.assert_close(heaviside(unit, 0.0), unit, rtol=0, atol=0)


@given(st.floats(0.01, 1.0))
def test_heaviside_grows_with_gamma_to_one(z_tilde):
    at = torch.tensor(z_tilde, dtype=torch.float64)
    values = torch.stack([heaviside(at, gamma) for gamma in (0.0, 1.0, 2.0, 8.0, 64.0, 256.0, 1e4)])
    assert (values.diff() >= -1e-15).all()
    assert values[-1].item() == pytest.approx(1.0, abs=1e-12)


def test_heaviside_keeps_the_digits_of_a_nearly_shut_channel():
    tiny = torch.tensor(1e-12, dtype=torch.float32)
    expected = 256 * 1e-12 + 1e-12 * math.exp(-256)
    assert heaviside(tiny, 256.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gamma", [2.0, torch.tensor(2.0, dtype=torch.float64)])
def test_heaviside_follows_the_equation_in_float64(gamma):
    expected = [1 - math.exp(-2 * v) + v * math.exp(-2) for v in unit.tolist()]
    torch.testing.assert_close(
        heaviside(unit, gamma), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-15
    )


def test_project_is_the_composition():
    psi = torch.randn(7, 3)
    z_tilde, z = project(psi, 1.2, 16.0)
    assert torch.equal(z_tilde, logistic(psi, 1.2))
    assert torch.equal(z, heaviside(z_tilde, 16.0))


@given(slopes)
def test_sharpen_is_increasing_and_symmetric_about_one_half(s):
    z = sharpen(unit, s)
    assert (z.diff() > 0).all()
    torch.testing.assert_close(z + z.flip(0), torch.ones_like(z))
    assert z[-1].item() == pytest.approx(1 / (1 + math.exp(-s / 2)))


def test_sharpen_tends_to_rounding():
    assert sharpen(torch.tensor([0.0, 0.49, 0.51, 1.0]), 1e5).tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_and_dtype_are_kept(dtype):
    psi = torch.randn(2, 3, 5, dtype=dtype)
    z_tilde, z = project(psi, 1.0, 2.0)
    for out in (z_tilde, z, sharpen(z, 10.0)):
        assert out.shape == psi.shape
        assert out.dtype == dtype


@pytest.mark.parametrize(("beta", "gamma", "s"), [(1.0, 2.0, 10.0), (1.4, 16.0, 30.0), (6.0, 64.0, 60.0)])
def test_gradients(beta, gamma, s):
    psi = torch.randn(11, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda p: logistic(p, beta, 0.1), psi)
    assert gradcheck(lambda p: project(p, beta, gamma), psi)
    assert gradcheck(lambda p: sharpen(project(p, beta, gamma)[1], s), psi)


def test_gradients_reach_tensor_parameters():
    psi = torch.randn(5, dtype=torch.float64)
    beta, gamma, s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.0, 2.0, 10.0))
    assert gradcheck(lambda b, g, t: sharpen(project(psi, b, g)[1], t), (beta, gamma, s))
