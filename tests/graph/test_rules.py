"""What the rules gain: minimal networks as users write them, the gates each must get, and exact pruning.

Networks of the first part show what an operator leaves prunable; those of the last part are what once broke.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from harness import conforms, random_mask, randomised
from rule_cases import ALL, NO, Around, gains, reasons
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized

from chipnet import Structure, compact
from chipnet.surgery.apply import ConvSame2d


def line_of(f: Callable[..., object], text: str) -> str:
    """File and line of ``text`` in ``f``'s source, as reasons name them."""
    lines, first = inspect.getsourcelines(f)
    (at,) = [first + i for i, line in enumerate(lines) if text in line]
    return f"test_rules.py:{at}"


# -- (a) weights that layers compute ------------------------------------------------------------------------
class Standardised(nn.Conv2d):
    """Weight standardisation as it is usually written."""

    def forward(self, input: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(input, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


COMPUTED: dict[str, Callable[[int, int], nn.Module]] = {
    "standardised": lambda i, o: Standardised(i, o, 3, padding=1),
    "weight_norm": lambda i, o: parametrizations.weight_norm(nn.Conv2d(i, o, 3, padding=1)),
    "spectral_norm": lambda i, o: parametrizations.spectral_norm(nn.Conv2d(i, o, 3, padding=1, bias=False)),
    "timm-scaled": lambda i, o: timm.layers.ScaledStdConv2d(i, o, 3, padding=1),
    "timm-same": lambda i, o: timm.layers.StdConv2dSame(i, o, 3, stride=2, bias=True),
    "timm-scaled-same": lambda i, o: timm.layers.ScaledStdConv2dSame(i, o, 3, stride=2),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_layer_that_computes_its_weight_becomes_a_plain_one(name):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = COMPUTED[name](3, 8), COMPUTED[name](8, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))

    same = "same" in name  # nothing stands in for one that pads as TensorFlow does: one channel stays
    _, found = gains(Net, {"a": 7, "b": 5} if same else {"a": 8, "b": 6})
    plain = ConvSame2d if same else nn.Conv2d
    for small, plan, _ in found:
        assert [f.module for f in plan.frozen] == ["a", "b"]
        for layer in (small.a, small.b):
            assert not is_parametrized(layer)
            assert type(layer) is plain or type(layer).__name__ == "Constant"
    whole = found[-1].plan
    assert whole.shape("b.weight") == (6, 8, 3, 3)


def test_a_parametrised_linear_layer_and_the_weight_it_had():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = parametrizations.weight_norm(nn.Linear(5, 8))
            self.b = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)))

    _, found = gains(Net, {"a": 8}, (2, 5))
    torch.manual_seed(0)
    model = randomised(Net())
    small, plan, _ = found[0]
    kept = [i for i in range(8) if plan.mask[i]]
    assert torch.equal(small.a.weight, model.a.weight[kept])
    assert type(small.a) is nn.Linear
    assert is_parametrized(model.a)


# -- (b) sizes that a module keeps ----------------------------------------------------------------------------
class SplitWidth(nn.Module):
    """torch.split by a width in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 5, 1), nn.Linear(5, 3)
        self.width = 8

    def forward(self, x: Tensor) -> Tensor:
        u, v = torch.split(F.relu(self.a(x)), self.width, 1)
        return self.fc(F.relu(self.b(u + v)).mean((2, 3)))


class SplitList(nn.Module):
    """torch.split by a list in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(5, 4, 1), nn.Conv2d(11, 4, 1)
        self.splits, self.fc = [5, 11], nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        u, v = torch.split(F.relu(self.a(x)), self.splits, 1)
        return self.fc(F.relu(self.b(u) + self.c(v)).mean((2, 3)))


class ViewWidth(nn.Module):
    """x.view(b, self.c, -1)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)
        self.c = 8

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.a(x)).view(x.shape[0], self.c, -1).mean(2))


class Groups(nn.Module):
    """A depthwise convolution as a function, its groups in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w, self.fc = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(8, 1, 3, 3)), nn.Linear(8, 3)
        self.groups = 8

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(F.conv2d(F.relu(self.a(x)), self.w, groups=self.groups)).mean((2, 3)))


