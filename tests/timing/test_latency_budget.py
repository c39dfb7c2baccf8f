"""Latency budgets: tables by hand, their gradients, the cache, the landing with a clock that is told what to say,
and whole prunings with the real one."""

import json

import pytest
import torch
from test_cli import own_networks, prune  # noqa: F401
from torch import nn

import chipnet
from chipnet import Budget, BudgetError, Plan, Structure
from chipnet.budget.landing import Landing
from chipnet.timing import clock, tables
from chipnet.timing.tables import LatencyModel, Table, land, measure_layer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(clock, "SECONDS", 0.15)


def net(width=48):
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)).eval()


X = torch.randn(1, 3, 20, 20)


# -- the model --------------------------------------------------------------------------------------------

HALF = Table((0, 2, 4), (0, 3), ((0, 0), (0, 60), (0, 100)))
"""Rows 0, 2, 4 and columns 0, 3: 60 for half of the rows, 100 for all."""


@pytest.mark.parametrize(
    ("alive", "rows", "columns", "expected"),
    [
        (1, 4, 3, 100),
        (1, 2, 3, 60),
        (1, 3, 3, 80),
        (1, 1, 3, 30),
        (1, 0, 3, 0),
        (1, 4, 0, 0),
        (0, 4, 3, 0),
        (1, 3, 1.5, 40),
    ],
)
def test_tables_are_interpolated_and_empty_layers_take_nothing(alive, rows, columns, expected):
    """Counts: index 0 is the constant 1, then alive, rows, columns."""
    model = LatencyModel([(1, 2, 3)], [HALF], (0.0, 0.0, 1.0))
    counts = torch.tensor([1.0, alive, rows, columns], dtype=torch.float64)
    assert float(model(counts, torch.tensor(0.0, dtype=torch.float64))) == pytest.approx(expected)


def test_rest_scale_batch_and_gradient():
    model = LatencyModel(
        [(0, 1, 2), (0, 2, 1)], [HALF, Table((0, 3), (0, 4), ((0, 0), (0, 12)))], (7.0, 0.5, 2.0)
    )
    counts = torch.tensor([[1, 4, 3], [1, 3, 3]], dtype=torch.float64, requires_grad=True)
    volume = torch.tensor([10.0, 0.0], dtype=torch.float64)
    out = model(counts, volume)
    assert out.tolist() == [7 + 5 + 2 * (100 + 12), 7 + 2 * (80 + 9)]
    torch.autograd.gradcheck(lambda c: model(c, volume), (counts.detach() - 0.3).requires_grad_())
    (gradient,) = torch.autograd.grad(out[1], counts)
    assert gradient[1].tolist() == [89 * 2, 2 * (20 + 3), 2 * (80 / 3 + 3)]


@pytest.mark.parametrize(
    ("layer", "shape", "rows", "columns"),
    [
        (nn.Conv2d(16, 24, 3), (2, 16, 9, 9), (0, 1, 3, 6, 12, 18, 24), (0, 1, 2, 4, 8, 12, 16)),
        (nn.Conv2d(16, 16, 3, groups=16), (1, 16, 9, 9), (0, 1, 2, 4, 8, 12, 16), (0, 1)),
        (nn.Conv2d(12, 8, 1, groups=2), (1, 12, 5, 5), (0, 2, 4, 6, 8), (0, 1, 2, 3, 4, 6)),
        (nn.ConvTranspose2d(8, 6, 2), (1, 8, 5, 5), (0, 1, 2, 3, 4, 6), (0, 1, 2, 4, 6, 8)),
        (nn.Linear(8, 3), (2, 7, 8), (0, 1, 2, 3), (0, 1, 2, 4, 6, 8)),
    ],
)
def test_layers_are_measured_on_a_grid_that_never_falls(layer, shape, rows, columns):
    with torch.no_grad():
        table = measure_layer(layer, shape)
    assert (table.rows, table.columns) == (rows, columns)
    values = torch.tensor(table.values)
    assert (values[0] == 0).all()
    assert (values[:, 0] == 0).all()
    assert (values[1:, 1:] > 0).all()
    assert (values.diff(dim=0) >= 0).all()
    assert (values.diff(dim=1) >= 0).all()


