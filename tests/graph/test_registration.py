"""Rules for other people's operators: registered by operator, from another package, before or after a capture."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from harness import conforms, corner_masks, random_mask, randomised
from torch import nn

from chipnet import ConfigError, Structure
from chipnet.graph import rules
from chipnet.graph.rules.table import RULES

PACKAGE = """
import torch
from chipnet.graph import rules


@torch.library.custom_op("chipnet_other::scale", mutates_args=())
def scale(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    return x * by[:, None, None]


@scale.register_fake
def _(x, by):
    return torch.empty_like(x)


@torch.library.custom_op("chipnet_other::mul", mutates_args=())
def mul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + y


@mul.register_fake
def _(x, y):
    return torch.empty_like(x)
"""
THEIR_RULES = """
import torch
from chipnet.graph import rules


@rules.rule(torch.ops.chipnet_other.scale)
def scale_rule(op, x, by):
    rules.own(op, by, {0: op.channels(x, 1)})
    return op.labelled(x)


@rules.rule(torch.ops.chipnet_other.mul)
def mul_rule(op, x, y):
    return op.map([x, y], "or")
"""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.by, self.b = nn.Conv2d(3, 6, 1), nn.Parameter(torch.rand(6)), nn.Conv2d(6, 5, 1)
        self.c, self.d, self.fc = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        other = torch.ops.chipnet_other
        y = other.mul(self.b(other.scale(self.a(x), self.by)), self.c(x))
        return self.fc((self.d(y) * 2).relu().mean((2, 3)))


@pytest.fixture
def own_rules():
    """What is registered meanwhile is forgotten after."""
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


def test_another_package_brings_an_operator_and_its_rule(tmp_path, monkeypatch, own_rules):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "other_package.py").write_text(PACKAGE)
    (tmp_path / "other_rules.py").write_text(
        f"import other_package, torch\nfrom chipnet.graph import rules\n{THEIR_RULES}"
    )
    __import__("other_package")
    model, x = randomised(Net()), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    before = {row["name"]: row for row in Structure(model, x).report()}
    assert "no rule for operator 'chipnet_other::scale'" in before["a"]["reason"]
    assert "no rule for operator 'chipnet_other::mul'" in before["b"]["reason"]
    assert {name for name, row in before.items() if row["gates"]} == {"d"}
    __import__("other_rules")  # after a capture: it holds for the next
    for realisation in ("plain", "indexed"):
        s = Structure(model, x, realisation=realisation)
        assert {site.name: site.free for site in s.sites if site.free} == {"a": 6, "b": 5, "c": 5, "d": 4}
        found = conforms(model, x, s, [random_mask(s, 0.5), *corner_masks(s)], train=False)
        assert {small.by.numel() for small, *_ in found} > {6}
    for module in ("other_package", "other_rules"):
        del sys.modules[module]


def test_operators_are_told_apart_by_namespace_and_named_in_three_ways(own_rules):
    ours = rules.rule_of(torch.ops.aten.mul)
    assert ours is rules.rule_of(torch.ops.aten.mul_.Tensor) is rules.rule_of("aten::mul")
    assert rules.rule_of("chipnet_absent::mul") is None
    assert rules.rule("chipnet_absent::mul")(max) is max  # the operator need not be there yet
    assert rules.rule_of("chipnet_absent::mul") is max
    assert rules.rule_of(torch.ops.aten.mul) is ours
    rules.rule(torch.ops.aten.mul, replace=True)(min)
    assert rules.rule_of(torch.ops.aten.mul) is min


def test_a_rule_is_of_the_operator_not_of_its_name(own_rules):
    def defined():
        return torch.library.custom_op("chipnet_again::f", mutates_args=())(same)

    def same(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    rules.rule("chipnet_again::f")(max)
    with pytest.raises(ConfigError, match="has a rule already"):
        rules.rule("chipnet_again::f")
    first = defined()  # the rule has waited for it
    assert rules.rule_of(torch.ops.chipnet_again.f.default) is rules.rule_of(first) is max
    with pytest.raises(ConfigError, match="has a rule already"):
        rules.rule("chipnet_again::f")
    assert torch.ops.chipnet_again.f in RULES
    assert "chipnet_again::f" not in RULES
    again = defined()
    assert rules.rule_of(again) is None
    rules.rule(again)(min)
    assert rules.rule_of("chipnet_again::f") is min


@pytest.mark.parametrize(
    ("operators", "said"),
    [
        ([], r"rule\(\) needs an operator"),
        ([torch.mul], "<built-in method mul of type object .*> is no operator: a rule is for one such as"),
        (["mul"], "'mul' is no operator"),
        ([lambda op, x: x], "<function .* is no operator"),
        ([torch.ops.aten], "is no operator"),
        ([torch.ops.aten.conv2d], "the operator aten.conv2d has a rule already. .*replace=True"),
        ([torch.ops.aten.add_.Tensor], "the operator aten.add_.Tensor has a rule already"),
        (["aten::conv2d"], "the operator aten::conv2d has a rule already"),
        (["chipnet_absent::a", "chipnet_absent::a"], "the operator chipnet_absent::a has a rule already"),
    ],
)
def test_a_wrong_registration_is_refused(operators, said):
    before = dict(RULES)
    with pytest.raises(ConfigError, match=said):
        rules.rule(*operators)(lambda op, x: x)
    assert before == RULES


def test_every_operator_that_our_rules_name_is_there():
    """PyTorch may lack one later, and then its rule waits; today a name that is not there is a slip of the pen."""
    files = (Path(rules.__file__).parent).glob("*.py")
    texts = [t for f in files for t in re.findall(r"aten\(((?:\s*\"[^\"]*\")+)", f.read_text())]
    names = " ".join(re.findall(r"\"([^\"]*)\"", " ".join(texts))).split()
    assert len(names) > 250
    assert [n for n in names if n != "no_such_operator" and not hasattr(torch.ops.aten, n)] == []
