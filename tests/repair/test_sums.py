"""Least squares from sums."""

import pytest
import torch

from chipnet.repair.sums import SHRINKAGES, Sums, fit


def _rows(count, columns, outputs, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(1, count, columns)
    return x, x @ draw(1, columns, outputs) + 0.1 * draw(1, count, outputs) + 3


def test_one_input_by_hand():
    """y = 2x through (1, 2) and (2, 4): with λ = mean square 2.5 towards 1, w = (5 + 2.5) / (2.5 + 2.5)."""
    x = torch.tensor([[[1.0], [2.0]]], dtype=torch.float64)
    means = Sums.of(x, 2 * x).centred(offset=False)
    start = torch.ones(1, 1, 1, dtype=torch.float64)
    assert means.solve(start, 1.0).item() == pytest.approx(7.5 / 5)
    assert means.solve(start, 0.0).item() == pytest.approx(2)
    assert means.error(start).item() == pytest.approx(2.5)


@pytest.mark.parametrize("offset", [False, True])
def test_without_shrinkage_it_is_least_squares(offset):
    x, y = _rows(200, 5, 3)
    ones = torch.ones(1, 200, int(offset), dtype=torch.float64)
    wanted = torch.linalg.lstsq(torch.cat([x, ones], 2), y).solution
    means = Sums.of(x, y).centred(offset)
    found = means.solve(torch.zeros(1, 5, 3, dtype=torch.float64), 0.0)
    torch.testing.assert_close(found, wanted[:, :5])
    error = (y - torch.cat([x, ones], 2) @ wanted).square().mean(1)
    torch.testing.assert_close(means.error(found), error)
    if offset:
        torch.testing.assert_close(means.missing(found), wanted[:, 5])


def test_sums_of_parts_are_the_sums():
    x, y = _rows(50, 4, 2)
    parts, whole = Sums.of(x[:, :20], y[:, :20]) + Sums.of(x[:, 20:], y[:, 20:]), Sums.of(x, y)
    for name in ("count", "x", "y", "xx", "xy", "yy"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("offset", [False, True])
def test_the_error_never_grows(seed, offset):
    x, y = _rows(12, 20, 3, seed)  # fewer positions than columns
    start = torch.randn(1, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    both = Sums.of(x, y).centred(offset)
    for shrinkage in SHRINKAGES:
        assert bool((both.error(both.solve(start, shrinkage)) <= both.error(start) + 1e-12).all())


def test_what_is_right_already_stays():
    x, _ = _rows(30, 6, 1)
    start = torch.randn(1, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    halves = [Sums.of(x[:, :15], x[:, :15] @ start), Sums.of(x[:, 15:], x[:, 15:] @ start)]
    found, _ = fit(halves, start, offset=True)
    torch.testing.assert_close(found, start, rtol=1e-9, atol=1e-9)


def test_noise_is_not_fitted():
    """Where outputs have nothing to do with the inputs, each half tells the other least without shrinkage."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 60, 40, generator=generator, dtype=torch.float64)
    y = torch.randn(1, 60, 2, generator=generator, dtype=torch.float64)
    start = torch.zeros(1, 40, 2, dtype=torch.float64)
    halves = [Sums.of(x[:, :30], y[:, :30]), Sums.of(x[:, 30:], y[:, 30:])]
    assert fit(halves, start, offset=True)[1] == SHRINKAGES[-1]
    x, y = _rows(4000, 6, 2)
    halves = [Sums.of(x[:, :2000], y[:, :2000]), Sums.of(x[:, 2000:], y[:, 2000:])]
    assert fit(halves, torch.zeros(1, 6, 2, dtype=torch.float64), offset=True)[1] <= 1e-3


def test_inputs_that_are_all_zeros_leave_the_weight():
    x = torch.zeros(1, 8, 3, dtype=torch.float64)
    start = torch.ones(1, 3, 2, dtype=torch.float64)
    halves = [Sums.of(x, torch.ones(1, 8, 2, dtype=torch.float64))] * 2
    torch.testing.assert_close(fit(halves, start, offset=True)[0], start)
