"""A plan is frozen, explains itself, survives JSON, and refuses what it was not made for."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import RESIDUAL, TOYS, Chain, Residual, made, mask_of, randomised

import chipnet
from chipnet import Budget, LoadError, Plan, PlanError, Structure, compact
from chipnet.surgery.plan import VERSION


@pytest.fixture
def chain_plan() -> Plan:
    _, _, s = made(TOYS["chain"])
    return s.plan(mask_of(s, {"bn1": (0, 2, 5), "bn2": (1, 4, 6, 10)}), Budget.parse("macs=0.25"))


@pytest.mark.parametrize("realisation", ["plain", "indexed"])
@pytest.mark.parametrize("name", TOYS)
def test_json_round_trip_gives_an_equal_plan(name, realisation, tmp_path):
    _, _, s = made(TOYS[name], realisation=realisation, share=False)
    for seed in range(3):
        mask = s.canonical(torch.rand(s.gates, generator=torch.Generator().manual_seed(seed)) < 0.6)
        if not s.connected(mask):
            continue
        plan = s.plan(mask, Budget.parse({"params": 0.5}))
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan
        assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_loaded_plan_compacts_like_the_made_one(tmp_path):
    model, x, s = made(RESIDUAL, realisation="indexed", share=False)
    plan = s.plan(mask_of(s, {"bn0": (0, 1), "bn1": (2, 3), "bn2": (1, 4)}))
    plan.save(tmp_path / "plan.json")
    a, b = compact(model, plan), compact(model, Plan.load(tmp_path / "plan.json"))
    assert torch.equal(a(x), b(x))


def test_a_plan_is_frozen(chain_plan):
    with pytest.raises(dataclasses.FrozenInstanceError):
        chain_plan.budget = "macs=1"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        chain_plan.sites[0].kept = 3


def test_shape_is_that_of_the_compact_model(chain_plan):
    model, _, _ = made(TOYS["chain"])
    for name, p in compact(model, chain_plan).state_dict().items():
        assert chain_plan.shape(name) == tuple(p.shape)


def test_plans_of_different_masks_differ(chain_plan):
    _, _, s = made(TOYS["chain"])
    assert (
        s.plan(mask_of(s, {"bn1": (0, 2, 4), "bn2": (1, 4, 6, 10)}), Budget.parse("macs=0.25")) != chain_plan
    )


def test_explain_says_costs_sites_and_reasons(chain_plan):
    text = chain_plan.explain()
    macs = 50 * 9 * 9 + 50 * 9 * 12 + 2 * 20, 50 * 9 * 21 + 50 * 9 * 77 + 2 * 55
    assert f"macs     {macs[0]:>6,} of {macs[1]:>6,}" in text
    lines = text.splitlines()
    assert "bn1: 3 of 7" in lines
    assert "bn2: 4 of 11" in lines
    assert "fc: 5 of 5, kept whole: an output of the network" in lines


def test_explain_names_ties_and_removed_modules():
    model, _, s = made(RESIDUAL)
    lines = s.plan(mask_of(s, {"bn1": ()})).explain().splitlines()
    source, first = inspect.getsourcelines(type(model).forward)
    (at,) = [first + i for i, line in enumerate(source) if "x + self.bn2" in line]
    assert f"bn0: 7 of 7, tied to bn2 (tied by aten.add.Tensor (toys.py:{at}))" in lines
    assert "bn1: 0 of 11" in lines
    assert "conv1: removed (dead)" in lines
    assert "bn2: removed (norm)" in lines


def test_another_network_is_refused_with_the_differences(chain_plan):
    with pytest.raises(PlanError, match="another network than Residual") as error:
        chain_plan.check(Residual())
    assert "conv0.weight: not in the plan" in str(error.value)
    assert "more" in str(error.value)
    wider = Chain()
    wider.fc = nn.Linear(11, 13)
    with pytest.raises(PlanError, match=r"fc.weight: \(13, 11\) instead of \(5, 11\)"):
        compact(wider, chain_plan)


def test_a_compact_network_is_refused_a_second_time(chain_plan):
    model, _, _ = made(TOYS["chain"])
    with pytest.raises(PlanError, match=r"conv1.weight: \(3, 3, 3, 3\) instead of \(7, 3, 3, 3\)"):
        compact(compact(model, chain_plan), chain_plan)


def test_a_mask_of_the_wrong_length_is_refused():
    _, _, s = made(TOYS["chain"])
    with pytest.raises(PlanError, match=r"shape \(17,\); this network has 18 gates"):
        s.plan(torch.ones(17, dtype=torch.bool))


class GRN(nn.Module):
    """Scales channels by their norm as a part of the mean norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.ones(1, 6, 1, 1)) for _ in range(2))
        self.eps = 1e-2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        scale = size / (size.mean(dim=1, keepdim=True) + self.eps)
        return self.weight * (x * scale) + self.bias + x


