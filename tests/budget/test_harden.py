"""Hard masks meet the budget exactly: by brute force over all masks of tiny networks."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import RESIDUAL, TOYS, made, mask_of, randomised

from chipnet import BudgetError, CaptureError, ConfigError, Structure, compact
from chipnet.analysis.kinds import KINDS
from chipnet.budget.solver import Hardener
from chipnet.lab.models import get_model


class TinyResidual(nn.Module):
    """conv0 2>3 - bn0(g) -+- conv1 3>2 - bn1(g) - relu - conv2 2>3 - bn2(g) -(+)- head 3>2"""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.bn0 = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.conv1, self.bn1 = nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.conv2, self.bn2 = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.conv0(x))
        return self.head(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class TinyConcat(nn.Module):
    """conv_a 2>3(g) and conv_b 2>2(g) - cat - conv 5>3(g) - relu - head 3>2"""

    def __init__(self) -> None:
        super().__init__()
        self.conv_a, self.conv_b = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.conv, self.head = nn.Conv2d(5, 3, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.conv_a(x), self.conv_b(x)], 1)
        return self.head(torch.relu(self.conv(torch.relu(x))))


class TinyGate(nn.Module):
    """conv 2>3(g) - relu -(*)- head 3>2, times sigmoid(conv of pool(g))"""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        s = torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return self.head(x * s)


class TinyLopsided(nn.Module):
    """
    x -+- conv_a 3x3 2>5(g) -+- cat - head 6>2      conv_a costs more in all, one channel of it costs less
       +- conv_b 5x5 2>1(g) -'
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_a, self.conv_b = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(2, 1, 5, padding=2)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(torch.cat([self.conv_a(x), self.conv_b(x)], 1)))


def tiny_chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1)
    )


TINY: dict[str, Callable[[], nn.Module]] = {
    "chain": tiny_chain,
    "residual": TinyResidual,
    "concat": TinyConcat,
    "squeeze": TinyGate,
    "lopsided": TinyLopsided,
}
OPTIONS = list(itertools.product(TINY, ["plain", "indexed"], [True, False]))


@functools.cache
def brute(name: str, realisation: str, share: bool) -> tuple[Structure, Tensor, Tensor, Tensor]:
    """Structure, all masks, their exact costs, and which are connected."""
    torch.manual_seed(0)
    s = Structure(
        randomised(TINY[name]()), torch.randn(1, 2, 3, 3).double(), realisation=realisation, share=share
    )
    assert 4 < s.gates <= 10
    masks = torch.tensor(list(itertools.product([False, True], repeat=s.gates)))
    costs = s.cost(masks.double()).round().long()
    connected = torch.tensor([s.connected(m) for m in masks])
    return s, masks, costs, connected


def assert_is_full(s: Structure, mask: Tensor, limits: dict[str, int]) -> None:
    """Within the limits, connected, canonical, and no shut gate that would do something fits as well."""
    cost = s.cost.exact(mask)
    assert all(cost[k] <= v for k, v in limits.items())
    assert s.connected(mask)
    assert torch.equal(s.canonical(mask), mask)
    for g in torch.nonzero(~mask).flatten().tolist():
        more = mask.clone()
        more[g] = True
        if s.analysis.useful(more)[g] > 0.5:
            bigger = s.cost.exact(more)
            assert not all(bigger[k] <= v for k, v in limits.items()), f"gate {g} fits too"


@pytest.mark.parametrize(("name", "realisation", "share"), OPTIONS)
@settings(max_examples=20)
@given(data=st.data())
def test_result_fits_and_nothing_more_does(name, realisation, share, data):
    """Over random scores and every reachable budget, one or several kinds at once, floor or none."""
    s, _, costs, connected = brute(name, realisation, share)
    reachable = costs[connected]
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=2, unique=True))
    target = reachable[data.draw(st.integers(0, len(reachable) - 1))]  # a connected mask meets all of these
    limits = {k: int(target[KINDS.index(k)]) for k in kinds}
    scores = data.draw(st.lists(st.floats(0, 1), min_size=s.gates, max_size=s.gates))
    floor = data.draw(st.sampled_from([0.0, 0.1, 0.5]))
    mask = Hardener(s.analysis, limits, torch.tensor(scores)).solve(floor)
    assert_is_full(s, mask, limits)


