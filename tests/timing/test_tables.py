"""Latency as a cost: tables by hand, their gradients, the cache."""

import json

import pytest
import torch
from timed import X, net, own_cache  # noqa: F401 (a fixture)
from torch import nn

from chipnet import BudgetError, Structure
from chipnet.timing import tables
from chipnet.timing.tables import LatencyModel, LayerTable, measure_layer

HALF = LayerTable((0, 2, 4), (0, 3), ((0, 0), (0, 60), (0, 100)))
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
    model = LatencyModel([(1, 2, 3, 0, 1)], [HALF], (0.0, 0.0, 1.0))
    counts = torch.tensor([1.0, alive, rows, columns], dtype=torch.float64)
    assert float(model(counts, torch.tensor(0.0, dtype=torch.float64))) == pytest.approx(expected)


def test_a_layer_over_tokens_takes_time_by_channels():
    """Measured with 4 channels along another axis; 1 is left."""
    model = LatencyModel([(1, 2, 3, 4, 4)], [HALF], (0.0, 0.0, 1.0))
    counts = torch.tensor([1.0, 1.0, 4.0, 3.0, 1.0], dtype=torch.float64)
    assert float(model(counts, torch.tensor(0.0, dtype=torch.float64))) == pytest.approx(25)


def test_rest_scale_batch_and_gradient():
    model = LatencyModel(
        [(0, 1, 2, 0, 1), (0, 2, 1, 0, 1)],
        [HALF, LayerTable((0, 3), (0, 4), ((0, 0), (0, 12)))],
        (7.0, 0.5, 2.0),
    )
    counts = torch.tensor([[1, 4, 3], [1, 3, 3]], dtype=torch.float64, requires_grad=True)
    volume = torch.tensor([10.0, 0.0], dtype=torch.float64)
    out = model(counts, volume)
    assert out.tolist() == [7 + 5 + 2 * (100 + 12), 7 + 2 * (80 + 9)]
    torch.autograd.gradcheck(lambda c: model(c, volume), (counts.detach() - 0.3).requires_grad_())
    (gradient,) = torch.autograd.grad(out[1], counts)
    assert gradient[1, 1:].tolist() == [2 * (20 + 3), 2 * (80 / 3 + 3)]


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
    assert structure.cost.dense_costs["latency"] > 10_000
    mask, last = torch.zeros_like(ones), 0.0
    for gate in torch.randperm(structure.gates):
        mask[gate] = 1
        now = float(structure.cost(mask)[-1])
        assert now >= last - 1e-6
        last = now
    assert structure.limits("latency=0.5")["latency"] == structure.cost.dense_costs["latency"] // 2
    mask = structure.harden(torch.rand(structure.gates), "latency=0.5,macs=0.9")
    cost = structure.cost(mask.double())
    assert cost[-1] <= structure.cost.dense_costs["latency"] / 2
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