class EveryRecord(nn.Module):
    """What a plan of it holds: a frozen weight, sizes, a scale, stand-ins, index maps, a module's output that is
    shut."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 1))
        self.sigmoid, self.b, self.grn = nn.Sigmoid(), nn.Conv2d(6, 6, 1), GRN()
        self.c, self.dead, self.d = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1)
        self.split, self.fc = [2, 4], nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c(self.grn(self.b(self.sigmoid(self.a(x)))))
        left, right = (x + self.d(self.dead(x).relu())).split(self.split, 1)
        return self.fc(torch.cat([left.relu(), right], 1).mean((2, 3)))


RECORDS = ("stand_ins", "remaps", "sites", "sizes", "scales", "frozen")


def test_records_are_written_by_the_names_of_their_fields_and_read_from_the_lists_of_version_3(tmp_path):
    old = json.loads((Path(__file__).parent / "plan_version_3.json").read_text())
    plan = Plan.from_json(old)
    new = plan.to_json()
    for name in RECORDS:
        pairs = zip(new[name], old[name], strict=True)
        assert [list(record.values())[: len(was)] for record, was in pairs] == old[name] != []
        fields = [f.name for f in dataclasses.fields(getattr(plan, name)[0])]
        assert all(list(record) == fields for record in new[name])
    assert new.pop("live") == new.pop("rows") == []  # version 4 had neither
    four = [{k: v for k, v in site.items() if k != "covered"} for site in new["sites"]]  # it said so in words
    assert Plan.from_json({**new, "sites": four, "version": 4}) == plan
    for reason, covered in (
        ("follows the gates of what it reads", True),
        ("goes with what it is multiplied by", True),
        ("an output of the network", False),
    ):
        four[0]["reason"] = reason
        assert Plan.from_json({**new, "sites": four, "version": 4}).sites[0].covered is covered
    assert {**new, **{name: old[name] for name in RECORDS}, "version": 3} == old
    new["live"] = new["rows"] = []
    assert Plan.from_json(json.loads(json.dumps(new))) == plan
    torch.manual_seed(0)
    small = compact(
        randomised(EveryRecord()), plan, torch.randn(2, 3, 4, 4, dtype=torch.float64)
    )  # it compares
    assert (small.a.out_channels, small.b.out_channels, small.split) == (3, 4, [1, 2])


@pytest.mark.parametrize("version", [0, 2, VERSION + 1, None, "one"])
def test_an_unknown_version_is_refused(chain_plan, version):
    with pytest.raises(
        LoadError, match=f"plan version {version!r} is unknown.*reads versions 3 to {VERSION}"
    ):
        Plan.from_json({**chain_plan.to_json(), "version": version})


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("keep"),
        lambda d: d.update(dense={"macs": 3}),
        lambda d: d.update(zero=3),
        lambda d: d.update(keep=[1, 2]),
        lambda d: d.update(remaps=[["a"]]),
        lambda d: d.update(mask=7),
    ],
)
def test_a_damaged_plan_is_one_clear_error(chain_plan, damage):
    data = chain_plan.to_json()
    damage(data)
    with pytest.raises(LoadError, match="damaged"):
        Plan.from_json(data)


class Attending(nn.Module):
    """A plan of it holds rows of queries, a scaled norm, and one with live statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.up = (nn.Linear(4, 6) for _ in range(4))
        self.rms, self.ln, self.out = nn.RMSNorm(6, eps=0.1), nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return self.out(self.rms(y) + self.ln(self.up(x)))


