import json
import math
import pickle
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chipnet.analysis.kinds import KINDS
from chipnet.budget.budget import Budget
from chipnet.errors import BudgetError, ChipNetError


def value_of(kind, written):
    ((got, value),) = Budget.parse({kind: written}).targets
    assert got == kind
    return value


@pytest.mark.parametrize(
    ("written", "fraction"),
    [
        (0.25, "1/4"),
        ("0.25", "1/4"),
        (".25", "1/4"),
        ("25%", "1/4"),
        ("12.5 %", "1/8"),
        ("2.5e-1", "1/4"),
        (0.1, "1/10"),
        (1e-07, "1/10000000"),
        (1, "1"),
        (1.0, "1"),
        ("1", "1"),
        ("1.0", "1"),
        ("100%", "1"),
        (np.float64(0.1), "1/10"),
        (np.int64(1), "1"),
    ],
)
def test_fractions(written, fraction):
    value = value_of("macs", written)
    assert isinstance(value, Fraction)
    assert value == Fraction(fraction)


@pytest.mark.parametrize(
    ("kind", "written", "count"),
    [
        ("params", 2_000_000, 2_000_000),
        ("params", np.int64(2_000_000), 2_000_000),
        ("params", "2000000", 2_000_000),
        ("params", "2_000_000", 2_000_000),
        ("params", "2e6", 2_000_000),
        ("params", "2M", 2_000_000),
        ("params", " 2 m ", 2_000_000),
        ("params", "800k", 800_000),
        ("params", "800Kparams", 800_000),
        ("params", "0.5M params", 500_000),
        ("params", "1.2345K", 1234),
        ("params", "1B", 10**9),
        ("macs", "1.5G", 1_500_000_000),
        ("macs", "40MMACs", 40_000_000),
        ("macs", "40MACs", 40),
        ("macs", "80MFLOPs", 40_000_000),
        ("macs", "81 flops", 40),
        ("channels", "300 channels", 300),
        ("channels", 2, 2),
        ("volume", "1.1K", 1100),
    ],
)
def test_counts(kind, written, count):
    value = value_of(kind, written)
    assert type(value) is int
    assert value == count


@pytest.mark.parametrize(
    "spec",
    [
        {"macs": 0.25, "params": "2M"},
        {"params": 2_000_000, "flops": "25%"},
        "macs=0.25,params=2M",
        " params = 2M , FLOPs = 0.25 ",
        ["macs=0.25", "params=2M"],
        ("params=2M,macs=0.25",),
        Budget.parse("macs=0.25,params=2M"),
    ],
)
def test_every_way_of_writing_gives_the_same_value(spec):
    budget = Budget.parse(spec)
    assert budget == Budget((("params", 2_000_000), ("macs", Fraction(1, 4))))
    assert hash(budget) == hash(Budget.parse("macs=0.25,params=2M"))
    assert str(budget) == "params=2000000,macs=0.25"
    assert repr(budget) == "Budget.parse('params=2000000,macs=0.25')"
    assert budget.kinds == ("params", "macs")


REMAINS = "a fraction is what remains, 0.25 keeps a quarter; for an absolute count write '2M' or an int"


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (
            {"mac": 0.25},
            "unknown kind 'mac'; did you mean 'macs'? the kinds are channels, volume, params, macs, latency",
        ),
        ({"parameters": 0.25}, "did you mean 'params'?"),
        ({"energy": 0.25}, "unknown kind 'energy'; the kinds are"),
        ({"macs": 0}, f"macs=0: nothing would remain; {REMAINS}"),
        ({"macs": 0.0}, "nothing would remain"),
        ({"macs": -0.5}, "nothing would remain"),
        ("macs=-3", "nothing would remain"),
        ("macs=0%", "nothing would remain"),
        ({"macs": 1.5}, f"macs=1.5: above 1; {REMAINS}"),
        ("macs=2.0", "above 1"),
        ("macs=150%", "above 1"),
        ({"macs": True}, "a bool is not a number"),
        ({"macs": None}, "a NoneType is not a number"),
        ({"macs": math.nan}, "not finite"),
        ({"macs": math.inf}, "not finite"),
        ("macs=nan", "not a number; write a fraction '0.25', a percentage '25%' or a count '2M'"),
        ("macs=", "not a number"),
        ("macs=2X", "not a number"),
        ("macs=1,000", "'000' does not say what it limits"),
        ("macs=0.0001K", "a count must be at least 2"),
        ("params=40MMACs", "MACs measure macs, not params; write macs=40MMACs"),
        ("macs=2Mparams", "params measure params, not macs; write params=2Mparams"),
        ("flops=80M", "may mean FLOPs or MACs; write '80MFLOPs' or '40MMACs'"),
        ({"flops": 80_000_000}, "may mean FLOPs or MACs"),
        ({"macs": 0.5, "flops": 0.5}, "macs is given twice (flops and macs are one kind); keep one"),
        (["params=0.5", "params=0.25"], "params is given twice; keep one"),
        ("macs=1e9999", "macs=1e9999: above 10**18, which no network costs; a fraction is what remains"),
        ("macs=1e999999999", "a number of so many digits is no budget"),
        ("macs=1e-999999999", "a number of so many digits is no budget"),
        ("macs=" + "9" * 5000, "a number of so many digits is no budget"),
        ("latency=" + "9" * 5000 + "ms", "a number of so many digits is no budget"),
        ("params=2000000000G", "above 10**18"),
        ({"macs": 10**18 + 1}, "above 10**18"),
        ({"macs": Fraction(10**400)}, "not finite"),
        ("macs=1e-999", "nothing would remain"),
        ({"macs": 5e-324}, "nothing would remain"),
        ("macs=0." + "1" * 90 + "e-17", "more than 100 digits"),
        ("0.25", "'0.25' does not say what it limits; write for example 'macs=0.25'"),
        (0.25, "a budget is text or a mapping"),
        ([0.25], "0.25 is not text"),
        ("", "it is empty; name at least one limit, for example 'macs=0.25'"),
        ({}, "it is empty"),
        ([], "it is empty"),
    ],
)
def test_errors_name_the_problem_and_the_fix(spec, text):
    with pytest.raises(BudgetError, match=re.escape(text)) as caught:
        Budget.parse(spec)
    assert str(caught.value).startswith(f"cannot use the budget {spec!r}:\n  - ")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ChipNetError)