@pytest.mark.parametrize(("name", "realisation", "share"), OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_budget_down_to_the_smallest_is_met_and_below_it_refused(name, realisation, share, kind):
    s, _, costs, connected = brute(name, realisation, share)
    k = KINDS.index(kind)
    sizes = sorted(set(costs[connected, k].tolist()))
    scores = torch.rand(s.gates, generator=torch.Generator().manual_seed(1))
    for limit in sizes[:3] + sizes[3::7]:
        Hardener(s.analysis, {kind: limit}).check()
        assert_is_full(s, Hardener(s.analysis, {kind: limit}, scores).solve(), {kind: limit})
    below = Hardener(s.analysis, {kind: sizes[0] - 1}, scores)
    for refuse in (below.check, below.solve):
        with pytest.raises(
            BudgetError, match=f"{kind}: asked {sizes[0] - 1:,}, smallest reachable {sizes[0]:,}"
        ):
            refuse()


@pytest.mark.parametrize(("name", "realisation", "share"), OPTIONS)
@settings(max_examples=20)
@given(data=st.data())
def test_a_site_that_lives_has_its_least_width_where_there_is_room(name, realisation, share, data):
    s, masks, costs, connected = brute(name, realisation, share)
    kind = data.draw(st.sampled_from(KINDS))
    reachable = costs[connected]
    limit = int(reachable[data.draw(st.integers(0, len(reachable) - 1)), KINDS.index(kind)])
    scores = torch.tensor(data.draw(st.lists(st.floats(0, 1), min_size=s.gates, max_size=s.gates)))
    least = [data.draw(st.integers(1, 3)) for _ in s.analysis.site_gates]

    def wide(mask: Tensor) -> Tensor:
        """Whether no site is thinner than it may be, of masks [..., gates]."""
        open_ = [mask[..., gates].sum(-1) for gates in s.analysis.site_gates]
        enough = [min(n, len(gates)) for n, gates in zip(least, s.analysis.site_gates, strict=True)]
        return torch.stack([(n == 0) | (n >= m) for n, m in zip(open_, enough, strict=True)], -1).all(-1)

    mask = Hardener(s.analysis, {kind: limit}, scores, least).solve(data.draw(st.sampled_from([0.0, 0.5])))
    assert s.cost.exact(mask)[kind] <= limit
    assert s.connected(mask)
    if (wide(masks) & connected & (costs[:, KINDS.index(kind)] <= limit)).any():
        assert wide(mask)
        for gates in s.analysis.site_gates:  # and no site could have one more, or be opened
            shut = gates[~mask[gates]]
            for g in shut.tolist() if len(shut) < len(gates) else []:
                more = mask.clone()
                more[g] = True
                assert s.analysis.useful(more)[g] <= 0.5 or s.cost.exact(more)[kind] > limit
    else:
        assert_is_full(s, mask, {kind: limit})


@pytest.mark.parametrize("score", [0.1, 0.3, 1 / 3])
@pytest.mark.parametrize("options", [{"round_to": 1}, {"round_to": 3}])
def test_equal_scores_do_not_open_a_site_below_its_least_width(score, options):
    """The mean of six times 0.1 is less than 0.1."""
    s = Structure(get_model("resnet8"), torch.randn(1, 3, 16, 16), **options)
    scores = torch.full((s.gates,), score, dtype=torch.float64)
    for part in (0.3, 0.391, 0.415, 0.5, 0.6):
        mask = Hardener(s.analysis, s.limits({"volume": part}), scores, [6] * len(s.sites)).solve(full=False)
        counts = [int(mask[gates].sum()) for gates in s.analysis.site_gates if len(gates)]
        assert all(n == 0 or n >= 6 for n in counts), (part, counts)


def test_a_floor_counts_gates_where_they_are_opened_together():
    s = Structure(get_model("resnet8"), torch.randn(1, 3, 16, 16))
    scores = torch.zeros(s.gates)
    scores[s.analysis.site_gates[next(i for i, g in enumerate(s.analysis.site_gates) if len(g))]] = 1.0
    mask = Hardener(s.analysis, s.limits({"volume": 0.4}), scores, [6] * len(s.sites)).solve(
        [0.1] * len(s.sites), full=False
    )
    counts = [int(mask[gates].sum()) for gates in s.analysis.site_gates if len(gates)]
    assert counts[0] > 6
    assert set(counts[1:]) == {6}  # a tenth of 64 is six, of 32 three and of 16 two, which come as six


def test_several_budgets_that_no_network_meets_together_are_refused():
    s, _, costs, connected = brute("residual", "plain", True)
    smallest = {k: int(costs[connected, i].min()) for i, k in enumerate(KINDS)}
    with pytest.raises(BudgetError, match=r"at least one kind") as error:
        Hardener(s.analysis, {"macs": smallest["macs"] - 1, "params": smallest["params"]}).check()
    assert f"{smallest['macs']:,}" in str(error.value)
    assert f"{smallest['params']:,}" in str(error.value)


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
def test_toys_land_on_every_budget(name, share):
    _, _, s = made(TOYS[name], share=share)
    for seed, budget in enumerate(
        [{"macs": 0.9}, {"params": 0.8}, {"channels": 0.85, "macs": 0.8}, {"volume": 0.9}]
    ):
        scores = torch.rand(s.gates, generator=torch.Generator().manual_seed(seed))
        limits = s.limits(budget)
        try:
            s.check(budget)
        except BudgetError:
            assert TOYS[name].whole  # only where much is kept whole
            continue
        assert_is_full(s, s.harden(scores, budget), limits)


def test_best_scores_are_kept():
    """In a chain every channel of a site costs the same: the best of a site stay, whatever the budget."""
    _, _, s = made(TOYS["chain"])
    scores = torch.rand(s.gates, generator=torch.Generator().manual_seed(5))
    for fraction in (0.2, 0.4, 0.6, 0.8):
        mask = s.harden(scores, {"macs": fraction})
        assert not mask.all()
        for gates in s.analysis.site_gates:
            kept, shut = scores[gates][mask[gates]], scores[gates][~mask[gates]]
            if len(gates):
                assert len(kept) > 0
                assert len(shut) == 0 or kept.min() > shut.max()


def test_equal_scores_are_settled_the_same_way_every_time():
    _, _, s = made(RESIDUAL)
    masks = [s.harden(torch.ones(s.gates), {"macs": 0.5}) for _ in range(2)]
    assert torch.equal(*masks)


def test_whole_budget_keeps_everything():
    for name in TOYS:
        _, _, s = made(TOYS[name])
        assert s.harden(torch.rand(s.gates), {"macs": 1.0}).all()


def test_floor_keeps_a_part_of_every_site():
    _, _, s = made(TOYS["chain"])
    scores = torch.zeros(s.gates)
    scores[s.analysis.site_gates[next(i for i, t in enumerate(s.sites) if t.name == "bn2")]] = 1.0
    # 7 and 11 channels: round(0.3 * 7) = 2, round(0.3 * 11) = 3
    mask = s.harden(scores, {"macs": 0.5}, floor=0.3)
    kept = {t.name: int(mask[g].sum()) for t, g in zip(s.sites, s.analysis.site_gates, strict=True) if len(g)}
    assert kept["bn1"] >= 2
    assert kept["bn2"] >= 3


def test_a_floor_for_each_site():
    _, _, s = made(TOYS["chain"])
    name = {i: t.name for i, t in enumerate(s.sites)}
    scores = torch.zeros(s.gates)
    floors = [0.5 if name[i] == "bn1" else 0.0 for i in range(len(s.sites))]
    scores[s.analysis.site_gates[next(i for i in name if name[i] == "bn2")]] = 1.0
    mask = Hardener(s.analysis, s.limits({"macs": 0.4}), scores).solve(floors)
    kept = {name[i]: int(mask[g].sum()) for i, g in enumerate(s.analysis.site_gates) if len(g)}
    without = s.harden(scores, {"macs": 0.4})
    assert kept["bn1"] == 4  # round(0.5 * 7), to even
    assert kept["bn1"] > sum(
        int(without[g].sum()) for i, g in enumerate(s.analysis.site_gates) if name[i] == "bn1"
    )


def test_a_branch_with_a_dead_layer_dies_whole():
    """Inner gates last in line: the branch goes, with the macs and params of both its convolutions."""
    model, _, s = made(RESIDUAL, share=False)
    names = {t.name: t for t in s.sites}
    scores = torch.ones(s.gates)
    scores[names["bn1"].gates] = 0.0
    without = s.cost.exact(s.canonical(mask_of(s, {"bn1": ()})))
    mask = Hardener(s.analysis, {"macs": without.macs}, scores).solve()
    assert not mask[names["bn1"].gates].any()
    assert not mask[names["bn2"].gates].any()  # open at first; without bn1 they would only emit constants
    plan = s.plan(mask)
    assert plan.compact == without
    small = compact(model, plan)
    for dead in ("conv1", "bn1", "conv2", "bn2"):
        assert sum(p.numel() for p in getattr(small, dead).parameters()) == 0
    assert without.macs == 50 * 9 * 3 * 7 + 2 * 7 * 5
    assert without.params == 3 * 7 * 9 + 2 * 7 + 7 * 5 + 5


def test_a_network_with_nothing_to_prune_is_refused():
    s = Structure(nn.Sequential(nn.Linear(3, 5)), torch.ones(2, 3))
    assert s.gates == 0
    with pytest.raises(CaptureError, match="nothing in Sequential can be pruned: 1 layer"):
        s.check({"macs": 0.5})


def test_refusal_gives_fractions_of_the_dense_cost():
    _, _, s = made(TOYS["chain"])
    smallest = 50 * 9 * 3 + 50 * 9 + 2 * 5
    dense = 50 * 9 * 3 * 7 + 50 * 9 * 7 * 11 + 2 * 11 * 5
    text = f"smallest reachable {smallest:,} ({smallest / dense:.2%} of {dense:,})"
    with pytest.raises(BudgetError, match=re.escape(text)):
        s.check({"macs": smallest - 1})
    s.check({"macs": smallest})


class ThreePaths(nn.Module):
    """
    x -+- a 1x1 2>2(g) at 12x12 -+- cat - head 6>2      From a to c a channel has fewer MACs and more parameters.
       +- b 3x3 2>2(g) at 3x3 ---+
       +- c 5x5 2>2(g) at 1x1 ---'
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1)
        self.c, self.head = nn.Conv2d(2, 2, 5, padding=2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        paths = [self.a(x), self.b(F.avg_pool2d(x, 4)), self.c(F.avg_pool2d(x, 12))]
        return self.head(torch.cat([torch.relu(y).mean((2, 3)) for y in paths], 1))


def test_several_budgets_that_only_a_compromise_meets_are_met():
    s = Structure(ThreePaths().eval(), torch.randn(1, 2, 12, 12))
    only_b = mask_of(s, {"a": (), "b": (0,), "c": ()})
    cost = s.cost.exact(only_b)
    assert cost.macs == 9 * 9 * 2 + 1 * 2
    assert cost.params == 9 * 2 + 1 + 1 * 2 + 2
    assert s.connected(only_b)
    Hardener(s.analysis, {"macs": cost.macs, "params": cost.params}).check()


# -- widths -------------------------------------------------------------------------------------------------
def widths(s: Structure, mask: torch.Tensor) -> dict[str, tuple[int, int]]:
    plan = s.plan(mask)
    return {site.name: (site.kept, site.channels) for site in plan.sites if not site.reason}


@pytest.mark.parametrize("multiple", [2, 4, 8])
@pytest.mark.parametrize("build", [lambda: get_model("resnet20"), lambda: get_model("preresnet20")])
def test_widths_are_multiples_or_whole_and_the_budget_is_met_to_the_block(build, multiple):
    torch.manual_seed(0)
    model, x = build(), torch.randn(1, 3, 16, 16)
    s = Structure(model, x, round_to=multiple)
    scores = torch.rand(s.gates)
    mask = s.harden(scores, {"macs": 0.4})
    limit = s.limits({"macs": 0.4})["macs"]
    assert s.cost.exact(mask).macs <= limit
    found = widths(s, mask)
    assert found
    assert all(kept % multiple == 0 or kept == channels for kept, channels in found.values())
    assert any(0 < kept < channels for kept, channels in found.values())
    # No further block fits, whichever site it comes from.
    for gates in s.analysis.site_gates:
        shut = gates[~mask[gates]]
        best = shut[torch.argsort(scores[shut], descending=True)][:multiple]
        if len(best):
            more = mask.clone()
            more[best] = True
            does = s.analysis.useful(more)[best] > 0.5
            assert not does.any() or s.cost.exact(more).macs > limit
    compact(model, s.plan(mask))


def test_an_odd_width_may_stay_whole():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 13, 3), nn.ReLU(), nn.Conv2d(13, 11, 3), nn.ReLU(), nn.Conv2d(11, 2, 3)
    )
    s = Structure(model, torch.randn(1, 3, 9, 9), round_to=4)
    scores = torch.cat([torch.ones(13), torch.arange(11) / 20])
    mask = s.harden(scores, {"macs": 0.85})
    assert [int(mask[g].sum()) for g in s.analysis.site_gates if len(g)] == [13, 8]
    assert mask[13:].tolist() == [False] * 3 + [True] * 8  # the best ones make the blocks


@pytest.mark.parametrize("budget", [0.5, 0.2])
def test_every_site_keeps_its_minimum(budget):
    torch.manual_seed(0)
    s = Structure(get_model("resnet20"), torch.randn(1, 3, 16, 16), min_channels=3)
    mask = s.harden(torch.rand(s.gates), {"macs": budget})
    assert s.cost.exact(mask).macs <= s.limits({"macs": budget})["macs"]
    assert min(kept for kept, _ in widths(s, mask).values()) >= 3


def test_a_minimum_that_the_budget_cannot_pay_is_refused_with_the_smallest_cost():
    s = Structure(get_model("resnet20"), torch.randn(1, 3, 16, 16), min_channels=12)
    with pytest.raises(BudgetError, match="smallest reachable"):
        s.check({"macs": 0.1})
    Structure(get_model("resnet20"), torch.randn(1, 3, 16, 16)).check({"macs": 0.1})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"round_to": 0}, "round_to must be at least 1"),
        ({"min_channels": -1}, "min_channels must be at least 0"),
        ({"round_to": 8, "share": False}, "round_to needs share=True"),
    ],
)
def test_widths_that_cannot_be_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Structure(get_model("resnet8"), torch.randn(1, 3, 16, 16), **options)
