import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chipnet.errors import ConfigError
from chipnet.methods.schedules import (
    Constant,
    Continuation,
    Cosine,
    Cubic,
    Doubling,
    Exponential,
    Linear,
    OneCycle,
    Sharpness,
)

progresses = st.floats(0.0, 1.0)
values = st.floats(1e-3, 1e3)

EVERY = [
    Constant(0.3),
    Linear(1.0, 7.0),
    Linear(1.0, 7.0, until=0.3),
    Exponential(1e-3, 10.0),
    Doubling(2.0, cap=256.0, doublings=10),
    Cubic(1.0, 0.25),
    Cosine(0.1, 0.001),
    OneCycle(0.1),
    Continuation.paper(),
]
every = pytest.mark.parametrize("schedule", EVERY, ids=repr)


@every
@pytest.mark.parametrize("progress", [-1e-9, 1.0000001, 20, math.nan, math.inf])
def test_progress_outside_the_run_is_refused(schedule, progress):
    expected = f"progress must be in [0, 1], got {progress!r}; pass step / total_steps"
    with pytest.raises(ValueError, match=re.escape(expected)):
        schedule(progress)


@every
def test_is_a_frozen_hashable_value(schedule):
    assert dataclasses.replace(schedule) == schedule
    assert hash(dataclasses.replace(schedule)) == hash(schedule)
    field = dataclasses.fields(schedule)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, field, 1.0)


@given(values, values)
def test_end_points(start, end):
    for schedule in (Linear(start, end), Cubic(start, end), Cosine(start, end), Exponential(start, end)):
        assert schedule(0.0) == start
        assert schedule(1.0) == end


@given(values, values, st.tuples(progresses, progresses))
def test_monotone_between_the_end_points(start, end, pair):
    low, high = sorted(pair)
    sign = 1.0 if end >= start else -1.0
    slack = 1e-12 * (start + end)
    for schedule in (
        Linear(start, end),
        Linear(start, end, until=0.5),
        Cubic(start, end),
        Cosine(start, end),
        Exponential(start, end),
    ):
        assert sign * (schedule(high) - schedule(low)) >= -slack
        assert min(start, end) - slack <= schedule(low) <= max(start, end) + slack


@given(values, progresses)
def test_constant(value, progress):
    assert Constant(value)(progress) == value


@given(progresses)
def test_linear_until_equals_a_faster_linear(progress):
    assert Linear(1.0, 3.0, until=0.25)(progress) == pytest.approx(1.0 + 2.0 * min(4 * progress, 1.0))


@given(values, values, progresses)
def test_exponential_is_linear_in_the_logarithm(start, end, progress):
    expected = Linear(math.log(start), math.log(end))(progress)
    assert math.log(Exponential(start, end)(progress)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1.0, math.nan)])
def test_exponential_needs_positive_ends(start, end):
    with pytest.raises(ConfigError, match=r"start > 0 and end > 0.*use Linear"):
        Exponential(start, end)


@pytest.mark.parametrize("total", [10, 20, 30, 70, 290, 1000, 7130])
def test_doubling_happens_on_its_very_step(total):
    gamma = Doubling(2.0, cap=1e9, doublings=10)
    for k in range(11):
        step = k * total // 10
        assert gamma(step / total) == 2.0 * 2**k
        if k:
            assert gamma((step - 1) / total) == 2.0 * 2 ** (k - 1)


def test_doubling_is_capped():
    assert Doubling(2.0, cap=100.0, doublings=10)(1.0) == 100.0


def test_cubic_by_hand():
    budget = Cubic(1.0, 0.2, until=0.4)
    assert budget(0.2) == pytest.approx(0.2 + 0.8 * 0.125)
    assert budget(0.4) == budget(0.7) == budget(1.0) == 0.2


@pytest.mark.parametrize("cls", [Cubic, Linear])
@pytest.mark.parametrize("until", [0.0, -0.1, 1.5, math.nan])
def test_until_is_a_part_of_the_run(cls, until):
    with pytest.raises(ConfigError, match=r"until is the part of the run that it takes, in \(0, 1\]"):
        cls(1.0, 0.25, until=until)


@given(st.floats(0.05, 0.95), progresses)
def test_one_cycle_rises_to_its_peak_then_falls(warmup, progress):
    lr = OneCycle(0.5, warmup=warmup, start_factor=10.0, end_factor=1000.0)
    assert lr(0.0) == 0.05
    assert lr(warmup) == 0.5
    assert lr(1.0) == 0.0005
    assert 0.0005 <= lr(progress) <= 0.5
    middle = (warmup + progress) / 2  # between the peak and here, so nearer the peak
    assert lr(middle) >= lr(progress) - 1e-12


@pytest.mark.parametrize("warmup", [0.0, 1.0, -0.3])
def test_one_cycle_needs_both_legs(warmup):
    with pytest.raises(ConfigError, match=r"warmup is the part of the run before the peak.*use Cosine"):
        OneCycle(0.1, warmup=warmup)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    # Worked out by hand from the paper's settings: β = 1 + 0.02 e, γ = 2 · 2^⌊e/2⌋ ≤ 256, s = 10 + 5 e ≤ 60.
    [
        (0, (1.00, 2.0, 10.0)),
        (1, (1.02, 2.0, 15.0)),
        (2, (1.04, 4.0, 20.0)),
        (7, (1.14, 16.0, 45.0)),
        (10, (1.20, 64.0, 60.0)),
        (14, (1.28, 256.0, 60.0)),
        (19, (1.38, 256.0, 60.0)),
        (20, (1.40, 256.0, 60.0)),
    ],
)
def test_the_papers_continuation(epoch, expected):
    now = Continuation.paper()(epoch / 20)
    assert isinstance(now, Sharpness)
    assert now == pytest.approx(expected)
    assert (now.beta, now.gamma, now.s) == tuple(now)


def test_continuation_takes_any_function():
    now = Continuation(beta=lambda p: 1 + p, gamma=Constant(2.0), s=Constant(10.0))(0.5)
    assert now == Sharpness(beta=1.5, gamma=2.0, s=10.0)
