"""Parts of the default of 0.2, on cases worked out by hand."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from small import fresh, made

import chipnet
from chipnet import Structure
from chipnet.lab.models import get_model
from chipnet.lab.models.preresnet import PreResNet


def test_the_floor_of_chipnet_takes_at_most_half_of_the_budget():
    """A twentieth of 31, 23 and 37 channels: 2, 1 and 2 of them."""
    _, structure, *_ = made()
    least = torch.zeros(structure.gates, dtype=torch.bool)
    for gates in structure.analysis.site_gates:
        least[gates[: {31: 2, 23: 1, 37: 2}.get(len(gates), 0)]] = True
    cost = structure.cost.exact(least).macs
    assert fresh("chipnet-2026a", {"macs": 2 * cost})[0].method.floors() == [0.05] * len(structure.sites)
    floors = fresh("chipnet-2026a", {"macs": 2 * cost - 1})[0].method.floors()
    sizes = [len(gates) for gates in structure.analysis.site_gates]
    assert {n: round(n * part) for n, part in zip(sizes, floors, strict=True) if n} == {31: 2, 23: 0, 37: 2}
    assert not any(fresh("chipnet-2026a:floor=0", {"macs": 2 * cost - 1})[0].method.floors())


@pytest.mark.parametrize(
    ("budget", "together"),
    [("channels=149", 6), ("volume=0.25", 6), ("macs=0.005", 1), ("macs=0.25", 1), ("params=0.005", 1)],
)
def test_a_branch_of_chipnet_that_lives_does_so_with_as_much_as_it_costs(budget, together):
    """Six channels if the branch costs at least so many beside them, as its last layer's do (channels, volume), and
    no floor; one where all of its cost is in its channels (MACs), or nearly all."""
    torch.manual_seed(0)
    net, x = get_model("resnet20", num_classes=100, in_channels=1), torch.randn(8, 1, 14, 14)
    pruner = chipnet.Pruner(net, x, budget, steps=40, method="chipnet-2026a")
    sites = pruner.structure.sites
    inner = [
        i
        for i, site in enumerate(sites)
        if len(pruner.structure.analysis.site_gates[i]) and "bn1" in site.name and "." in site.name
    ]
    least = pruner.method.minimum()
    assert len(inner) == 9
    assert [least[i] for i in inner] == [together] * 9
    assert sum(least) == len(sites) + 9 * (together - 1)  # the streams' are decided by their floor
    for _ in range(40):
        loss = F.cross_entropy(net(x), torch.arange(8)) + pruner.loss()
        loss.backward()
        pruner.step()
        net.zero_grad()
    widths = [int(pruner.mask[pruner.structure.analysis.site_gates[i]].sum()) for i in inner]
    assert all(n == 0 or n >= together for n in widths)


@pytest.mark.parametrize(("budget", "together"), [("channels=0.5", 6), ("macs=0.25", 1), ("params=0.25", 1)])
def test_a_bottleneck_costs_beside_its_channels_what_all_of_it_costs(budget, together):
    """Its inner layers cost each other nothing that is not theirs; by themselves each would pay for the other."""
    net = PreResNet(3, bottleneck=True, num_classes=100, in_channels=1)
    structure = Structure(net, torch.zeros(1, 1, 14, 14))
    pruner = chipnet.Pruner(net, structure, budget, steps=4, method="chipnet-2026a")
    inner = [i for i, bypassed in enumerate(structure.analysis.bypassed) if bypassed]
    assert len(inner) == 2 * 9
    assert {pruner.method.minimum()[i] for i in inner} == {together}
    assert {pruner.method.floors()[i] for i in inner} == {0.0 if together > 1 else 0.05}


@pytest.mark.parametrize("setting", ["together=1", "together=1,floor=0", "together=0", "floor=0"])
@pytest.mark.parametrize("budget", ["volume=0.5", "volume=0.0625", "macs=0.5"])
def test_without_a_least_width_a_floor_holds_for_branches_too(setting, budget):
    net, x = get_model("resnet20", num_classes=100, in_channels=1), torch.zeros(1, 1, 14, 14)
    pruner = chipnet.Pruner(net, x, budget, steps=4, method=f"chipnet-2026a:{setting}")
    branches = [i for i, bypassed in enumerate(pruner.structure.analysis.bypassed) if bypassed]
    floor = 0.0 if "floor" in setting or budget == "volume=0.0625" else 0.05
    assert {pruner.method.floors()[i] for i in branches} == {floor}
    assert pruner.structure.connected(pruner.mask)


def test_where_no_branch_may_die_none_has_a_least_width():
    net = get_model("resnet20", num_classes=100, in_channels=1)
    structure = Structure(net, torch.zeros(1, 1, 14, 14), min_channels=3)
    pruner = chipnet.Pruner(net, structure, "volume=0.3", steps=4, method="chipnet-2026a")
    assert set(pruner.method.minimum()) == {1}
    assert set(pruner.method.floors()) == {0.05}


def test_a_branch_may_be_lost_at_a_finite_price():
    """Without the inside of the branch the input still arrives; without the stream or the last layer not."""
    pruner, *_ = fresh("chipnet-2026a:thrift=0,shared=0.75", {"macs": 0.5})
    bypassed = {
        site.host.module: pruner.method.may_die[site.gates].unique().tolist()
        for site in pruner.structure.sites
        if (site.gates >= 0).any()
    }
    assert bypassed == {"norm": [0.0], "norm_a": [1.0], "norm_b": [0.0], "last": [0.0]}
    method, sites = pruner.method, pruner.structure.analysis.site_gates
    bypassed = pruner.structure.analysis.bypassed
    method.learn(torch.ones(pruner.structure.gates))
    lost = []
    for gates in (g for g in sites if len(g)):
        z = torch.ones(pruner.structure.gates)
        z[gates] = 0.0
        lost.append((len(gates), float(method._lost(z))))
    # benefits alike: sum of w log(1 / 0.000001) or 23 log(1.05 / 0.05), over the sum of weights
    total = 31 * 2**0.75 + 23 + 37
    by_size = dict(lost)
    assert by_size[31] == pytest.approx(31 * 2**0.75 * math.log(1e6) / total, rel=1e-4)
    assert by_size[23] == pytest.approx(23 * math.log(21) / total, rel=1e-3)
    assert by_size[37] == pytest.approx(37 * math.log(1e6) / total, rel=1e-4)


def test_the_weight_of_a_site_falls_with_the_root_of_its_cost():
    """Parameters of the dense network that go with a site, by hand; the stream (31) is written by two layers."""
    pruner, *_ = fresh("chipnet-2026a", {"params": 0.5})
    costs = {
        31: 31
        * (27 + 2 + 23 * 9 + 23 * 9 + 2 + 37),  # stem, its norm, read by a, written by b, norm, read by last
        23: 23 * (31 * 9 + 2 + 31 * 9),
        37: 37 * (31 + 1 + 2),
    }
    worth = {len(g): float(pruner.method.worth[g[0]]) for g in pruner.structure.analysis.site_gates if len(g)}
    expected = {n: (2**1.25 if n == 31 else 1.0) / cost**0.5 for n, cost in costs.items()}
    for n in (31, 37):
        assert worth[n] / worth[23] == pytest.approx(expected[n] / expected[23], rel=1e-5)


@functools.cache
def thin(model):
    """A network for small images of one channel, and its structure."""
    net = get_model(model, num_classes=10, in_channels=1)
    return net, Structure(net, torch.zeros(1, 1, 16, 16))


def lead(model, **options):
    """By how much the first stream's gates weigh more than those of the branches that they run past."""
    text = "chipnet-2026a" + "".join(f":{k}={v}" for k, v in options.items())
    net, structure = thin(model)
    pruner = chipnet.Pruner(net, structure, "macs=0.5", steps=4, method=text)
    sites = [
        (float(pruner.method.worth[gates[0]]), bypassed)
        for gates, bypassed in zip(structure.analysis.site_gates, structure.analysis.bypassed, strict=True)
        if len(gates) == 16
    ]
    pruner.detach()
    (stream,) = [worth for worth, bypassed in sites if not bypassed]
    return stream / max(worth for worth, bypassed in sites if bypassed)