class SplitLiterals(nn.Module):
    """torch.split by literals."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 128, 3), nn.Conv2d(64, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        u, v = torch.split(F.relu(self.a(x)), [64, 64], 1)
        return self.fc(F.relu(self.b(u + v)).mean((2, 3)))


class ViewLiteral(nn.Module):
    """x.view(b, 64, -1)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 64, 3), nn.Conv1d(64, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x)).view(x.shape[0], 64, -1)
        return self.fc(F.relu(self.b(y)).mean(2))


class GroupsLiteral(Groups):
    """The groups as a literal."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(F.conv2d(F.relu(self.a(x)), self.w, groups=8)).mean((2, 3)))


SIZES = [
    # 16 channels in pieces of 8: the same positions remain in each. No width of 0: one channel stays, be it zero.
    (SplitWidth, {"a": 8, "b": 5}, "width", 8),
    (SplitList, {"a": 16, "b": 4, "c": 4}, "splits", [5, 11]),
    (ViewWidth, {"a": 8}, "c", 8),
    (Groups, {"w": 7}, "groups", 8),
]


@pytest.mark.parametrize(("net", "gates", "name", "value"), SIZES, ids=lambda v: getattr(v, "__name__", None))
def test_a_size_in_an_attribute_follows_the_width(net, gates, name, value):
    _, found = gains(net, gates)
    for small, plan, _ in found:
        assert {size.name for size in plan.sizes} == {name}
        new = getattr(small, name)
        assert type(new) is type(value)
        rows = small.a.weight.shape[0]
        assert (new if name != "width" else 2 * new) == rows if isinstance(new, int) else sum(new) == rows
    assert any(getattr(small, name) != value for small, *_ in found)
    assert getattr(net(), name) == value


@pytest.mark.parametrize(
    ("net", "text", "operator"),
    [
        (SplitLiterals, "[64, 64]", "split"),
        (ViewLiteral, "64, -1", "reshaped"),
        (GroupsLiteral, "groups=8", "number of groups"),
    ],
)
def test_a_size_that_is_a_literal_is_pinned_with_operator_and_line(net, text, operator):
    s, _ = gains(net, {"b": 5} if net is not GroupsLiteral else {})
    (site,) = [site for site in s.sites if site.name == "a"]
    assert operator in site.reason
    assert line_of(net.forward, text) in site.reason


def test_an_attribute_of_the_users_model_stays():
    model, x = SplitList().eval(), torch.randn(2, 3, 6, 6)
    s = Structure(model, x)
    small = compact(model, s.plan(random_mask(s, 0.5)))
    assert model.splits == [5, 11]
    assert sum(small.splits) == small.a.out_channels < 16


# -- (c) parts that run only in training ------------------------------------------------------------------------
class Auxiliary(nn.Module):
    """A second head while training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 7, 3, padding=1)
        self.aux, self.aux_fc, self.fc = nn.Conv2d(8, 6, 1), nn.Linear(6, 3), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = F.relu(self.a(x))
        out = self.fc(F.relu(self.b(y)).mean((2, 3)))
        return (out, self.aux_fc(F.relu(self.aux(y)).mean((2, 3)))) if self.training else out


def test_an_auxiliary_head_is_pruned_with_the_network():
    s, found = gains(Auxiliary, {"a": 8, "b": 7, "aux": 6})
    assert s.untraced == ()
    for small, plan, _ in found:
        assert small.aux.in_channels == small.a.out_channels
        assert plan.compact.macs == s.cost.exact(torch.tensor(plan.mask)).macs
    positions = 2 * 6 * 6  # the head costs parameters, and nothing when the network runs
    assert s.cost.dense.macs == positions * 9 * (3 * 8 + 8 * 7) + 2 * 7 * 3


# -- (d) norms that mix channels --------------------------------------------------------------------------------
class Normed(nn.Module):
    """conv 3>12, a norm, relu, conv 12>5."""

    def __init__(self, norm: nn.Module, last: bool = False) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 12, 3, padding=1), norm, nn.Conv2d(12, 5, 1)
        self.fc, self.last = nn.Linear(5, 3), last

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else self.norm(y)
        return self.fc(F.relu(self.b(F.relu(y))).mean((2, 3)))