@pytest.fixture(scope="module")
def attending() -> tuple[nn.Module, Plan]:
    torch.manual_seed(0)
    model = randomised(Attending())
    s = Structure(model, torch.randn(2, 5, 4, dtype=torch.float64))
    return model, s.plan(s.canonical(torch.arange(s.gates) % 5 != 1))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d["live"][0]["norm"].update(weight="nope"),
        lambda d: d["live"][0]["norm"].update(bias="nope"),
        lambda d: d["live"][0]["norm"].update(over=[-7]),
        lambda d: d["live"][0]["norm"].update(module="nope"),
        lambda d: d["live"][0].update(kept=[9]),
        lambda d: d["rows"][0].update(parameter="nope"),
        lambda d: d["rows"][0].update(at=[9]),
        lambda d: d["scales"][0].update(factor=0.0),
    ],
)
def test_damage_of_what_norms_and_attention_are_given_is_one_clear_error(attending, damage):
    data = json.loads(json.dumps(attending[1].to_json()))
    damage(data)
    with pytest.raises(LoadError, match="damaged"):
        Plan.from_json(data)


def test_a_scale_of_a_number_that_a_module_lacks_is_another_network(attending):
    model, plan = attending
    plan.check(model)
    data = json.loads(json.dumps(plan.to_json()))
    data["scales"][1]["name"] = "nope"
    with pytest.raises(PlanError, match=r"another network than Attending: rms\.nope: no such number"):
        Plan.from_json(data).check(model)


def test_a_file_that_is_no_plan_is_one_clear_error(tmp_path, chain_plan):
    with pytest.raises(LoadError, match="cannot read a plan"):
        Plan.load(tmp_path / "missing.json")
    chain_plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "cut.json").write_text(text[: len(text) // 2])
    with pytest.raises(LoadError, match="cannot read a plan"):
        Plan.load(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(LoadError, match="unknown"):
        Plan.load(tmp_path / "list.json")


def test_plan_with_float32_weights_works_too():
    model = randomised(Chain()).float()
    x = torch.randn(2, 3, 5, 5)
    from chipnet import Structure

    s = Structure(model, x)
    plan = s.plan(mask_of(s, {"bn1": (0, 2, 5)}))
    assert compact(model, plan).conv1.weight.dtype == torch.float32


def test_a_buffer_that_is_not_saved_is_cut_and_the_plan_is_read_again(tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
            self.register_buffer("scale", torch.arange(8) + 1.0, persistent=False)

        def forward(self, x):
            return self.b(self.a(x) * self.scale.view(1, -1, 1, 1))

    net, x = Scaled(), torch.randn(2, 3, 4, 4)
    plan = Structure(net, x).plan(torch.arange(8) % 2 == 0)
    plan.save(tmp_path / "plan.json")
    small = compact(net, Plan.load(tmp_path / "plan.json"), x)
    assert small.scale.tolist() == [1.0, 3.0, 5.0, 7.0]
    chipnet.save(small, plan, tmp_path / "small.safetensors")
    assert torch.equal(chipnet.load(Scaled, tmp_path / "small.safetensors")(x), small(x))
    other = nn.Module.__new__(Scaled)
    nn.Module.__init__(other)
    with pytest.raises(PlanError, match="scale: missing"):
        plan.check(other)
