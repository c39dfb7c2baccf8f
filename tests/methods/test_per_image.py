"""Fisher information of gates, image by image: against one backward pass for each image."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from chipnet import Pruner
from chipnet.lab.models import get_model


class Functional(nn.Module):
    """One forward that calls everything: no module returns what its layers write."""

    def __init__(self):
        super().__init__()
        shapes = (6, 3, 3, 3), (5, 6), (4, 5)
        self.first, self.second, self.third = (nn.Parameter(torch.randn(s) / s[1] ** 0.5) for s in shapes)

    def forward(self, x):
        x = F.conv2d(x, self.first).relu().mean((2, 3))
        return F.linear(F.linear(x, self.second).relu(), self.third)


class Twice(nn.Module):
    """The same convolution runs twice, its ReLU writes in place, and a checkpoint may compute it again."""

    def __init__(self, checkpointed=False):
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)
        self.checkpointed = checkpointed

    def block(self, x):
        return x + F.relu(self.conv(x), inplace=True)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)
        return self.head(x.mean((2, 3)))


def batch(images=5):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(images, 3, 8, 8, generator=generator), torch.arange(images) % 4


def learnt(pruner, backward, loss_scale=1.0):
    """What the method learns from one step."""
    found = []
    pruner.method.learn = found.append
    backward()
    pruner.step(loss_scale)
    pruner.model.zero_grad()
    return found


def pruned(net, method="fisher", steps=1000):
    return Pruner(net, batch(1)[0], "macs=0.5", steps=steps, method=method)


def one_by_one(net):
    """The sum over images of the squared gradient by every gate, from a backward pass for each image."""
    net, (x, y) = copy.deepcopy(net), batch()
    pruner, total = pruned(net, "taylor", steps=10**6), 0
    for i in range(len(x)):
        total = (
            total
            + learnt(
                pruner, lambda i=i: (F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]) / len(x)).backward()
            )[0]
        )
    return total


@pytest.mark.parametrize("make", [Twice, lambda: get_model("resnet8", 4, 3)], ids=["twice", "resnet8"])
def test_it_is_the_sum_of_squares_of_single_images(make):
    torch.manual_seed(0)
    net, (x, y) = make().eval(), batch()
    expected = one_by_one(net)
    found = learnt(pruned(net), lambda: F.cross_entropy(net(x), y).backward())
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-9)
    assert expected.min() >= 0 < expected.max()


def test_accumulation_over_batches_adds_squares_of_images_of_both():
    torch.manual_seed(0)
    net, (x, y) = Twice(), batch()
    expected = one_by_one(net)

    def halves():
        for part in (slice(0, 3), slice(3, 5)):
            (F.cross_entropy(net(x[part]), y[part], reduction="sum") / 5).backward()

    torch.testing.assert_close(learnt(pruned(net), halves)[0], expected, rtol=1e-4, atol=1e-9)


def test_two_forwards_before_one_backward_have_images_of_their_own():
    torch.manual_seed(0)
    net, (x, y) = Twice(), batch(6)

    def together():
        (F.cross_entropy(net(x), y)).backward()

    def pair():
        (F.cross_entropy(net(x[:3]), y[:3]) / 2 + F.cross_entropy(net(x[3:]), y[3:]) / 2).backward()

    pruner = pruned(net)
    expected = learnt(pruner, together)[0]
    pruner.method.probes.open = True
    torch.testing.assert_close(learnt(pruner, pair)[0], expected, rtol=1e-4, atol=1e-9)


def test_a_checkpointed_forward_learns_the_same():
    torch.manual_seed(0)
    net, (x, y) = Twice(), batch()
    other = Twice(checkpointed=True)
    other.load_state_dict(net.state_dict())
    one, two = (learnt(pruned(n), lambda n=n: F.cross_entropy(n(x), y).backward())[0] for n in (net, other))
    torch.testing.assert_close(one, two)


def test_the_scale_of_the_loss_does_not_count():
    torch.manual_seed(0)
    net, (x, y) = Twice(), batch()
    pruner = pruned(net)
    one = learnt(pruner, lambda: F.cross_entropy(net(x), y).backward())[0]
    pruner.method.probes.open = True
    two = learnt(pruner, lambda: (1024 * F.cross_entropy(net(x), y)).backward(), loss_scale=1024.0)[0]
    torch.testing.assert_close(one, two)


@pytest.mark.skipif(
    torch.__version__.startswith("2.11."), reason="dynamo of 2.11 cannot trace __dict__.pop in hooks"
)
def test_a_compiled_network_is_one_graph_and_learns_the_same():
    torch.manual_seed(0)
    net, (x, y) = Twice(), batch()
    pruner = pruned(net)
    expected = learnt(pruner, lambda: F.cross_entropy(net(x), y).backward())[0]
    pruner.method.probes.open = True
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)

    def step():
        (pruner.loss() + F.cross_entropy(compiled(x), y)).backward()

    torch.testing.assert_close(learnt(pruner, step)[0], expected)
    assert learnt(pruner, step) == []  # the next step measures nothing
    torch.compiler.reset()


def test_gates_that_no_module_returns_get_the_square_of_the_batch():
    torch.manual_seed(0)
    net, (x, y) = Functional(), batch()
    pruner = pruned(net)
    assert pruner.method.probes.unseen.all()
    found = learnt(pruner, lambda: F.cross_entropy(net(x), y).backward())[0]
    pruner.detach()
    whole = learnt(pruned(net, "taylor"), lambda: F.cross_entropy(net(x), y).backward())
    torch.testing.assert_close(found, whole[0])
    assert (found > 0).sum() > 5


def test_one_step_in_every_is_measured_and_the_last_is_not():
    torch.manual_seed(0)
    net, (x, y) = Twice(), batch()
    pruner = pruned(net, "fisher:every=3", steps=12)
    measured = []
    for _ in range(12):
        measured += [len(learnt(pruner, lambda: F.cross_entropy(net(x), y).backward()))]
    assert measured == [1, 0, 0] * 3 + [0] * 3  # masks are final from three quarters on


def test_frozen_layers_are_measured_too():
    torch.manual_seed(0)
    net, (x, y) = Twice(), batch()
    expected = one_by_one(net)
    net.stem.requires_grad_(False)
    net.conv.requires_grad_(False)
    found = learnt(pruned(net), lambda: F.cross_entropy(net(x), y).backward())[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_a_network_without_a_loss_teaches_nothing_and_copies_are_not_watched():
    torch.manual_seed(0)
    net, (x, _) = Twice(), batch()
    pruner = pruned(net)
    copied = copy.deepcopy(net)
    copied(x).sum().backward()
    assert learnt(pruner, lambda: None) == []
    assert not pruner.method.probes._images