def test_group_norm_loses_whole_groups():
    _, found = gains(lambda: Normed(nn.GroupNorm(4, 12)), {"norm": 4, "b": 5})
    for small, *_ in found:
        if isinstance(small.norm, nn.GroupNorm):
            assert small.norm.num_channels == 3 * small.norm.num_groups == small.a.out_channels
    assert {small.norm.num_groups for small, *_ in found if isinstance(small.norm, nn.GroupNorm)} >= {1, 4}


@pytest.mark.parametrize(
    ("build", "gates"),
    [
        (lambda: Normed(nn.GroupNorm(12, 12)), {"norm": 12, "b": 5}),  # every channel by itself
        (lambda: Normed(nn.GroupNorm(1, 12)), {"a": 12, "b": 5}),
        (lambda: Normed(nn.GroupNorm(1, 12, affine=False)), {"a": 12, "b": 5}),
        (lambda: Normed(nn.LayerNorm(12), last=True), {"a": 12, "b": 5}),
        (lambda: Normed(nn.LayerNorm(12, elementwise_affine=False), last=True), {"a": 12, "b": 5}),
        (lambda: Normed(nn.RMSNorm(12), last=True), {"a": 12, "b": 5}),
        (lambda: Normed(nn.RMSNorm(12, eps=0.1), last=True), {"a": 12, "b": 5}),
        (lambda: Normed(nn.InstanceNorm2d(12, affine=True)), {"norm": 12, "b": 5}),
        (lambda: Normed(nn.InstanceNorm2d(12)), {"norm": 12, "b": 5}),
        (lambda: Normed(nn.GroupNorm(4, 12, affine=False)), {"norm": 3, "b": 5}),  # no number of groups is 0
    ],
    ids=[
        "group-per-channel",
        "one-group",
        "plain-one-group",
        "layer",
        "plain-layer",
        "rms",
        "rms-with-eps",
        "instance",
        "plain-instance",
        "plain-groups",
    ],
)
def test_norms(build, gates):
    gains(build, gates)


def test_a_group_norm_between_residual_branches_keeps_groups_together():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n = nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12)
            self.b, self.m = nn.Conv2d(12, 12, 3, padding=1), nn.GroupNorm(6, 12)
            self.fc = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.n(self.a(x)))
            return self.fc(F.relu(y + self.m(self.b(y))).mean((2, 3)))

    gains(Net, {"n": 3, "m": 3})


# -- (e) elementwise operators, reductions over channels ------------------------------------------------------
def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x**3)))


def normalised(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1)


def normalised_by_hand(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-6)


def mask_of_rows(x: Tensor) -> Tensor:
    return torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device).tril()


ELEMENTWISE: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, int], int]] = {
    "swish-by-hand": (lambda x: x * torch.sigmoid(x), ALL, 12),
    "swish-of-scaled": (lambda x: x * torch.sigmoid(1.702 * x), ALL, 12),
    "gelu-by-hand": (lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)), ALL, 12),
    "gelu-by-tanh": (tanh_gelu, ALL, 12),
    "mish-by-hand": (lambda x: x * torch.tanh(F.softplus(x)), ALL, 12),
    "glu": (lambda x: F.glu(x, 1), {"a": 6, "b": 5}, 6),
    "glu-by-hand": (lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), {"a": 6, "b": 5}, 6),
    "clamped-between-tensors": (lambda x: torch.clamp(x, -x.abs() / 2, x.abs()), ALL, 12),
    "where": (lambda x: torch.where(mask_of_rows(x), x, x.abs()), ALL, 12),
    "where-zero": (lambda x: torch.where(mask_of_rows(x), x, torch.zeros_like(x)), ALL, 12),
    "masked_fill": (lambda x: F.relu(x).masked_fill(mask_of_rows(x), 0.0), ALL, 12),
    "sum-over-channels": (lambda x: x * F.relu(x).sum(1, keepdim=True), ALL, 12),
    "sum-only": (lambda x: F.relu(x).sum(1, keepdim=True), ALL, 1),
    "normalised": (normalised, ALL, 12),
    "normalised-by-hand": (normalised_by_hand, ALL, 12),
    "spatial-softmax": (lambda x: x * x.flatten(2).softmax(2).view(x.shape), ALL, 12),
    "viewed-as-another": (lambda x: F.relu(x).flatten(2).view_as(x), ALL, 12),
    "spatial-cumsum": (lambda x: F.relu(x).cumsum(3), ALL, 12),
    "softmax-over-channels": (lambda x: x.softmax(1), NO, 12),
    "mean-over-channels": (lambda x: x - x.mean(1, keepdim=True), NO, 12),
    "cumsum-over-channels": (lambda x: x.cumsum(1), NO, 12),
    "max-over-channels": (lambda x: x - x.amax(1, keepdim=True), NO, 12),
    "divided-by-channels": (lambda x: x / x.exp().sub(1).abs(), NO, 12),
    "divided-by-shifted-channels": (lambda x: x / (x.abs() + 1), ALL, 12),
    "where-number": (lambda x: torch.where(mask_of_rows(x), x, 1.0), NO, 12),
    "sigmoid": (lambda x: x.sigmoid(), NO, 12),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_what_an_operator_leaves_prunable(name):
    f, gates, c = ELEMENTWISE[name]
    gains(lambda: Around(f, c), gates)