def test_numbers_that_python_does_not_write_are_errors_too():
    with pytest.raises(BudgetError, match=r"macs=with a number of thousands of digits: above 10\*\*18"):
        Budget.parse({"macs": 10**5000})


def test_the_largest_and_the_longest_values_read_back():
    for written in (10**18, "1e-18", "0." + "1" * 100, "0." + "1" * 80 + "e-17"):
        budget = Budget.parse({"macs": written})
        assert Budget.parse(str(budget)) == budget


def test_all_problems_are_reported_at_once():
    with pytest.raises(BudgetError) as caught:
        Budget.parse({"mac": 0.5, "params": 0, "volume": 1.5, "macs": 7.5, "flops": 0.5})
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert "mac" in lines[1]
    assert "params=0" in lines[2]
    assert "volume=1.5" in lines[3]
    assert "macs=7.5" in lines[4]
    assert "given twice" in lines[5]


@pytest.mark.parametrize(
    ("written", "dense", "limit"),
    [
        (0.1, 10, 1),
        (0.3, 10, 3),
        (0.7, 10, 7),
        (0.07, 100, 7),
        (0.29, 100, 29),
        (0.25, 7, 1),
        (0.9999999, 10**12, 999_999_900_000),
        (1.0, 10**18 + 1, 10**18 + 1),
        ("2M", 3_000_000, 2_000_000),
        ("2M", 1_000_001, 1_000_001),
    ],
)
def test_limits_by_hand(written, dense, limit):
    assert Budget.parse({"macs": written}).limits({"macs": dense, "params": 3}) == {"macs": limit}


@given(st.floats(1e-6, 1.0), st.integers(1, 10**15))
def test_limit_is_the_largest_whole_cost_within_the_written_fraction(fraction, dense):
    limit = Budget.parse({"macs": fraction}).limits({"macs": dense})["macs"]
    assert 0 <= limit <= dense
    written = Fraction(repr(fraction))
    assert Fraction(limit, dense) <= written < Fraction(limit + 1, dense)


targets = st.floats(1e-9, 1.0) | st.integers(2, 10**12) | st.decimals("0.001", "1", places=20).map(str)


@given(st.dictionaries(st.sampled_from(KINDS), targets, min_size=1))
def test_round_trips(spec):
    budget = Budget.parse(spec)
    assert Budget.parse(str(budget)) == budget
    assert Budget.from_json(json.loads(json.dumps(budget.to_json()))) == budget
    assert pickle.loads(pickle.dumps(budget)) == budget
    assert eval(repr(budget)) == budget


# -- times ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "written", "limit"),
    [
        ("latency=0.5", "latency=0.5", 500_000),
        ("latency=3ms", "latency=3ms", 1_000_000),
        ("latency=0.25 ms", "latency=250us", 250_000),
        ("latency=250µs,macs=0.5", "macs=0.5,latency=250us", 250_000),
        ("latency=0.0001s", "latency=100us", 100_000),
        ("latency=1234ns", "latency=1234ns", 1234),
    ],
)
def test_times_are_read_and_written(text, written, limit):
    budget = Budget.parse(text)
    assert str(budget) == written
    assert Budget.parse(written) == budget
    assert budget.limits({"latency": 1_000_000, "macs": 100})["latency"] == limit


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("latency=3", "a time needs its unit: write '3ms'"),
        ("latency=3M", "needs its unit"),
        ("macs=3ms", "not a number"),
    ],
)
def test_times_without_a_unit_are_refused(text, said):
    with pytest.raises(BudgetError, match=said):
        Budget.parse(text)