def test_tables_are_measured_once_and_a_damaged_file_is_measured_again(tmp_path, monkeypatch):
    network = net(16)
    first = Structure(network, X)
    first.time(network)
    (file,) = (tmp_path / "cache").rglob("*.json")
    assert f"torch-{torch.__version__}" in file.name
    assert len(json.loads(file.read_text())) == 3

    def fail(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(tables, "measure_layer", fail)
    second = Structure(network, X)
    second.time(network)
    assert torch.equal(second.cost.measured["latency"].table, first.cost.measured["latency"].table)
    file.write_text("{")
    with pytest.raises(AssertionError, match="measured again"):
        Structure(network, X).time(network)


def test_the_fifth_cost_is_there_when_asked_for_and_never_falls_with_open_gates():
    network = net()
    structure = Structure(network, X)
    ones = torch.ones(structure.gates, dtype=torch.float64)
    before = structure.cost(ones)
    assert structure.cost.kinds == ("channels", "volume", "params", "macs")
    with pytest.raises(BudgetError, match=r"call structure\.time\(model\) first"):
        structure.limits("latency=0.5")
    structure.time(network)
    assert torch.equal(structure.cost(ones)[:4], before)
    assert structure.cost.whole["latency"] > 10_000
    mask, last = torch.zeros_like(ones), 0.0
    for gate in torch.randperm(structure.gates):
        mask[gate] = 1
        now = float(structure.cost(mask)[-1])
        assert now >= last - 1e-6
        last = now
    assert structure.limits("latency=0.5")["latency"] == structure.cost.whole["latency"] // 2
    mask = structure.harden(torch.rand(structure.gates), "latency=0.5,macs=0.9")
    cost = structure.cost(mask.double())
    assert cost[-1] <= structure.cost.whole["latency"] / 2
    assert cost[3] <= 0.9 * structure.cost.dense.macs
    with pytest.raises(BudgetError, match=r"latency: asked .* smallest reachable .* ns\)\. Ask for more\."):
        structure.check("latency=0.0001")


def test_a_network_without_layer_modules_has_the_rest_alone():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (
                nn.Parameter(torch.randn(*shape)) for shape in ((64, 3, 3, 3), (5, 64, 3, 3))
            )

        def forward(self, x):
            return torch.conv2d(torch.relu(torch.conv2d(x, self.first)), self.second)

    network = Functional()
    structure = Structure(network, X)
    structure.time(network)
    assert len(structure.cost.measured["latency"].table) == 0
    mask = structure.harden(torch.rand(structure.gates), "latency=0.5")
    assert 0 < mask.sum() < 64


# -- budgets ----------------------------------------------------------------------------------------------


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


def test_neither_luck_nor_a_busy_machine_makes_a_network_look_faster():
    of_ratio, of_time = (
        Landing(asked, 1000.0, 480.0, 0.53, 0.5, 0.6, 0.1, 1, "cpu", 1) for asked in (0.5, 500)
    )
    assert (of_ratio.left, of_ratio.measured) == (0.53, 0.53)  # the shortest times were luck
    assert of_time.measured == 530
    busy = Landing(
        0.5, 1000.0, 480.0, 0.2, 0.1, 0.9, 0.1, 1, "cpu", 1
    )  # rounds of the longer one were disturbed
    assert busy.measured == 0.48


# -- landing ----------------------------------------------------------------------------------------------


def landing(monkeypatch, asked, clock, modelled=1000, least=0):
    """Land with masks that are one gate per unit of the limit, and a clock that says ``clock(gates)``."""
    calls = []

    def solve(limits):
        if limits["latency"] < least:
            raise BudgetError("below")
        mask = torch.zeros(modelled, dtype=torch.bool)
        mask[: limits["latency"]] = True
        return mask

    def measured(model, structure, mask, asked, count):
        calls.append(int(mask.sum()))
        took = clock(int(mask.sum()))
        return Landing(asked, 1000.0, took, took / 1000, 0.4, 0.6, 0.1, 1, "cpu", count)

    monkeypatch.setattr(tables, "_measured", measured)
    return calls, lambda: land(None, None, {"latency": 500}, asked, solve)


@pytest.mark.parametrize(
    "clock",
    [
        lambda gates: 1.0 * gates,  # the model is right
        lambda gates: 1.6 * gates,  # too slow
        lambda gates: 0.6 * gates,  # too fast: budget is left
        lambda gates: 300 + 0.7 * gates,  # a fixed part that the model does not know
        lambda gates: gates**1.3 / 10,
    ],
)
def test_landing_meets_what_was_asked_and_uses_it(monkeypatch, clock):
    calls, go = landing(monkeypatch, 0.5, clock)
    mask, found = go()
    assert found.measured == clock(int(mask.sum())) / 1000
    assert 0.5 * 0.95 <= found.measured <= 0.5
    assert len(calls) == found.networks <= 7


def test_landing_in_milliseconds(monkeypatch):
    _, go = landing(monkeypatch, 400, lambda gates: 1.1 * gates)
    _, found = go()
    assert 0.95 * 400 <= found.compact <= 400
    assert "asked 0.0004 ms" in str(found)


def test_a_landing_that_fails_names_the_fastest(monkeypatch):
    calls, go = landing(monkeypatch, 0.3, lambda gates: 400 + gates, least=50)
    with pytest.raises(
        BudgetError,
        match=r"at most 30.00% of the dense time when it is measured\. The fastest .* asked 30.00%",
    ):
        go()
    assert min(calls) < 100


def test_a_whole_pruning_lands_on_what_was_asked():
    network = net()
    pruner = chipnet.Pruner(network, X, "latency=0.6,params=0.9", steps=8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    for _ in range(8):
        loss = network.train()(torch.randn(4, 3, 20, 20)).square().mean() + pruner.loss()
        loss.backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert pruner.landing is not None  # masks are final before the end, so they were measured before the end
    plan = pruner.harden()
    found = Landing(**plan.latency)
    assert found == pruner.landing
    assert found.left <= 0.6
    assert plan.compact.params <= 0.9 * plan.dense.params
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))).latency == plan.latency
    state = pruner.state_dict()
    again = chipnet.Pruner(net(), X, "latency=0.6,params=0.9", steps=8)
    again.load_state_dict(state)
    assert again.harden().mask == plan.mask  # and it is not measured again
    assert again.landing == found