# -- (f) in place -------------------------------------------------------------------------------------------------
def shifted_through_a_view(z: Tensor) -> Tensor:
    view = z.view(z.shape)
    view += 1
    return z


def scaled_through_a_view(z: Tensor) -> Tensor:
    z.flatten(2).mul_(2)
    return z


def half_written(z: Tensor) -> Tensor:
    z[:, :6] *= 0.5
    return z


def rows_written(z: Tensor) -> Tensor:
    z = z.clone()
    z[:, :, :2] = 0
    return z


def overwritten(z: Tensor) -> Tensor:
    y = torch.empty_like(z)
    y.copy_(z * 2)
    return y


def rows_exchanged(z: Tensor) -> Tensor:
    y = z.clone()
    y[:, :, 1:] = z[:, :, :-1]
    return y


INPLACE: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, int]]] = {
    "relu": (F.relu_, ALL),
    "scaled": (lambda z: z.mul_(3), ALL),
    "shifted": (lambda z: z.add_(3), NO),
    "shifted-through-a-view": (shifted_through_a_view, NO),
    "scaled-through-a-view": (scaled_through_a_view, ALL),
    "half-written": (half_written, NO),
    "rows-written": (rows_written, ALL),
    "overwritten": (overwritten, ALL),
    "rows-exchanged": (rows_exchanged, ALL),
}


@pytest.mark.parametrize("name", INPLACE)
def test_what_is_written_in_place_is_seen_under_every_name(name):
    f, gates = INPLACE[name]
    gains(lambda: Around(f), gates)


# -- (g) sums that start from 0 -----------------------------------------------------------------------------------
class SumOfBranches(nn.Module):
    """Python's sum() adds the first branch to the number 0."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, 8, k, padding=k // 2) for k in (1, 3))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(sum(b(x) for b in self.branches)).mean((2, 3)))


def test_a_sum_that_starts_from_zero_shifts_nothing():
    gains(SumOfBranches, {"branches.0": 8, "branches.1": 8})
    gains(lambda: Around(lambda x: F.relu(x - 0)), ALL)
    gains(lambda: Around(lambda x: F.relu(0.0 + x)), ALL)
    gains(lambda: Around(lambda x: F.relu(x + 1)), NO)


# -- (h) what the network as given costs ------------------------------------------------------------------------
class DeadCode(nn.Module):
    """One layer's output is read by nothing, another layer is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.never = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 7, 3), nn.Conv2d(3, 5, 1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.b(x)
        return self.fc(F.relu(self.a(x)).mean((2, 3)))


def test_dead_code_is_part_of_the_dense_cost():
    """With everything open, what is dead goes nevertheless."""
    s, found = gains(DeadCode, {"a": 8})
    assert s.cost.dense.params == (27 + 1) * (8 + 7) + (3 + 1) * 5 + 8 * 3 + 3
    assert s.cost.dense.macs == 2 * 16 * 27 * (8 + 7) + 2 * 8 * 3
    assert s.untraced == ("never.bias", "never.weight")
    whole = next(plan for _, plan, _ in found if all(plan.mask))
    assert whole.compact.macs == 2 * 16 * 27 * 8 + 2 * 8 * 3
    assert whole.compact.params == (27 + 1) * 8 + (3 + 1) * 5 + 8 * 3 + 3


# -- (i) gates on the output of modules --------------------------------------------------------------------------
class Shift(nn.Module):
    """A learnt scale and shift, one for all channels (as HGNetV2 has it after every activation)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.tensor([1.5])), nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x) + self.bias


class ChannelShift(nn.Module):
    """A learnt shift of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) + self.bias


