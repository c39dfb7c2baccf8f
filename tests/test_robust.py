"""Networks that break pruning tools: literal sizes, widths used as numbers, dead branches, odd calls.

Each was found by trying to break the library. What cannot be pruned must be pinned with a reason; what is
pruned must run, compute what the masked network computes, and cost what was predicted.
"""

import pytest
import torch
import torch.nn.functional as F
from harness import conforms, corner_masks
from torch import nn

import chipnet


def cbr(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class Head(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.fc = nn.Linear(i, o)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = cbr(3, 4)
        self.b = cbr(4, 5)
        self.g = nn.Conv2d(5, 4, 1)
        self.h = Head(4, 3)

    def forward(self, x):
        z = self.g(self.b(self.a(x)))
        return self.h(z + self.a(x))


class Expand(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = cbr(3, 8)
        self.h = Head(8, 3)

    def forward(self, x):
        y = self.a(x)
        return self.h(y * y.mean((2, 3), keepdim=True).expand(-1, 8, y.shape[2], y.shape[3]))


class Width(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = cbr(3, 8)
        self.b = cbr(8, 6)
        self.h = Head(6, 3)

    def forward(self, x):
        y = self.a(x)
        return self.h(self.b(y * y.shape[1] ** -0.5))


class Roll(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = cbr(3, 7)
        self.h = Head(7, 3)

    def forward(self, x):
        return self.h(torch.roll(self.a(x), 1, 1))


class Sq(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = cbr(3, 7)
        self.fc = nn.Linear(7, 3)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.a(x), 1).squeeze())


class Buf(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = cbr(3, 8)
        self.register_buffer("w", torch.rand(8, 1, 3, 3))
        self.b = cbr(8, 5)
        self.h = Head(5, 3)

    def forward(self, x):
        y = self.a(x)
        return self.h(self.b(F.conv2d(y, self.w, groups=y.shape[1])))


class KW(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = cbr(3, 8)
        self.c = nn.Conv2d(8, 5, 3, padding=1)
        self.n = nn.BatchNorm2d(5)
        self.d = nn.Conv2d(5, 8, 1, bias=False)
        self.nd = nn.BatchNorm2d(8)
        self.h = Head(8, 3)

    def forward(self, x):
        x = self.a(x)
        y = self.nd(input=self.d(input=F.relu(self.n(self.c(input=x)).to(self.c.weight.dtype))))
        return self.h(x + y)


class DeadPad(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = cbr(3, 8)
        self.c = cbr(8, 5)
        self.p = nn.ReflectionPad2d(1)
        self.d = nn.Conv2d(5, 8, 3, bias=False)
        self.nd = nn.BatchNorm2d(8)
        self.h = Head(8, 3)

    def forward(self, x):
        x = self.a(x)
        return self.h(x + self.nd(self.d(self.p(self.c(x)))))


class Clamp(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = cbr(3, 8)
        self.m = nn.Parameter(torch.zeros(8, 1, 1))
        self.h = Head(8, 3)

    def forward(self, x):
        return self.h(torch.clamp(self.a(x), min=self.m))


class Anch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = cbr(3, 8)
        self.k = nn.Parameter(torch.ones(4))
        self.h = Head(8, 3)

    def forward(self, x):
        return self.h(self.a(x)), self.k * 2


class Pool1(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(8, 8)
        self.o = nn.Linear(4, 3)

    def forward(self, x):
        return self.o(F.avg_pool1d(F.relu(self.l(x.mean((2, 3)))), 2))


class Dup(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(3, 8)
        self.m = nn.Linear(8, 8)
        self.o = nn.Linear(8, 3)

    def forward(self, x):
        return self.o(F.linear(F.relu(self.l(x.mean((2, 3)))), self.m.weight.t()))


class TheirAttention(nn.MultiheadAttention):
    """Nobody knows what a subclass does."""


class Own(nn.Module):
    """A subclass of PyTorch's own attention refuses what is narrower, in one line of this forward."""

    def __init__(self):
        super().__init__()
        self.l = nn.Linear(3, 6)
        self.a = TheirAttention(6, 2, batch_first=True)
        self.m = nn.Linear(6, 8)
        self.o = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.l(x.flatten(2).mT))
        return self.o(F.relu(self.m(self.a(x, x, x, need_weights=False)[0])))


class Styled(nn.Module):
    """As wide as another tensor: the parts of a style, in a view, by `select` and `unbind`."""

    def __init__(self):
        super().__init__()
        self.a = cbr(3, 8)
        self.m = nn.Linear(3, 16)
        self.b = nn.Conv2d(8, 8, 1)
        self.h = Head(8, 3)

    def forward(self, x):
        y = self.a(x)
        style = self.m(x.mean((2, 3))).view(-1, 2, y.shape[1], 1, 1)
        return self.h(self.b(y) * style[:, 0] + style.unbind(1)[1])


class Pieces(nn.Module):
    """As wide as another tensor: pieces of a split."""

    def __init__(self):
        super().__init__()
        self.a = cbr(3, 8)
        self.m = nn.Linear(3, 16)
        self.h = Head(8, 3)
        self.o = nn.Linear(8, 3)

    def forward(self, x):
        y = self.a(x)
        one, two = self.m(x.mean((2, 3))).split(y.size(1), dim=1)
        return self.h(y) + self.o(one * two)


NETS = (Twice, Expand, Width, Roll, Sq, Buf, KW, DeadPad, Clamp, Anch, Pool1, Dup, Own, Styled, Pieces)


@pytest.mark.parametrize("realisation", ["plain", "indexed"])
@pytest.mark.parametrize("net", NETS, ids=lambda n: n.__name__)
def test_any_connected_mask_gives_an_exact_network_of_the_predicted_cost(net, realisation):
    model = net().double().eval()
    x = torch.randn(2, 8, 4, 4) if net is Pool1 else torch.randn(2, 3, 8, 8)
    s = chipnet.Structure(model, x.double(), realisation=realisation)
    masks = [torch.rand(s.gates) < density for density in (0.2, 0.4, 0.6, 0.8) * 3]
    masks = [mask for mask in masks if s.connected(mask)]
    conforms(model, x.double(), s, [*masks, *corner_masks(s)], factory=lambda: net().double())


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (Expand, "is expanded to sizes that do not follow its width"),
        (Width, "its width is used as a number"),
        (Roll, "rolled along channels"),
        (Sq, "pruning it breaks the forward"),
        (Own, "pruning it breaks the forward: RuntimeError: passed-in embed_dim 6"),
        (DeadPad, "one channel stays"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_what_is_kept_says_why(net, said):
    s = chipnet.Structure(net().double(), torch.randn(2, 3, 8, 8).double())
    assert any(said in site.reason for site in s.sites)


@pytest.mark.parametrize("net", [Styled, Pieces])
def test_what_is_as_wide_as_another_tensor_is_pruned_with_it(net):
    s = chipnet.Structure(net().double(), torch.randn(2, 3, 8, 8).double())
    assert s.gates == 8  # a view with -1 keeps one channel, be it zero
    assert {site.name.split(".")[0] for site in s.sites if site.free} >= {"a", "m"}


def test_a_module_called_twice_is_charged_for_both_calls_while_one_is_needed():
    s = chipnet.Structure(Twice(), torch.randn(1, 3, 8, 8))
    inner = next(i for i, site in enumerate(s.sites) if site.name == "b.1")
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[s.analysis.site_gates[inner]] = False
    first_call_twice = 2 * 64 * 27 * 4
    assert s.cost.exact(mask).macs == first_call_twice + 4 * 3


def test_two_graphs_and_two_backward_passes_between_steps():
    model = Twice()
    pruner = chipnet.Pruner(model, torch.randn(1, 3, 8, 8), "macs=0.5", steps=4)
    for _ in range(4):
        a, b = model(torch.randn(2, 3, 8, 8)).sum(), model(torch.randn(2, 3, 8, 8)).sum()
        a.backward()
        b.backward()
        pruner.step()
    assert pruner.method.seen > 0


def test_gates_see_the_sum_of_all_backward_passes_of_a_step():
    model = Twice()
    pruner = chipnet.Pruner(model, torch.randn(1, 3, 8, 8), "macs=0.5", steps=4, method="chipnet-paper")
    images = torch.randn(2, 3, 8, 8)
    model.eval()
    for _ in range(2):
        model(images).square().sum().backward()
    pruner._values.pass_gradient_on(pruner.method.learnt())
    twice = pruner.method.psi.grad.clone()
    pruner.method.psi.grad = None
    model(images).square().sum().backward()
    pruner._values.pass_gradient_on(pruner.method.learnt())
    torch.testing.assert_close(twice, 2 * pruner.method.psi.grad)


def test_a_gated_model_is_refused_with_the_reason():
    model = Twice()
    pruner = chipnet.Pruner(model, torch.randn(1, 3, 8, 8), "macs=0.5", steps=4)
    with pytest.raises(chipnet.CaptureError, match="detach"):
        chipnet.Structure(model, torch.randn(1, 3, 8, 8))
    pruner.detach()
    chipnet.Structure(model, torch.randn(1, 3, 8, 8))


def test_a_network_without_layers_is_refused():
    with pytest.raises(chipnet.CaptureError, match="nothing in ReLU can be pruned"):
        chipnet.Pruner(nn.ReLU(), torch.randn(1, 3), "macs=0.5", steps=1)


class Masked(nn.Module):
    """Two outputs; the first has infinities, the second is large."""

    def __init__(self):
        super().__init__()
        self.a, self.h = cbr(3, 8), Head(8, 3)

    def forward(self, x):
        y = self.h(self.a(x))
        return torch.cat([y, torch.full_like(y, float("-inf"))], 1), y * 0 + 1e12


def test_verification_looks_at_each_output_by_its_own_scale():
    model = Masked().double().eval()
    x = torch.randn(2, 3, 8, 8).double()
    s = chipnet.Structure(model, x)
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[0] = False
    plan = s.plan(mask)
    wrong = chipnet.compact(model, plan)
    with torch.no_grad():
        wrong.h.fc.bias += 1e-3
    difference, scale = chipnet.verify_compact(model, wrong, plan, (x,))
    assert difference > 1e-6 * scale
