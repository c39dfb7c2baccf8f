"""Outputs that nobody needs: what is chosen is kept exactly, the rest may go, and forwards still run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from harness import randomised
from torch import nn
from typer.testing import CliRunner

from chipnet import ConfigError, LoadError, Plan, Pruner, Structure, compact, verify_compact
from chipnet.lab.cli import app


@dataclass
class Found:
    boxes: torch.Tensor
    feats: list[torch.Tensor]


class Pair(NamedTuple):
    y: torch.Tensor
    extra: dict[str, object]


class Detector(nn.Module):
    """neck 3>8(g) - norm - relu - head 8>4; a side branch 8>6(g) - 6>5. Returns (y, {"feats", "side", "found"})."""

    def __init__(self) -> None:
        super().__init__()
        self.neck, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.side, self.end = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x):
        z = F.relu(self.norm(self.neck(x)))
        y, side = self.head(z), self.end(F.relu(self.side(z)))
        return Pair(
            y, {"feats": [z, z * 2], "side": side, "found": Found(y * 2, [z.softmax(1).mean((2, 3))])}
        )


def made(**options):
    torch.manual_seed(0)
    model, x = randomised(Detector()), torch.randn(2, 3, 6, 6).double()
    return model, x, Structure(model, x, **options)


def free(s: Structure) -> dict[str, int]:
    return {site.name: site.free for site in s.sites if site.free}


CHOICES = {
    "path": "0",
    "name": "y",
    "several": ["y", "extra.found.boxes"],
    "function": lambda out: out[0],
    "dict": lambda out: {"a": out.y, "b": [out.extra["found"].boxes]},
    "computed": lambda out: out.y[:, :2],
    "number": 0,
}


@pytest.mark.parametrize("name", CHOICES)
def test_what_is_chosen_is_exact_and_the_rest_may_go(name):
    assert free(made()[2]).keys() == {"side"}
    model, x, s = made(outputs=CHOICES[name])
    assert free(s)["norm"] == 8
    mask = torch.arange(s.gates) % 2 == 0
    plan = s.plan(mask)
    small = compact(model, plan)
    assert small.neck.out_channels < 8
    out, dense = small(x), model(x)
    assert out.y.shape == dense.y.shape
    assert out.extra["feats"][0].shape[1] == small.neck.out_channels
    assert not any(p.numel() for p in small.end.parameters())  # nobody needs it
    assert verify_compact(model, small, plan, x).difference < 1e-9
    with torch.no_grad():
        small.head.bias[0] += 1e-3
    assert verify_compact(model, small, plan, x).difference > 1e-5


def test_a_plan_remembers_which_outputs_matter(tmp_path):
    for given, written in (("y", ["y"]), (lambda out: out[0], [0]), (lambda out: out.y * 1, None)):
        model, x, s = made(outputs=given)
        plan = s.plan(torch.arange(s.gates) % 2 == 0)
        plan.save(tmp_path / "plan.json")
        assert json.loads((tmp_path / "plan.json").read_text()).get("outputs") == written
        again = Plan.load(tmp_path / "plan.json")
        if written is not None:
            compact(model, again, x)
    bad = {**plan.to_json(), "outputs": [1.5]}
    with pytest.raises(LoadError, match="the plan is damaged"):
        Plan.from_json(bad)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("2", r"outputs: '2' is not there. There are: 0 \(2, 4, 4, 4\), 1.feats.0 \(2, 8, 4, 4\)"),
        ("1.boxes", "'1.boxes' is not there"),
        ("y.0", "'y.0' is not there"),
        ("y.__class__", "'y.__class__' is not there"),
        ("extra.found.__init__", "is not there"),
        (lambda out: out.nothing, "the function '<lambda>' failed .* AttributeError"),
        (lambda out: 3, "the function '<lambda>' holds no tensor"),
        ("", "outputs takes a path"),
        ("0..boxes", "outputs takes a path"),
        (1.5, "outputs takes a path"),
        ([None], "outputs takes a path"),
    ],
)
def test_what_cannot_be_chosen_is_one_clear_error(given, said):
    with pytest.raises(ConfigError, match=said):
        made(outputs=given)


def test_a_pruner_takes_the_choice():
    torch.manual_seed(0)
    model, x = Detector(), torch.randn(2, 3, 6, 6)
    pruner = Pruner(model, x, "macs=0.5", steps=1, outputs="y")
    model(x).y.sum().backward()
    pruner.step()
    plan = pruner.harden()
    pruner.detach()
    assert compact(model, plan).neck.out_channels < 8


def net(num_classes: int = 10) -> nn.Module:
    return Detector()


def test_the_command_line_takes_paths(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    command = ["inspect", "test_outputs:net", "--input", "1,3,8,8", "--json"]
    whole = json.loads(CliRunner().invoke(app, command).stdout)
    part = json.loads(CliRunner().invoke(app, [*command, "--outputs", "0", "--outputs", "extra.side"]).stdout)
    assert part["gates"] > whole["gates"]
    wrong = CliRunner().invoke(app, [*command, "--outputs", "7"])
    assert wrong.exit_code == 2