class Nested(nn.Module):
    """The shift is the last of a module's operators: its gate acts on either's output."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = Shift()

    def forward(self, x: Tensor) -> Tensor:
        return self.shift(x)


class Both(nn.Module):
    """What leaves the module is not all of it: the input is read beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = Shift()

    def forward(self, x: Tensor) -> Tensor:
        return self.shift(x) + x


@pytest.mark.parametrize(
    ("build", "site"),
    [(nn.Sigmoid, "f"), (Shift, "f"), (Nested, "f.shift"), (Both, "f")],
    ids=lambda v: v.__name__ if isinstance(v, type) else v,
)
def test_where_zero_does_not_stay_zero_the_modules_output_is_gated(build, site):
    s, found = gains(lambda: Around(build()), {site: 12, "b": 5})
    for small, plan, _ in found:
        assert (
            small.a.out_channels
            == small.b.in_channels
            == s.sites[0].channels - len(plan.shut.get(site, (0, ()))[1])
        )


def test_a_learnt_shift_of_every_channel_is_gated_with_what_it_shifts():
    _, found = gains(lambda: Around(ChannelShift()), {"a": 12, "f.bias": 12, "b": 5})
    assert all(small.f.bias.shape[0] == small.a.out_channels for small, *_ in found)


def test_a_module_called_twice_gets_no_gate_on_its_output():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), nn.Linear(5, 3)
            self.act = nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.act(self.b(self.act(self.a(x)))).mean((2, 3)))

    s, _ = gains(Net, {})
    assert "a zero here is not zero where it is read" in reasons(s)


