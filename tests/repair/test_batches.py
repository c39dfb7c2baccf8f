"""Unlabelled inputs, as users have them."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from chipnet.errors import ConfigError
from chipnet.program.inputs import Inputs
from chipnet.repair.batches import read_batches

NET = nn.Linear(3, 2)
EXAMPLE = Inputs.of(torch.ones(1, 3))


def _sizes(inputs, images=512, example=EXAMPLE, net=NET):
    return [len(call.args[0]) for call in read_batches(net, inputs, example, images)]


def test_a_tensor():
    assert _sizes(torch.randn(130, 3)) == [64, 64, 2]
    assert _sizes(torch.randn(130, 3), images=100) == [50, 50]
    assert _sizes(torch.randn(1, 3)) == [1]


def test_a_loader_with_labels():
    data = TensorDataset(torch.randn(50, 3), torch.zeros(50))
    found = read_batches(NET, DataLoader(data, batch_size=20), None, 45)
    assert [len(call.args[0]) for call in found] == [20, 20, 5]
    assert all(len(call.args) == 1 for call in found)


def test_a_generator_is_read_once_and_no_further_than_needed():
    taken = []

    def batches():
        for i in range(100):
            taken.append(i)
            yield torch.full((4, 3), float(i))

    assert _sizes(batches(), images=8) == [4, 4] and len(taken) == 2


def test_one_batch_is_two_halves():
    assert _sizes((torch.randn(7, 3),)) == [3, 4]
    assert _sizes([torch.randn(7, 3)]) == [3, 4]


def test_keyword_arguments():
    class Net(nn.Module):
        def forward(self, pixels):
            return pixels

    found = read_batches(
        Net(), [{"pixels": torch.ones(2, 3), "labels": torch.ones(2)}], Inputs.of({"pixels": 0}), 9
    )
    assert [list(call.kwargs) for call in found] == [["pixels"]] * 2


def test_two_arguments():
    class Net(nn.Module):
        def forward(self, a, b, scale=1):
            return a + b

    found = read_batches(Net(), [(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2))], None, 9)
    assert [len(call.args) for call in found] == [2, 2]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "empty"),
        (torch.ones(0, 3), "empty"),
        (torch.tensor(1.0), "one axis for the images"),
        (5, "not int"),
        (["a"], "a batch of the inputs is str"),
        (TensorDataset(torch.ones(4, 3)), "DataLoader"),
    ],
)
def test_what_the_network_does_not_take_is_refused(inputs, said):
    with pytest.raises(ConfigError, match=said):
        read_batches(NET, inputs, EXAMPLE, 10)
    with pytest.raises(ConfigError, match="at least one"):
        read_batches(NET, torch.ones(2, 3), EXAMPLE, 0)
    with pytest.raises(ConfigError, match="whole number"):
        read_batches(NET, torch.ones(2, 3), EXAMPLE, 2.5)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (torch.ones(2, 4), r"call 1 of the inputs, of shape \(1, 4\)"),
        ([torch.ones(2, 3), torch.ones(2, 4)], r"call 2 of the inputs, of shape \(1, 4\)"),
        (torch.ones(2, 3, dtype=torch.int64), "type of numbers"),
        ([{"pixels": torch.ones(2, 3)}], "pixels"),
        (torch.ones(2, 3, device="meta"), "meta device"),
    ],
)
def test_what_the_network_fails_on_is_refused_before_anything_is_measured(inputs, said):
    with pytest.raises(ConfigError, match=said):
        read_batches(NET, inputs, None, 10)