def test_methods_without_final_masks_land_in_harden():
    network = net()
    pruner = chipnet.Pruner(network, X, "latency=0.6", steps=8, method="chipnet-paper")
    assert pruner.landing is None
    for _ in range(2):  # masks may have changed in between, so they are measured each time
        plan = pruner.harden()
        assert Landing(**plan.latency).left <= 0.6
    everything = torch.ones(pruner.structure.gates, dtype=torch.bool)
    assert pruner.harden(everything).latency is None  # a mask of the user's own has not been measured


def wide_net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 96, 3, padding=1),
        nn.BatchNorm2d(96),
        nn.ReLU(),
        nn.Conv2d(96, 96, 3, padding=1),
        nn.BatchNorm2d(96),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, num_classes),
    )


def test_the_command(tmp_path):
    out, options = tmp_path / "run", {"--budget": "latency=0.7", "--model": "test_latency_budget:wide_net"}
    done = prune(out, **options, **{"--epochs": "1,1,0", "--batch-size": "128", "--method": "magnitude"})
    assert done.exit_code == 0, done.output
    result = json.loads((out / "result.json").read_text())
    assert result["latency"]["asked"] == 0.7
    assert Landing(**result["latency"]).left <= 0.7
    assert "asked 70.00% of the dense time" in done.stdout
    assert "latency left" in (out / "report.html").read_text()
    assert chipnet.Plan.load(out / "plan.json").latency == result["latency"]