def test_a_deep_networks_streams_lead_by_no_more_than_a_shallow_ones():
    shallow, deep = lead("resnet20"), lead("resnet56")
    assert deep == pytest.approx(shallow, rel=0.1)
    assert lead("resnet20", most_layers=0) == shallow  # four layers share it
    # Ten layers share it, for two and a half times the cost.
    assert lead("resnet56", most_layers=0) == pytest.approx(shallow * 2.5**0.75, rel=0.1)


def test_a_stem_weighs_by_what_depends_on_it():
    """The stem of a wide network is no part of a stream: one layer has its gates."""
    net, x = get_model("wrn-16-2", num_classes=10, in_channels=1), torch.zeros(1, 1, 16, 16)
    pruner = chipnet.Pruner(net, x, "macs=0.5", steps=4, method="chipnet-2026a")
    method, sites = pruner.method, pruner.structure.analysis.site_gates
    bypassed = pruner.structure.analysis.bypassed
    stem = next(g for g, b in zip(sites, bypassed, strict=True) if len(g) == 16 and not b)
    stream = next(g for g, b in zip(sites, bypassed, strict=True) if len(g) == 32 and not b)

    def ratio(benefit):
        """What losing half of the stem costs, in losses of half of the first stream."""
        square = torch.ones(pruner.structure.gates)
        square[stem] = benefit**2
        method.square, method.seen = square * (1 - method.memory), 1
        lost = []
        for gates in (stem, stream):
            z = torch.ones(pruner.structure.gates)
            z[gates] = 0.5
            lost.append(float(method._lost(z)))
        return lost[0] / lost[1]

    alone = 16 + 2 * (32 + 64 + 128)  # the stem and the insides of six blocks
    typical = (16 * 9 + alone - 16) / alone
    assert ratio(9.0) / ratio(1.0) == pytest.approx((9 / typical) ** 0.5, rel=1e-4)


def test_of_sites_that_nothing_bypasses_only_the_stem_weighs_by_its_benefit():
    pruner = chipnet.Pruner(
        get_model("mobilenetv2-cifar"), torch.zeros(1, 3, 32, 32), "macs=0.5", steps=4, method="chipnet-2026a"
    )
    method, known = pruner.method, pruner.structure.analysis
    vital = [g for g, b in zip(known.site_gates, known.bypassed, strict=True) if len(g) and not b]
    assert [bool(method.weighed[g].all()) for g in vital] == [True] + [False] * (len(vital) - 1)
    assert len(vital) > 10


def test_in_a_plain_chain_no_site_weighs_by_its_benefit():
    """It does not help there: every layer of a chain stands between input and output."""
    pruner = chipnet.Pruner(
        get_model("vgg16-bn-cifar"), torch.zeros(1, 3, 32, 32), "macs=0.5", steps=4, method="chipnet-2026a"
    )
    assert not pruner.method.weighed.any()
