"""A call of a layer is a matrix product: rows of its input times its weight, plus the bias, is its output."""

import pytest
import torch
from torch import nn

from chipnet.program.inputs import Inputs
from chipnet.repair.layers import LayerProduct
from chipnet.repair.watch import calls

CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": 2, "padding": 2},
    {"groups": 2, "stride": 2},
    {"groups": 4},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    {"padding": 1, "padding_mode": "circular"},
    {"bias": False},
]
TRANSPOSED = [
    {},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"dilation": 2, "padding": 3},  # more padding than the kernel reaches: the image is cropped
    {"groups": 2, "stride": 3, "output_padding": 2},
    {"groups": 4, "stride": 2},
]


def _same(layer: nn.Module, x: torch.Tensor) -> LayerProduct:
    layer = layer.double()
    (call,) = calls(layer, Inputs.of(x))
    assert call.layer is not None
    weight, bias = layer.weight, layer.bias if layer.bias is not None else torch.zeros(call.output.shape[1])
    matrix = call.layer.matrix(weight)
    torch.testing.assert_close(call.layer.weight(matrix), weight.detach())
    for rows, wanted in call.layer.pairs(call.given["input"], call.output):
        torch.testing.assert_close(rows @ matrix + bias.view(call.layer.groups, 1, -1), wanted)
    return call.layer


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_convolution_is_a_product(dims, options):
    layer = getattr(nn, f"Conv{dims}d")(4, 8, 3, **options)
    found = _same(layer, torch.randn(3, 4, *[8, 7, 6][:dims], dtype=torch.float64))
    assert found.columns == 4 // layer.groups * 3**dims


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", TRANSPOSED, ids=str)
def test_a_transposed_convolution_is_a_product(dims, options):
    layer = getattr(nn, f"ConvTranspose{dims}d")(4, 8, 3, **options)
    _same(layer, torch.randn(2, 4, *[5, 4, 3][:dims], dtype=torch.float64))


def test_a_kernel_may_differ_from_axis_to_axis():
    _same(
        nn.Conv2d(3, 5, (1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
        torch.randn(2, 3, 6, 9).double(),
    )


def test_images_may_come_without_a_batch():
    _same(nn.Conv2d(3, 5, 3), torch.randn(3, 6, 6).double())


@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 6), (6,)])
def test_a_linear_layer_is_a_product(shape):
    (call,) = calls(nn.Linear(6, 5).double(), Inputs.of(torch.randn(shape).double()))
    assert call.layer is not None
    (pair,) = call.layer.pairs(call.given["input"], call.output)
    assert [x.shape[2] for x in pair] == [6, 5]


def test_pieces_are_of_bounded_size(monkeypatch):
    monkeypatch.setattr("chipnet.repair.layers._CHUNK", 4 * 9 * 36)
    (call,) = calls(nn.Conv2d(4, 2, 3), Inputs.of(torch.randn(5, 4, 8, 8)))
    assert call.layer is not None
    assert [len(x[0]) for x, _ in call.layer.pairs(call.given["input"], call.output)] == [36] * 5


@pytest.mark.parametrize(
    ("keep", "rows"),
    [({}, None), ({1: (0, 2)}, [0, 2, 3, 5]), ({0: (2, 3)}, [3, 4, 5]), ({0: (0, 1), 1: (1,)}, [1])],
)
def test_outputs_of_a_grouped_transposed_convolution_that_are_left(keep, rows):
    """Two groups of two inputs and three outputs: an index of the weight's second axis is one output of each."""
    kept = LayerProduct("conv_transpose1d", (4, 3, 1), groups=2).kept(keep)
    assert kept == rows if rows is not None else list(kept) == list(range(6))