class SigmoidAgain(nn.Module):
    """One sigmoid, called once more while training, on another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.act(self.a(x)))
        return self.act(y) if self.training else y


def test_a_module_called_again_in_training_gets_no_gate_on_its_output():
    s = Structure(SigmoidAgain(), torch.randn(1, 3, 6, 6))
    assert s.gates == 0
    assert "a zero here is not zero where it is read" in reasons(s)


class ZeroBranch(nn.Module):
    """A branch that starts behind a scale of 0, and uses its width as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 8, 1)
        self.scale, self.fc = nn.Parameter(torch.zeros(1)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        y = F.relu(self.b(x))
        return self.fc((x + self.scale * self.c(y * y.shape[1] ** -0.5)).mean((2, 3)))


def test_a_scale_of_zero_hides_nothing_from_the_trials():
    model = ZeroBranch().eval()
    s = Structure(model, torch.randn(2, 3, 6, 6))
    assert {site.name: site.free for site in s.sites if site.free} == {"a": 8, "c": 8}
    assert "its width is used as a number" in reasons(s)
    assert not model.scale.any()


class ShiftedBranches(nn.Module):
    """Two shifted branches and a plain one meet in an addition; what one branch drops another may write."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 6, 1) for _ in range(3))
        self.f, self.g, self.d, self.fc = Shift(), Shift(), nn.Conv2d(6, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.f(self.a(x)) + self.g(self.b(x)) + self.c(x)
        return self.fc(F.relu(self.d(y)).mean((2, 3)))


def test_a_shut_output_that_stays_is_set_to_zero_by_an_index_map():
    gains(ShiftedBranches, {"c": 6, "f": 6, "g": 6, "d": 5})
    torch.manual_seed(0)
    model, x = randomised(ShiftedBranches()), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    s = Structure(model, x, share=False)
    mask = torch.ones(s.gates, dtype=torch.bool)
    at = {site.name: site.gates for site in s.sites}
    mask[at["f"][[1, 4]]] = False  # written by the others
    mask[torch.from_numpy(at["g"][[4]])] = mask[torch.from_numpy(at["c"][[4]])] = False  # the last writers
    ((small, plan, _),) = conforms(model, x, s, [mask], factory=ShiftedBranches)
    assert [(r.module, r.index) for r in plan.remaps] == [("f", (0, -1, 2, 3, 4))]
    assert small.a.out_channels == small.d.in_channels == 5


class GRN(nn.Module):
    """Global response normalisation, its epsilon in an attribute or a literal."""

    def __init__(self, eps: float | None, names: tuple[str, str] = ("weight", "bias")) -> None:
        super().__init__()
        if eps is not None:
            self.eps = eps
        self.names = names
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.randn(1, 12, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (getattr(self, name) for name in self.names)
        size = x.norm(p=2, dim=(2, 3), keepdim=True)
        scale = size / (size.mean(dim=1, keepdim=True) + (self.eps if hasattr(self, "eps") else 1e-2))
        return weight * (x * scale) + bias + x


@pytest.mark.parametrize(
    ("build", "last", "shift"),
    [
        (lambda: GRN(1e-2), False, "bias"),  # large, so that it shows
        (lambda: GRN(1e-2, ("gamma", "beta")), False, "beta"),
        (lambda: GlobalResponseNorm(12, eps=1e-2, channels_last=False), False, "bias"),
        (lambda: GlobalResponseNorm(12, eps=1e-2), True, "bias"),
    ],
    ids=["weight", "gamma", "timm", "timm-last"],
)
def test_a_mean_over_channels_that_only_scales_is_made_up_for(build, last, shift):
    """What it shifts by is a writer of its channels, beside the convolution before it."""
    _, found = gains(lambda: Normed(build(), last), {"a": 12, f"norm.{shift}": 12, "b": 5})
    for _, plan, _ in found:
        left = plan.shape("a.weight")[0]
        assert {scale.factor for scale in plan.scales} == ({12 / max(left, 1)} if left < 12 else set())
    assert any(small.norm.eps > 1e-2 for small, *_ in found if hasattr(small.norm, "eps"))


def test_a_rescaled_weight_is_as_exact_as_its_type():
    torch.manual_seed(0)
    model = Normed(GRN(1e-2)).to(torch.bfloat16).eval()
    s = Structure(model, torch.randn(2, 3, 6, 6, dtype=torch.bfloat16))
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[torch.from_numpy(s.sites[0].gates[5:])] = False
    small = compact(model, s.plan(mask))
    assert small.norm.weight.shape[1] == 5


def test_a_mean_over_channels_with_a_literal_beside_it_is_kept_with_the_reason():
    s, _ = gains(lambda: Normed(GRN(None)), {"b": 5})
    assert f"averages over channels in 'norm' ({line_of(GRN.forward, 'size.mean')})" in reasons(s)


# -- what random networks broke -----------------------------------------------------------------------------------
class OneWeightTwoAxes(nn.Module):
    """A convolution and a transposed one read the same weight, along different axes."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.a, self.w = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.randn(rows, 4, 3, 3))
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(F.conv2d(F.relu(self.a(x)), self.w, padding=1))
        return self.fc(F.relu(F.conv_transpose2d(z, self.w, padding=1)).mean((2, 3)))


@pytest.mark.parametrize(("rows", "gates"), [(5, {"a": 3}), (4, {"a": 3})])
def test_a_weight_read_by_a_convolution_and_a_transposed_one(rows, gates):
    gains(lambda: OneWeightTwoAxes(rows), gates)


class WeightAsData(nn.Module):
    """A layer's weight is read, too: for a result that nothing reads."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read
        self.a, self.fc, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.fc(F.relu(self.a(x)).mean((2, 3))))
        self.read(z, self.fc.weight)
        return self.out(z)


def test_a_weight_used_as_data_is_held():
    gains(lambda: WeightAsData(lambda z, w: z * w.std()), {})
    gains(lambda: WeightAsData(lambda z, w: F.linear(z, w.t())), {"a": 7, "fc": 6})  # as a weight


class TwoModulesOneWeight(nn.Module):
    """The branch of two layers that share a weight can die."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1), nn.Conv2d(6, 5, 1)
        self.b.weight = self.a.weight
        self.gate, self.fc = nn.Conv2d(10, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        branch = self.gate(F.relu(torch.cat([self.a(x), self.b(F.relu(x) * 2)], 1)))
        return self.fc(F.relu(x + branch).mean((2, 3)))


def test_a_weight_with_two_holders_is_charged_while_one_is_there():
    # Neither weight can hold gates, but both outputs can. One of the two modules stays where the branch is dead,
    # with a bias that gets no gradient.
    _, found = gains(TwoModulesOneWeight, {"stem": 5, "a": 4, "b": 4, "gate": 5}, train=False)
    assert all(small.a.weight is small.b.weight for small, plan, _ in found if not plan.stand_ins)


class NormThenSlice(nn.Module):
    """A norm over channels, of which only some are read: its statistics read all."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)
        self.c, self.fc = nn.Conv2d(4, 6, 1), nn.Linear(6, 3)
        self.norm: nn.Module = {
            "group": nn.GroupNorm(1, 9),
            "groups": nn.GroupNorm(3, 9),
            "layer": nn.LayerNorm(9),
            "rms": nn.RMSNorm(9),
        }[norm]
        self.last = norm in ("layer", "rms")

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), F.relu(self.b(x))], 1)
        y = self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if self.last else self.norm(y)
        return self.fc(F.relu(self.c(y[:, :4])).mean((2, 3)))


@pytest.mark.parametrize("norm", ["group", "groups", "layer", "rms"])
def test_what_a_slice_drops_is_read_by_the_statistics(norm):
    gains(lambda: NormThenSlice(norm), {"c": 6})


class ReadsWidths(nn.Module):
    """A forward that asks layers for their sizes, one of which may be dead."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 6), nn.Linear(6, 8)
        self.c, self.d, self.out = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, n = F.relu(self.a(x)), x.shape[0]
        y = F.relu(self.b(x.mean((2, 3)).reshape(n, self.b.in_features)))
        y = self.fc(y.reshape(n, self.fc.in_features)).reshape(n, self.fc.out_features, 1, 1)
        z = self.d(F.relu(self.c(x)).reshape(n, self.d.in_channels, *x.shape[2:]))
        return self.out(F.relu(x + z + y).mean((2, 3)))


def test_a_forward_may_ask_layers_for_their_sizes():
    gains(ReadsWidths, {"a": 8, "b": 6, "fc": 8, "c": 6, "d": 8})


# -- found by real networks -----------------------------------------------------------------------------------
class SelectiveKernel(nn.Module):
    """Two paths, weighed per channel by a softmax over paths (selective kernels, split attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(3, 7, 5, padding=2)
        self.reduce, self.select, self.fc = nn.Conv2d(7, 5, 1), nn.Conv2d(5, 14, 1), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([F.relu(self.a(x)), F.relu(self.b(x))], 1)
        attention = self.select(F.relu(self.reduce(x.sum(1).mean((2, 3), keepdim=True))))
        n, c = attention.shape[:2]
        attention = attention.view(n, 2, c // 2, 1, 1).softmax(1)
        return self.fc((x * attention).sum(1).mean((2, 3)))


def test_a_softmax_over_paths_leaves_channels_apart():
    gains(SelectiveKernel, {"a": 7, "b": 7, "reduce": 5})


class ScalarGroups(nn.Module):
    """A shuffle by PyTorch's own operator; the number of groups is fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.channel_shuffle(F.relu(self.a(x)), 2))).mean((2, 3)))


def test_pytorchs_channel_shuffle_keeps_its_number_of_groups():
    gains(ScalarGroups, {"a": 3, "b": 5})


class Narrow(nn.Module):
    """Width 2 used as a number: a trial must prune it to see."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        return self.fc((y * y.shape[1] ** -0.75).mean((2, 3)))


def test_a_trial_changes_every_width():
    s, _ = gains(Narrow, {"a": 2})
    assert "its width is used as a number" in reasons(s)


class DeepHead(nn.Module):
    """An auxiliary head with a batch norm over one pixel, which one image cannot train (Inception)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 7, 3), nn.Linear(7, 3)
        self.aux, self.norm, self.aux_fc = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = F.relu(self.a(x))
        out = self.fc(F.relu(self.b(y)).mean((2, 3)))
        if not self.training:
            return out
        z = F.relu(self.norm(self.aux(F.adaptive_avg_pool2d(y, 1))))
        return out, self.aux_fc(z.flatten(1))


def test_an_auxiliary_head_that_one_image_cannot_train_is_traced():
    torch.manual_seed(0)
    model, x = randomised(DeepHead()), torch.randn(1, 3, 6, 6, dtype=torch.float64)
    s = Structure(model, x)
    assert {site.name: site.free for site in s.sites if site.free} == {"a": 8, "b": 7, "norm": 6}
    small = compact(model, s.plan(torch.arange(s.gates) % 2 == 0)).train()
    assert small.aux.in_channels == small.a.out_channels < 8
    small(torch.cat([x, x + 1]))
