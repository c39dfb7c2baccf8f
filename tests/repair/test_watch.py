"""Which layers run, and what becomes of what they give."""

import torch
from torch import nn

from chipnet.program.inputs import Inputs
from chipnet.repair.watch import calls, calls_of


class _Block(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.eval()

    def forward(self, x):
        y = self.norm(self.conv(x))
        if self.how == "add":
            return x + y
        if self.how == "radd":
            return torch.add(x, y)
        if self.how == "inplace":
            y += x
            return y
        if self.how == "other inplace":
            x = x * 1
            x += y
            return x
        if self.how == "twice":
            return (x + y) * y
        return y * 2


def _seen(how):
    x = torch.randn(2, 3, 4, 4)
    conv, norm = calls(_Block(how), Inputs.of(x))
    return x, conv, norm


def test_a_norm_that_alone_reads_a_layer():
    _, conv, norm = _seen("plain")
    assert (conv.name, norm.name) == ("conv.weight", "norm.running_mean")
    assert conv.normed and conv.norm is norm and norm.source is conv and not conv.added


def test_sums_in_every_spelling():
    for how in ("add", "radd", "inplace", "other inplace"):
        x, conv, _ = _seen(how)
        assert conv.added, how
        assert conv.other is not None and torch.equal(conv.other, x), how


def test_what_is_read_twice_does_not_only_go_into_a_sum():
    assert not _seen("twice")[1].added


def test_a_forward_ends_when_enough_was_seen():
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            x = self.first(self.first(x))
            raise AssertionError("too far")

    (one, two) = calls_of(Fails(), Inputs.of(torch.ones(1, 2)), "first.weight", 2)
    assert torch.equal(two.given["input"], one.output)


def test_a_batch_norm_that_takes_the_statistics_of_the_batch_is_no_step():
    block = _Block("plain").train()
    assert [call.name for call in calls(block, Inputs.of(torch.randn(2, 3, 4, 4)))] == ["conv.weight"]


def test_weights_that_are_computed_are_not_seen():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    assert not calls(layer, Inputs.of(torch.ones(1, 2)))


def test_what_is_written_over_later_is_kept_as_it_was():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.conv(x).relu_()
            return self.conv(x).add_(x)

    net, x = Twice(), torch.randn(2, 3, 4, 4)
    first, second = calls_of(net, Inputs.of(x), "conv.weight", 2, added=True)
    torch.testing.assert_close(first.output, net.conv(x))
    torch.testing.assert_close(second.given["input"], net.conv(x).relu())
    torch.testing.assert_close(second.output, net.conv(net.conv(x).relu()))
    assert second.added and not first.added


def test_sums_in_place_are_read_on():
    """As in many residual networks: ``out += x; return relu(out)``."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.drop = _Block("inplace"), nn.Dropout()

        def forward(self, x):
            return self.drop(self.block(x)).relu()

    conv, norm = calls(Net().eval(), Inputs.of(torch.randn(2, 3, 4, 4)))
    assert conv.added and norm.readers == 1


def test_a_sum_with_a_factor_is_no_sum():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return torch.add(x, self.fc(x), alpha=2)

    (call,) = calls(Net(), Inputs.of(torch.ones(2, 3)))
    assert not call.added


def test_weights_with_other_uses_are_not_seen():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.fc, self.head = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5)
            self.head.weight = self.tokens.weight
            self.register_buffer("kernel", torch.ones(5, 1, 1))

        def forward(self, x):
            y = self.head(self.fc(self.tokens(x)))
            return nn.functional.conv1d(y.mT, self.kernel, groups=5)

    (call,) = calls(Tied(), Inputs.of(torch.tensor([[1, 2], [3, 4]])))
    assert call.name == "fc.weight"


def test_a_bias_or_a_norm_of_two_layers_is_none():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv1d(3, 3, 1), nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)
            self.b.bias = self.a.bias

        def forward(self, x):
            return self.norm(self.b(self.norm(self.a(x))))

    seen = [call for call in calls(Net().eval(), Inputs.of(torch.ones(2, 3, 4))) if call.layer is not None]
    assert [(c.name, c.bias, c.normed) for c in seen] == [
        ("a.weight", None, False),
        ("b.weight", None, False),
    ]
