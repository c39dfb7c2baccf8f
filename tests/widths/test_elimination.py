"""In which order can what reads a site do without its channels?"""

import pytest
import torch
from torch import nn

from chipnet import Structure
from chipnet.program.inputs import Inputs
from chipnet.repair.layers import LayerProduct
from chipnet.repair.watch import calls
from chipnet.widths.curves import _gone
from chipnet.widths.elimination import eliminate
from chipnet.widths.reads import RIDGE, Reads, layer_reads


def _reads(x: torch.Tensor, weight: torch.Tensor, channels: int | None = None) -> Reads:
    """Of a linear layer; of a convolution with a kernel of several positions, where it has fewer channels."""
    covariance = x.T @ x / len(x)
    shape = (weight.shape[1], channels or x.shape[1]) + ((x.shape[1] // channels,) if channels else ())
    layer = LayerProduct("conv1d" if channels else "linear", shape)
    zeros = torch.zeros(x.shape[1], dtype=torch.float64)
    return Reads(layer, weight, zeros, covariance, zeros[0], "bias", 1)


def _draw(count, columns, outputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, columns, generator=generator, dtype=torch.float64)
    return x, torch.randn(columns, outputs, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("channels", [None, 3])
def test_errors_are_those_of_least_squares(channels):
    """After every step: the ridge regression of the dense outputs on what is left, solved anew."""
    x, weight = _draw(50, 6, 2)
    x = x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    reads = _reads(x, weight, channels)
    count = channels or 6
    order, errors = eliminate([(reads, torch.eye(count, dtype=torch.bool))], count)
    assert sorted(order.tolist()) == list(range(count)) and errors[-1] == 0
    regular = reads.regular
    for kept in range(count):
        columns = reads.columns(order[:kept].sort().values)
        wanted = torch.linalg.solve(regular[columns][:, columns], regular[columns] @ weight)
        full = torch.zeros_like(weight)
        full[columns] = wanted
        apart = full - weight
        assert errors[kept].item() == pytest.approx(float((apart * (regular @ apart)).sum()) / reads.variance)


def test_a_channel_that_others_can_stand_for_goes_first():
    x, weight = _draw(200, 5, 3)
    x[:, 3] = x[:, 0] + 0.01 * x[:, 3]  # nearly the same
    order, errors = eliminate([(_reads(x, weight), torch.eye(5, dtype=torch.bool))], 5)
    assert order[-1] in (0, 3) and errors[4] < RIDGE < 0.1 < errors[3]


def test_all_that_read_a_site_count():
    """A channel that one layer does not use is needed for the other."""
    x, weight = _draw(100, 3, 2)
    first, second = weight.clone(), torch.zeros_like(weight)
    first[0], second[0] = 0, 5
    eye = torch.eye(3, dtype=torch.bool)
    alone, _ = eliminate([(_reads(x, first), eye)], 3)
    both, _ = eliminate([(_reads(x, first), eye), (_reads(x, second), eye)], 3)
    assert alone[-1] == 0 and both[-1] != 0


def test_gates_of_several_channels_and_of_none():
    x, weight = _draw(100, 4, 2)
    gone = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    order, errors = eliminate([(_reads(x, weight), gone)], 3)
    assert order[-1] == 2 and errors[2] == 0 and order[0] == 0


def test_of_many_channels_several_go_at_once():
    x, weight = _draw(600, 200, 4)
    order, errors = eliminate([(_reads(x, weight), torch.eye(200, dtype=torch.bool))], 200)
    assert sorted(order.tolist()) == list(range(200))
    assert bool((errors[:-1] >= errors[1:]).all())


def test_layers_that_read_a_stream_are_found():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.up, self.head = nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Linear(6 * 64, 2)

        def forward(self, x):
            x = self.stem(x).relu()
            return self.head(self.up(x + self.branch(x)).relu().flatten(1))

    net, images = Net(), torch.randn(4, 3, 4, 4)
    s = Structure(net, images[:1])
    sites = {site.name: gates for site, gates in zip(s.sites, s.analysis.site_gates, strict=True)}
    layers = {
        "branch.weight": LayerProduct("conv2d", (4, 4, 3, 3)),
        "up.weight": LayerProduct("conv_transpose2d", (4, 6, 2, 2)),
        "head.weight": LayerProduct("linear", (2, 384)),
    }
    stream = _gone(s.analysis, sites["stem"], layers)
    assert {name: rows.tolist() for name, rows in stream.items()} == {
        name: torch.eye(4, dtype=torch.bool).tolist() for name in ("branch.weight", "up.weight")
    }
    up = _gone(s.analysis, sites["up"], layers)
    assert list(up) == ["head.weight"] and up["head.weight"].sum(1).tolist() == [64] * 6
    seen = {call.name: call for call in calls(net.eval(), Inputs.of(images))}
    reads = layer_reads(net, [Inputs.of(images)], {name: seen[name] for name in layers})
    assert {name: read.layer.columns for name, read in reads.items()} == {
        "branch.weight": 36,
        "up.weight": 16,
        "head.weight": 384,
    }


def test_channels_that_vanish_with_any_of_two_gates_go_once():
    x, weight = _draw(100, 4, 2)
    gone = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    order, errors = eliminate([(_reads(x, weight), gone)], 3)
    assert sorted(order.tolist()) == [0, 1, 2] and bool((errors[:-1] > errors[1:]).all())
    both = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    _, errors = eliminate([(_reads(x, weight), both)], 3)
    assert errors.unique().numel() == 3  # the second of the two costs nothing


def test_channels_that_are_never_there_vanish_with_no_gate():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.more, self.used, self.head = (nn.Linear(3, 3) for _ in range(4))

        def forward(self, x):
            self.more(self.unused(x))
            return self.head(self.used(x))

    s = Structure(Net(), torch.ones(1, 3))
    layers = {f"{name}.weight": LayerProduct("linear", (3, 3)) for name in ("more", "head")}
    for site, gates in zip(s.sites, s.analysis.site_gates, strict=True):
        if len(gates):
            assert list(_gone(s.analysis, gates, layers)) == (["head.weight"] if site.name == "used" else [])


@pytest.mark.parametrize("value", [0.1, 1e3, 1e-3])
def test_inputs_that_never_vary_have_an_order(value):
    """The covariance of what never varies is what rounding leaves of a difference; it may have no factor."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2)).double()
    batch = Inputs.of(torch.full((7, 3), value, dtype=torch.float64))
    (found,) = [call for call in calls(net.eval(), batch) if call.name == "1.weight"]
    reads = layer_reads(net, [batch], {"1.weight": found})["1.weight"]
    order, errors = eliminate([(reads, torch.eye(6, dtype=torch.bool))], 6)
    assert sorted(order.tolist()) == list(range(6)) and bool(torch.isfinite(errors).all())
