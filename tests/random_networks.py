"""Random networks from the whole operator vocabulary, and one check that holds for every network.

A network is a *recipe*: a short list of steps. Each step reads one or two earlier values and appends one:
``(operator, a, b, width, variant)``, where ``a`` and ``b`` count back from the latest value. A step that does not
fit what it reads (a shuffle of 7 channels in 2 groups) is left out, so any list of steps is a network and a
failing recipe stays one while steps are deleted.

A recipe prints as the line that makes it: ``check(Recipe(steps=(("conv", 0, 0, 7, 0),)))``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from harness import assert_same, conforms, gradients, snapshot
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from chipnet import BudgetError, Structure

T = TypeVar("T")
Step = tuple[str, int, int, int, int]

# Operators left out of drawn recipes until an engine bug that hides others is fixed: name -> the bug.
LEFT_OUT: dict[str, str] = {}


@dataclass(frozen=True)
class Recipe:
    """A network as data.

    ``inputs``: widths of the feature maps that come in, of ``size`` along each of ``dims`` axes; ``vector``: width
    of one more input without positions (0: none). ``heads``: kind and which value it reads, as in steps.
    """

    steps: tuple[Step, ...]
    heads: tuple[tuple[str, int], ...] = (("fc", 0),)
    output: str = "tensor"
    inputs: tuple[int, ...] = (3,)
    vector: int = 0
    dims: int = 2
    size: int = 5
    realisation: str = "plain"
    seed: int = 0
    norms: str = "live"
    attention: str = "narrow"

    def __repr__(self) -> str:
        given = [f for f in fields(self) if f.name == "steps" or getattr(self, f.name) != f.default]
        return f"Recipe({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in given)})"


# -- the vocabulary ---------------------------------------------------------------------------------------
# An operator is made for the values ``x`` (and ``y``) that it will read, a width and a variant.
Make = Callable[[Tensor, Tensor, int, int], nn.Module]
UNARY: dict[str, Make] = {}
BINARY: dict[str, Make] = {}

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MAX = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE_AVG = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
ADAPTIVE_MAX = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
F_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
F_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
F_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
F_AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
F_ADAPTIVE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def unary(make: Any) -> Any:
    UNARY[make.__name__] = make
    return make


def binary(make: Any) -> Any:
    BINARY[make.__name__] = make
    return make


def layer(x: Tensor, out: int, kernel: int = 3, **options: Any) -> nn.Module:
    """A convolution that keeps the size of feature maps; for vectors a linear layer."""
    if x.dim() == 2:
        return nn.Linear(x.shape[1], out, bias=options.get("bias", True))
    return CONV[x.dim() - 2](x.shape[1], out, kernel, **{"padding": kernel // 2, **options})


def batch_norm(x: Tensor, width: int) -> nn.Module:
    return BATCH[x.dim() - 2](width)


def divisor(n: int, k: int) -> int:
    """One of the divisors of ``n`` other than 1."""
    found = [d for d in range(2, n + 1) if n % d == 0]
    return found[k % len(found)]


def per_channel(x: Tensor) -> tuple[int, ...]:
    """``[C, 1, 1]``"""
    return (x.shape[1], *[1] * (x.dim() - 2))


def at_size_of(y: Tensor, x: Tensor) -> Tensor:
    return y if y.shape[2:] == x.shape[2:] else F_ADAPTIVE[x.dim() - 2](y, x.shape[2:])


def pooled(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.mean(tuple(range(2, x.dim())))


def spread(v: Tensor, x: Tensor) -> Tensor:
    """``[N, C]`` as ``[N, C, 1, 1]``"""
    return v[(...,) + (None,) * (x.dim() - 2)]


def times_width(x: Tensor) -> Tensor:
    return x * x.shape[1] ** -0.5


def plus_width(x: Tensor) -> Tensor:
    return x + 1 / x.shape[1]


def grid_for(x: Tensor) -> Tensor:
    """Places to sample feature maps at: a rotation."""
    theta = torch.tensor([[0.8, 0.6, 0.1], [-0.6, 0.8, 0.0]], dtype=x.dtype).expand(x.shape[0], 2, 3)
    return F.affine_grid(theta, list(x.shape), align_corners=False)


WIDTH_AS_NUMBER = (times_width, plus_width)
# What needs no parameters: name -> variants.
FUNCTIONS: dict[str, Sequence[Callable[..., Tensor]]] = {
    "act": (
        F.relu,
        F.silu,
        F.gelu,
        F.sigmoid,
        F.hardswish,
        lambda x: x * torch.sigmoid(x),
        F.leaky_relu,
        F.softplus,
        lambda x: x.clamp(0, 6),
        torch.tanh,
        F.elu,
        F.hardsigmoid,
    ),
    "scalar": (
        lambda x: x + 1,
        lambda x: 1 - x,
        lambda x: x * 2 - 0.5,
        lambda x: x / 3,
        lambda x: x**2,
        lambda x: x.abs(),
        times_width,
        plus_width,
        lambda x: x.to(x.dtype).contiguous().clone(),
        lambda x: torch.where(x > 0, x, 0.1 * x),
        lambda x: x.masked_fill(x < 0, 0.5),
    ),
    "pool": (
        lambda x: F_MAX[x.dim() - 2](x, 2),
        lambda x: F_AVG[x.dim() - 2](x, 2),
        lambda x: F_ADAPTIVE[x.dim() - 2](x, 2),
        lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True),
        lambda x: x.amax(2, keepdim=True),
        lambda x: F_MAX[x.dim() - 2](x, 3, 1, 1),
        lambda x: x[:, :, ::2],
        lambda x: x[:, :, 1:],
    ),
    "to_vector": (
        lambda x: x.mean(tuple(range(2, x.dim()))),
        lambda x: F_ADAPTIVE[x.dim() - 2](x, 1).flatten(1),
        lambda x: torch.flatten(x, 1),
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x.flatten(2).amax(2),
        lambda x: F_ADAPTIVE[x.dim() - 2](x, 1).view(2, -1),
    ),
    "to_map": (
        lambda x: x[:, :, None, None],
        lambda x: x.unsqueeze(2).unsqueeze(3),
        lambda x: x[:, :, None, None].expand(-1, -1, 3, 3),
        lambda x: x.view(x.shape[0], -1, 1, 1),
    ),
    "resize": (
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, size=x.shape[2:]),
        lambda x: F.interpolate(x, size=(4,) * (x.dim() - 2)),
        lambda x: F.interpolate(x, size=(4, 4), mode="bilinear", align_corners=False),
        lambda x: F.pixel_shuffle(x, 2),
        lambda x: F.pixel_unshuffle(x, 2),
        lambda x: (  # space to depth
            x.view(x.shape[0], x.shape[1], x.shape[2] // 2, 2, x.shape[3] // 2, 2)
            .permute(0, 3, 5, 1, 2, 4)
            .reshape(x.shape[0], -1, x.shape[2] // 2, x.shape[3] // 2)
        ),
        lambda x: x.repeat_interleave(2, 2),
    ),
    "pad": (
        lambda x: F.pad(x, [1, 1] * (x.dim() - 2)),
        lambda x: F.pad(x, [1, 1] * (x.dim() - 2), mode="reflect"),
        lambda x: F.pad(x, [1, 0] * (x.dim() - 2), value=1.0),
        lambda x: F.pad(x, [0, 0] * (x.dim() - 2) + [1, 2]),
        lambda x: F.pad(x, [-1, -1] * (x.dim() - 2)),
        lambda x: F.pad(x, [1, 1] * (x.dim() - 2), mode="replicate"),
        lambda x: F.pad(x, [1, 1] * (x.dim() - 2), mode="circular"),
    ),
    "over_channels": (
        lambda x: x.softmax(1),
        lambda x: F.normalize(x, dim=1),
        lambda x: x.log_softmax(1),
        lambda x: x - x.mean(1, keepdim=True),
        lambda x: x * torch.sigmoid(x.amax(1, keepdim=True)),
        lambda x: x.cumsum(1),
        lambda x: x.sort(1)[0],
        lambda x: x / (1 + x.abs().sum(1, keepdim=True)),
    ),
    "over_positions": (
        lambda x: x.flatten(2).softmax(2).view(x.shape),
        lambda x: x - x.mean(tuple(range(2, x.dim())), keepdim=True),
        lambda x: x * torch.sigmoid(x.amax(2, keepdim=True)),
        lambda x: x.cumsum(2),
        lambda x: x.flip(2),
        lambda x: x.roll(1, 2),
        lambda x: x.transpose(2, -1),
        lambda x: x + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype),
    ),
    "ranked": (
        lambda x: x.max(2, keepdim=True)[0],
        lambda x: x.topk(2, 2)[0],
        lambda x: x.gather(2, x.topk(2, 2)[1].sort(2)[0]),
        lambda x: x.sort(2, descending=True)[0],
        lambda x: x * x.argmax(2, keepdim=True).to(x.dtype),
        lambda x: x.median(2, keepdim=True)[0],
        lambda x: x - x.max(1, keepdim=True)[0],
        lambda x: x.unflatten(1, (-1, 2)).max(2)[0],
        lambda x: x.cummax(2)[0],
        lambda x: x.topk(2, 1)[0],
    ),
    "windows": (
        lambda x: F.grid_sample(x, grid_for(x), align_corners=False),
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
        lambda x: F.unfold(x, 2).view(x.shape[0], -1, x.shape[2] - 1, x.shape[3] - 1),
        lambda x: F.fold(F.unfold(x, 2), x.shape[2:], 2),
        lambda x: F.local_response_norm(x, 3),
        lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[2:]),
        lambda x: x.rot90(1, (2, 3)),
        lambda x: x.tile(1, 2, 1, 1),
        lambda x: x / (x.var((2, 3), keepdim=True) + 1e-2),
        lambda x: x * torch.sigmoid(x.pow(2) / (4 * x.pow(2).mean((2, 3), keepdim=True) + 1e-2)),
    ),
    "part": (
        lambda x: x[:, : x.shape[1] // 2],
        lambda x: x[:, 1:],
        lambda x: x[:, ::2],
        lambda x: x.narrow(1, 0, 2),
        lambda x: x[:, 0:1],
        lambda x: x.flip(1),
        lambda x: x.roll(1, 1),
        lambda x: x[:, [1, 0, 1]],
        lambda x: torch.cat([x[:, 1:], x[:, :1]], 1),
        lambda x: x[:, 1].unsqueeze(1),
        lambda x: torch.stack(x.unbind(1)[::-1], 1),
    ),
    "copies": (
        lambda x: torch.cat([x, x], 1),
        lambda x: torch.cat([x, F.relu(x), x], 1),
        lambda x: x.repeat(1, 2, *[1] * (x.dim() - 2)),
        lambda x: x.repeat_interleave(2, 1),
        lambda x: torch.stack([x, -x], 2).flatten(1, 2),
        lambda x: torch.stack([x, x.abs()], 1).flatten(1, 2),
        lambda x: torch.cat([x, -x], 1).view(x.shape[0], 2, x.shape[1], *x.shape[2:]).sum(1),
        lambda x: torch.cat([x, torch.zeros_like(x)], 1),
        lambda x: torch.cat([x, torch.ones_like(x[:, :1])], 1),
    ),
    "halves": (
        lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        lambda x: x.chunk(2, 1)[0] * torch.sigmoid(x.chunk(2, 1)[1]),
        lambda x: F.glu(x, 1),
        lambda x: torch.add(*x.split(x.shape[1] // 2, 1)[:2]),
        lambda x: torch.maximum(*x.tensor_split(2, 1)),
        lambda x: torch.cat([F.relu(x[:, : x.shape[1] // 2]), x[:, x.shape[1] // 2 :]], 1),
        lambda x: x.view(x.shape[0], 2, -1, *x.shape[2:]).mean(1),
        lambda x: x.unflatten(1, (2, -1)).amax(1),
        lambda x: x.unflatten(1, (-1, 2)).amax(2),
    ),
}


class Apply(nn.Module):
    """One variant of a function without parameters."""

    def __init__(self, name: str, variant: int) -> None:
        super().__init__()
        self.function = FUNCTIONS[name][variant % len(FUNCTIONS[name])]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _function(name: str) -> Make:
    return lambda x, y, w, k: Apply(name, k)


UNARY.update({name: _function(name) for name in FUNCTIONS})


@unary
def conv(x: Tensor, y: Tensor, w: int, k: int) -> nn.Module:
    options: dict[str, Any] = (
        {},
        {"bias": False},
        {"kernel": 1},
        {"kernel": 1, "bias": False},
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"padding": "same"},
        {"padding_mode": "circular"},
        {"padding_mode": "reflect", "bias": False},
        {"padding": 0},
    )[k % 10]
    return layer(x, w, **options)


@unary
def cbr(x: Tensor, y: Tensor, w: int, k: int) -> nn.Module:
    act = (nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(), nn.Identity(), nn.PReLU(w), nn.Hardswish())[k % 6]
    return nn.Sequential(layer(x, w, bias=k > 5), batch_norm(x, w), act)


@unary
def preactivation(x: Tensor, y: Tensor, w: int, k: int) -> nn.Module:
    act = (nn.ReLU(), nn.GELU(), nn.Sigmoid())[k % 3]
    return nn.Sequential(batch_norm(x, x.shape[1]), act, layer(x, w, bias=k > 5))


@unary
def norm(x: Tensor, y: Tensor, w: int, k: int) -> nn.Module:
    c, dims = x.shape[1], x.dim() - 2
    return (
        lambda: BATCH[dims](c),
        lambda: BATCH[dims](c, affine=False),
        lambda: BATCH[dims](c, track_running_stats=False),
        lambda: nn.GroupNorm(1, c),
        lambda: nn.GroupNorm(c, c),
        lambda: nn.GroupNorm(divisor(c, k // 2), c),
        lambda: INSTANCE[dims](c, affine=True),
        lambda: INSTANCE[dims](c),
        lambda: INSTANCE[dims](c, affine=True, track_running_stats=True),
        lambda: ChannelsLast(nn.LayerNorm(c)),
        lambda: nn.LayerNorm(x.shape[1:]),
        lambda: ChannelsLast(nn.RMSNorm(c)),
        lambda: ChannelsLast(nn.RMSNorm(c, eps=0.1)),
        lambda: ChannelsLast(nn.LayerNorm(c, elementwise_affine=False)),
        lambda: nn.GroupNorm(1, c, affine=False),
        lambda: ByHand(c, centred=True),
        lambda: ByHand(c, centred=False),
        lambda: nn.RMSNorm(x.shape[1:], eps=0.1),
        lambda: OfExamples(c),
    )[k % 19]()


class ByHand(nn.Module):
    """Layer norm, or RMS norm, over the first axis after the batch."""

    def __init__(self, c: int, centred: bool) -> None:
        super().__init__()
        self.centred, self.small = centred, 0.1
        self.weight, self.bias = nn.Parameter(torch.rand(c)), nn.Parameter(torch.rand(c)) if centred else None

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2))
        x = x - x.mean(1, keepdim=True) if self.centred else x
        x = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + self.small) * self.weight.view(shape)
        return x if self.bias is None else x + self.bias.view(shape)


class OfExamples(nn.GroupNorm):
    """Group norm of one group, as a class of the user's."""

    def __init__(self, c: int) -> None:
        super().__init__(1, c, eps=0.1)

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class ChannelsLast(nn.Module):
    """A module that works on the last axis, between two permutes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.movedim(1, -1)).movedim(-1, 1)


@unary
def pool_module(x: Tensor, y: Tensor, w: int, k: int) -> nn.Module:
    dims = x.dim() - 2
    kinds = (MAX[dims](2), AVG[dims](2), MAX[dims](3, 1, 1), ADAPTIVE_AVG[dims](2), ADAPTIVE_MAX[dims](2))
    return (*kinds, nn.Upsample(scale_factor=2))[k % 6]


@unary
def prelu(x: Tensor, y: Tensor, w: int, k: int) -> nn.Module:
    return nn.PReLU(x.shape[1] if k % 2 else 1)


@unary
def depthwise(x: Tensor, y: Tensor, w: int, k: int) -> nn.Module:
    """Every channel by itself, or two from each; with and without the norms of a separable convolution."""
    c = x.shape[1]
    out = 2 * c if k % 3 == 2 else c
    first = layer(x, out, groups=c, bias=k % 2 == 0)
    if k < 4:
        return first
    last = CONV[x.dim() - 2](out, w, 1, bias=False)
    return nn.Sequential(first, batch_norm(x, out), nn.ReLU6(), last, batch_norm(x, w))


@unary
def grouped(x: Tensor, y: Tensor, w: int, k: int) -> nn.Module:
    g = divisor(x.shape[1], k)
    out = g * max(1, round(w / g))
    inner = layer(x, out, (3, 1)[k % 2], groups=g, bias=k % 4 > 1)
    return inner if k < 6 else nn.Sequential(inner, batch_norm(x, out), nn.ReLU())


@unary
def transposed(x: Tensor, y: Tensor, w: int, k: int) -> nn.Module:
    g = divisor(x.shape[1], k) if k % 3 == 2 else 1
    out = g * max(1, round(w / g))
    kernel, stride = ((2, 2), (3, 1), (1, 1))[k % 3]
    inner = TRANSPOSED[x.dim() - 2](x.shape[1], out, kernel, stride, groups=g, bias=k % 2 == 0)
    return inner if k < 6 else nn.Sequential(inner, batch_norm(x, out), nn.ReLU())


@unary
class Shuffle(nn.Module):
    """Channel shuffle; the number of channels a group is computed, or a literal."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.groups = divisor(x.shape[1], k)
        self.per = x.shape[1] // self.groups if k % 4 == 3 else None
        self.built_in = k % 4 == 2

    def forward(self, x: Tensor) -> Tensor:
        if self.built_in:
            return F.channel_shuffle(x, self.groups)
        per = self.per or x.shape[1] // self.groups
        return x.view(x.shape[0], self.groups, per, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


@unary
class LiteralSplit(nn.Module):
    """``torch.split(x, [a, b], 1)`` with literals; the first piece goes through a convolution."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        c = x.shape[1]
        a = c // 2 if k % 2 else 1 + k % (c - 1)
        self.sizes = [a, c - a]
        self.conv = layer(x[:, :a], w, 1 + 2 * (k % 2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, self.sizes, 1)
        return torch.cat([b, self.conv(a)], 1)


@unary
class LiteralView(nn.Module):
    """Shapes that hold the width as a literal."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.c, self.kind = x.shape[1], k % 5
        if self.kind == 4:
            self.fc = nn.Linear(x[0].numel(), w)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 0:
            return F.relu(x.view(2, self.c, -1)).view(x.shape)
        if self.kind == 1:
            return x.reshape(2, self.c, -1).transpose(1, 2).contiguous().transpose(1, 2).reshape(x.shape)
        if self.kind == 2:
            return x * x.mean(tuple(range(2, x.dim())), keepdim=True).expand(-1, self.c, *x.shape[2:])
        if self.kind == 3:
            return x + x.new_zeros(1, self.c, *[1] * (x.dim() - 2))
        return self.fc(x.view(-1, self.fc.in_features))


@unary
class SqueezeExcite(nn.Module):
    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        c = x.shape[1]
        self.linear = k % 2 == 0 or x.dim() == 2
        kind = nn.Linear if self.linear else CONV[x.dim() - 2]
        self.fc1, self.fc2 = (kind(c, w), kind(w, c)) if self.linear else (kind(c, w, 1), kind(w, c, 1))
        self.gate = (torch.sigmoid, F.hardsigmoid, torch.tanh)[k % 3]

    def forward(self, x: Tensor) -> Tensor:
        s = pooled(x) if self.linear else x.mean(tuple(range(2, x.dim())), keepdim=True)
        s = self.gate(self.fc2(F.relu(self.fc1(s))))
        return x * (spread(s, x) if self.linear else s)


@unary
class Residual(nn.Module):
    """Basic, bottleneck, pre-activation, inverted (depthwise); post-addition ReLU or none; in place or not."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        c, bias = x.shape[1], k % 5 == 4
        z = x.new_zeros(1, w, *x.shape[2:])
        self.kind, self.post = k % 4, k > 5
        first, last = layer(x, w, 3, bias=bias), layer(z, c, 1 if self.kind else 3, bias=bias)
        middle = layer(z, w, 3, groups=w, bias=bias) if self.kind == 3 else nn.Identity()
        if self.kind == 2:
            self.body = nn.Sequential(batch_norm(x, c), nn.ReLU(), first, batch_norm(x, w), nn.ReLU(), last)
        else:
            self.body = nn.Sequential(
                first, batch_norm(x, w), nn.ReLU(inplace=True), middle, last, batch_norm(x, c)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out += x
        return F.relu(out) if self.post else out


@unary
class ConvNext(nn.Module):
    """Depthwise - permute - layer norm - linear - gelu - linear - layer scale - permute - add"""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        c = x.shape[1]
        self.dw = layer(x, c, groups=c)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(c), nn.Linear(c, w), nn.Linear(w, c)
        self.layer_scale = nn.Parameter(torch.ones(c)) if k % 2 else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc2(F.gelu(self.fc1(self.norm(self.dw(x).movedim(1, -1)))))
        if self.layer_scale is not None:
            z = z * self.layer_scale
        return x + z.movedim(-1, 1)


@unary
class Dense(nn.Module):
    """Layers that read the concatenation of all before them."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for i in range(2 + k % 2):
            z = x.new_zeros(1, x.shape[1] + i * w, *x.shape[2:])
            norm = batch_norm(x, z.shape[1]) if k > 3 else nn.Identity()
            self.layers.append(nn.Sequential(norm, nn.ReLU(), layer(z, w, bias=k % 3 == 0)))

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for f in self.layers:
            values.append(f(torch.cat(values, 1)))
        return torch.cat(values, 1)


@unary
class UNet(nn.Module):
    """Down, work, up, beside or onto what came in."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        dims, c = x.dim() - 2, x.shape[1]
        self.down = nn.Sequential(layer(x, w, stride=2, bias=False), batch_norm(x, w), nn.ReLU())
        self.up = TRANSPOSED[dims](w, c, 2, 2) if k % 2 else layer(x.new_zeros(1, w, *x.shape[2:]), c, 1)
        self.onto = k > 5

    def forward(self, x: Tensor) -> Tensor:
        z = F.interpolate(self.up(self.down(x)), size=x.shape[2:])
        return x + z if self.onto else torch.cat([x, z], 1)


@unary
class Scale(nn.Module):
    """Parameters, buffers and constants as data."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.kind = k % 9
        self.v = nn.Parameter(torch.rand(per_channel(x)))
        self.flat = nn.Parameter(torch.rand(x.shape[1]))
        self.one = nn.Parameter(torch.rand(1))
        self.map = nn.Parameter(torch.rand(x.shape[1:]))
        self.positions = nn.Parameter(torch.rand(1, 1, *x.shape[2:]))
        self.register_buffer("buffer", torch.rand(per_channel(x)))
        self.register_buffer("hidden", torch.linspace(0.5, 1, x.shape[1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 0:
            return x * self.v
        if self.kind == 1:
            return x + self.v
        if self.kind == 2:
            return x * self.one + self.positions
        if self.kind == 3:
            return x * self.buffer
        if self.kind == 4:
            return x - self.hidden.view(-1, *[1] * (x.dim() - 2))
        if self.kind == 5:
            return (x.movedim(1, -1) * self.flat + self.flat).movedim(-1, 1)
        if self.kind == 6:
            return x + self.map
        if self.kind == 7:
            return x * torch.sigmoid(self.v) + F.softplus(self.one)
        return x / (1 + self.buffer)


@unary
class GlobalResponse(nn.Module):
    """Global response normalisation, with its epsilon in an attribute (large, so that it shows) or a literal."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.literal, self.eps = k % 3 == 2, 0.1
        self.weight, self.bias = (nn.Parameter(torch.randn(per_channel(x))) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=tuple(range(2, x.dim())), keepdim=True)
        scale = size / (size.mean(1, keepdim=True) + (0.2 if self.literal else self.eps))
        return x + torch.addcmul(self.bias, self.weight, x * scale)


@unary
class FunctionalConv(nn.Module):
    """``F.conv`` with a parameter of the model, whole, cut, transposed, scaled or standardised."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.dims, self.kind = x.dim() - 2, k % 7
        c = x.shape[1]
        self.weight = nn.Parameter(torch.randn(w, c, *[3] * self.dims) / c)
        self.bias = nn.Parameter(torch.randn(w)) if k % 2 else None
        self.depth = nn.Parameter(torch.randn(c, 1, *[3] * self.dims))
        self.register_buffer("blur", torch.rand(1, 1, *[3] * self.dims))

    def forward(self, x: Tensor) -> Tensor:
        f = F_CONV[self.dims]
        if self.kind == 0:
            return f(x, self.weight, self.bias, padding=1)
        if self.kind == 1:
            return f(x, self.weight[1:], None, padding=1)
        if self.kind == 2:
            return f(x, self.weight * 0.5, self.bias, padding=1)
        if self.kind == 3:
            return f(x, self.depth, None, padding=1, groups=x.shape[1])
        if self.kind == 4:
            return f(x, self.blur.expand(x.shape[1], *self.blur.shape[1:]), padding=1, groups=x.shape[1])
        if self.kind == 5:
            return F_TRANSPOSED[self.dims](f(x, self.weight, self.bias, padding=1), self.weight, padding=1)
        return torch.einsum("nc...,oc->no...", x, self.weight.flatten(2).mean(2))


class Standardised1d(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, standardised(self.weight), self.bias)


class Standardised2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, standardised(self.weight), self.bias)


class Standardised3d(nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, standardised(self.weight), self.bias)


def standardised(weight: Tensor) -> Tensor:
    flat = weight.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True, correction=0) + 1e-5)
    return flat.view_as(weight)


class Doubled2d(nn.Conv2d):
    """A subclass whose forward is a convolution and something more."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@unary
def computed_weight(x: Tensor, y: Tensor, w: int, k: int) -> nn.Module:
    """Weight standardisation, parametrizations, a subclass."""
    c, dims = x.shape[1], x.dim() - 2
    if k % 4 == 0:
        return {1: Standardised1d, 2: Standardised2d, 3: Standardised3d}[dims](c, w, 3, padding=1)
    if k % 4 == 1:
        return parametrizations.weight_norm(layer(x, w))
    if k % 4 == 2:
        return parametrizations.spectral_norm(layer(x, w, bias=False))
    return Doubled2d(c, w, 3, padding=1)


@unary
class Attention(nn.Module):
    """Self attention over positions: fused or in parts; heads computed from the width, or literals."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        c = x.shape[1]
        self.heads, self.kind = (divisor(c, k) if k % 2 else 1), k % 4
        self.width = c // self.heads
        self.qkv, self.out = nn.Linear(c, 3 * c), nn.Linear(c, c, bias=k > 5)
        self.whole = nn.MultiheadAttention(c, self.heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(2).transpose(1, 2)
        if self.kind == 3:
            return x + self.whole(t, t, t, need_weights=False)[0].transpose(1, 2).reshape(x.shape)
        width = self.width if self.kind == 0 else -1
        q, k, v = (z.unflatten(-1, (self.heads, width)).transpose(1, 2) for z in self.qkv(t).chunk(3, -1))
        if self.kind == 2:
            z = (q @ k.transpose(-1, -2) * self.width**-0.5).softmax(-1) @ v
        else:
            z = F.scaled_dot_product_attention(q, k, v)
        z = self.out(z.transpose(1, 2).flatten(2))
        return x + z.transpose(1, 2).reshape(x.shape)


@unary
class Tokens(nn.Module):
    """Positions behind a class token and registers, shifted and scaled: parameters used as data."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        c, n = x.shape[1], x[0, 0].numel()
        self.first, self.registers = nn.Parameter(torch.randn(1, 1, c)), nn.Parameter(torch.randn(1, 2, c))
        self.places, self.scale = nn.Parameter(torch.randn(1, n + 3, c)), nn.Parameter(torch.randn(c))
        self.attention = nn.MultiheadAttention(c, divisor(c, k), batch_first=True, add_bias_kv=k % 4 == 1)
        self.kind = k % 4

    def forward(self, x: Tensor) -> Tensor:
        first, registers = (p.expand(x.shape[0], -1, -1) for p in (self.first, self.registers))
        t = torch.cat([first, x.flatten(2).transpose(1, 2), registers], 1)
        t = t + self.places if self.kind != 2 else t
        t = t + self.scale * self.attention(t, t, t, need_weights=self.kind == 3)[0]
        return t[:, 1:-2].transpose(1, 2).reshape(x.shape)


@unary
class TwiceCalled(nn.Module):
    """One convolution (and norm) called on two values."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.conv = layer(x, x.shape[1], bias=k % 2 == 0)
        self.norm = batch_norm(x, x.shape[1]) if k % 4 > 1 else nn.Identity()
        self.sum = k > 5

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(self.norm(self.conv(x)))
        again = self.norm(self.conv(input=z))
        return z + again if self.sum else again


@unary
class SharedWeight(nn.Module):
    """Two layers with one weight; a linear layer and its transpose."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.kind = k % 3
        if self.kind == 2:
            self.fc = nn.Linear(x.shape[1], w)
            return
        self.a = layer(x, w, bias=False)
        self.b = layer(x, w, bias=self.kind == 1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == 2:
            z = F.relu(self.fc(x.movedim(1, -1)))
            return F.linear(z, self.fc.weight.t()).movedim(-1, 1)
        return torch.cat([F.relu(self.a(x)), self.b(x.abs())], 1)


@unary
class Mixer(nn.Module):
    """Linear layers over channels and over positions."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        positions = x[0, 0].numel()
        self.over_positions = k % 2 == 0
        if self.over_positions:
            self.fc1, self.fc2 = nn.Linear(positions, w), nn.Linear(w, positions)
        else:
            self.fc1, self.fc2 = nn.Linear(x.shape[1], w), nn.Linear(w, x.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(2)
        if self.over_positions:
            return x + self.fc2(F.gelu(self.fc1(t))).reshape(x.shape)
        return x + self.fc2(F.gelu(self.fc1(t.transpose(1, 2)))).transpose(1, 2).reshape(x.shape)


@unary
class GateOverPositions(nn.Module):
    """As gMLP: one half, normed and mixed over positions, multiplies the other; or ResMLP, mixed and scaled."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        c, positions = x.shape[1], x[0, 0].numel()
        self.kind, mixed = k % 4, c if k % 4 == 3 else w
        self.norm, self.inner = nn.LayerNorm(c), nn.LayerNorm(mixed)
        self.fc1, self.fc2 = nn.Linear(c, 2 * w), nn.Linear(w, c)
        self.scale = nn.Parameter(torch.randn(c))
        bias = self.kind != 2
        self.over = nn.Conv1d(positions, positions, 1, bias=bias)
        self.across = nn.Linear(positions, positions, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        t = self.norm(x.flatten(2).transpose(1, 2))
        if self.kind == 3:
            z = self.scale * self.across(t.transpose(1, 2)).transpose(1, 2)
        else:
            u, v = F.gelu(self.fc1(t)).chunk(2, -1)
            v = self.inner(v)
            z = self.over(v) if self.kind == 0 else self.across(v.transpose(1, 2)).transpose(1, 2)
            z = self.fc2(u * z)
        return x + z.transpose(1, 2).reshape(x.shape)


@unary
class Scan(nn.Module):
    """A selective scan over positions, as in Mamba: every channel has a state of several numbers."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        c = x.shape[1]
        self.norm, self.fc1, self.fc2 = (
            nn.RMSNorm(c, eps=0.1),
            nn.Linear(c, 2 * w, bias=k % 2 == 0),
            nn.Linear(w, c),
        )
        self.state, self.rank, self.loop = 2, 1 + k % 3, k % 4 > 1
        self.conv = nn.Conv1d(w, w, 3, padding=2, groups=w)
        self.read, self.step = nn.Linear(w, self.rank + 2 * self.state, bias=False), nn.Linear(self.rank, w)
        self.decay, self.skip = nn.Parameter(torch.rand(w, self.state)), nn.Parameter(torch.randn(w))

    def forward(self, x: Tensor) -> Tensor:
        given = x.flatten(2).transpose(1, 2)
        u, z = self.fc1(self.norm(given)).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : given.shape[1]].transpose(1, 2))
        step, b, c = self.read(u).split([self.rank, self.state, self.state], -1)
        step = F.softplus(self.step(step)).unsqueeze(-1)
        decay, more = step * -torch.exp(self.decay), step * b.unsqueeze(2) * u.unsqueeze(-1)
        if self.loop:
            state, out = torch.zeros_like(more[:, 0]), []
            for t in range(more.shape[1]):
                state = decay[:, t].exp() * state + more[:, t]
                out.append((state * c[:, t].unsqueeze(1)).sum(-1))
            out = torch.stack(out, 1)
        else:
            out = torch.einsum("btdn,btn->btd", more.cumsum(1) * torch.tanh(decay), c)
        out = self.fc2((out + u * self.skip) * F.silu(z))
        return x + out.transpose(1, 2).reshape(x.shape)


@unary
class Transformer(nn.Module):
    """A block of attention and one of layers, each behind a norm: written out, with few keys, or PyTorch's own."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        c = x.shape[1]
        self.heads, self.kind = divisor(c, 1 + k % 4), k % 3
        norms = (nn.LayerNorm, nn.RMSNorm)
        self.norm1, self.norm2 = norms[k % 2](c, eps=0.1), norms[k // 2 % 2](c, eps=0.1)
        self.own = nn.TransformerEncoderLayer(c, self.heads, w, 0.0, batch_first=True, norm_first=k % 2 == 0)
        each = c // self.heads
        self.q, self.k, self.v = nn.Linear(c, c), nn.Linear(c, each), nn.Linear(c, each)
        self.out, self.fc1, self.fc2 = nn.Linear(c, c), nn.Linear(c, w), nn.Linear(w, c)

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(2).transpose(1, 2)
        if self.kind == 0:
            t = self.own(t)
        else:
            z = self.norm1(t)
            q = self.q(z).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            k, v = self.k(z).unsqueeze(1), self.v(z).unsqueeze(1)  # one for all heads
            if self.kind == 1:
                z = (torch.einsum("bhqd,bhkd->bhqk", q, k.expand_as(q)) * 0.3).softmax(-1) @ v
            else:
                z = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q))
            t = t + self.out(z.transpose(1, 2).flatten(2))
            t = t + self.fc2(F.gelu(self.fc1(self.norm2(t))))
        return t.transpose(1, 2).reshape(x.shape)


@unary
class Gate(nn.Module):
    """Spatial attention from statistics over channels, or from a convolution to one channel."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.learned = k % 2 == 1
        self.conv = layer(x if self.learned else x[:, :1].repeat_interleave(2, 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        z = x if self.learned else torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.conv(z))


@unary
class Dropped(nn.Module):
    """Dropout of elements or channels; stochastic depth of a branch."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.drop = (nn.Dropout(0.2), nn.Dropout2d(0.2), nn.Dropout(0.2, inplace=True))[k % 3]
        self.branch = nn.Sequential(layer(x, x.shape[1], bias=False), batch_norm(x, x.shape[1]), nn.ReLU())
        self.depth = k > 5

    def forward(self, x: Tensor) -> Tensor:
        z = self.branch(x)
        if not self.depth:
            return self.drop(z)
        if self.training:
            z = z * torch.bernoulli(torch.full_like(z[:, :1], 0.8))
        return x + z


@unary
class Inplace(nn.Module):
    """A value that is changed in place after it was read."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.conv, self.kind = layer(x, w), k % 4

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        if self.kind == 0:
            return F.relu_(z) + z
        if self.kind == 1:
            z[:, :1] = 0.5
            return z
        if self.kind == 2:
            z.mul_(2).add_(1)
            return z
        view = z.view(z.shape)
        view += 1
        return z


@unary
class DeadBranch(nn.Module):
    """A branch that nothing reads, or that is multiplied by nothing; layers that are never called."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.used, self.dead, self.never = layer(x, w), layer(x, w), layer(x, w)
        self.zero = k % 2 == 1

    def forward(self, x: Tensor) -> Tensor:
        dead = F.relu(self.dead(x))
        return self.used(x) + 0 * dead if self.zero else self.used(x)


@unary
class LiteralAdd(nn.Module):
    """A branch added with a literal tensor, onto a narrower one, or to one channel."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.a, self.one, self.kind = layer(x, w), layer(x, 1), k % 4

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x)
        if self.kind == 0:
            return z + self.one(x)
        if self.kind == 1:
            return z + torch.arange(z.shape[1], dtype=z.dtype).view(per_channel(z))
        if self.kind == 2:
            return z * self.one(x)
        return z + torch.tensor([0.5], dtype=z.dtype)


@binary
class Add(nn.Module):
    """Streams of different writers; where widths differ, through a projection or by broadcasting."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.project = nn.Identity() if y.shape[1] == x.shape[1] else layer(y, x.shape[1], 1, bias=k % 2 == 0)
        self.kind = k % 6

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.project(y)
        y = spread(y, x) if y.dim() == 2 else at_size_of(y, x)
        if self.kind == 0:
            return x + y
        if self.kind == 1:
            return F.relu(x) - 0.5 * y
        if self.kind == 2:
            return torch.maximum(x, y)
        if self.kind == 3:
            return torch.add(x, y, alpha=2)
        if self.kind == 4:
            return torch.lerp(x, y.expand_as(x), 0.3)
        return torch.stack([x, y.expand_as(x)]).mean(0)


@binary
class Multiply(nn.Module):
    """A product of two branches, plain or of one with a gate made from the other."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.project = nn.Identity() if y.shape[1] == x.shape[1] else layer(y, x.shape[1], 1, bias=k % 2 == 0)
        self.kind = k % 5

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.project(y)
        y = spread(y, x) if y.dim() == 2 else at_size_of(y, x)
        if self.kind == 0:
            return x * y
        if self.kind == 1:
            return x * torch.sigmoid(y)
        if self.kind == 2:
            return F.relu(x) * F.silu(y)
        if self.kind == 3:
            return x / (2 + torch.tanh(y))
        return torch.addcmul(x, x, y)


@binary
class Concat(nn.Module):
    """Side by side; with a convolution after it, or stacked along a new axis."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.kind = k % 4
        both = x.new_zeros(1, x.shape[1] + y.shape[1], *x.shape[2:])
        self.conv = layer(both, w, 1) if self.kind == 1 else nn.Identity()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if y.dim() == 2 and x.dim() > 2:
            y = spread(y, x).expand(-1, -1, *x.shape[2:])
        y = at_size_of(y, x)
        if self.kind == 2:
            return torch.stack([x, y], 2).flatten(1, 2)
        if self.kind == 3:
            return torch.cat([y, x], 2)
        return self.conv(torch.cat([x, y], 1))


@binary
class Film(nn.Module):
    """Scale and shift of every channel, computed from another value."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(y.shape[1], w), nn.Linear(w, 2 * x.shape[1])
        self.norm = batch_norm(x, x.shape[1]) if k % 2 else nn.Identity()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale, shift = self.fc2(F.relu(self.fc1(pooled(y)))).chunk(2, 1)
        return self.norm(x) * spread(scale, x) + spread(shift, x)


@binary
class CrossAttention(nn.Module):
    """Positions of one value attend to those of another."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.q, self.k, self.v = layer(x, w, 1), layer(y, w, 1), layer(y, x.shape[1], 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = (z.flatten(2).transpose(1, 2) for z in (self.q(x), self.k(y), self.v(y)))
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)


@binary
class Dynamic(nn.Module):
    """A convolution whose kernel is computed from another value; a gram matrix."""

    def __init__(self, x: Tensor, y: Tensor, w: int, k: int) -> None:
        super().__init__()
        self.gram = k % 2 == 1
        self.fc = nn.Linear(y.shape[1], x.shape[1])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        v = torch.sigmoid(self.fc(pooled(y)))
        if self.gram:
            t = x.flatten(2)
            return (t @ t.transpose(1, 2) @ spread(v, t)).squeeze(2)
        n, c, *size = x.shape
        kernel = v.reshape(n * c, 1, *[1] * len(size))
        return F_CONV[len(size)](x.reshape(1, n * c, *size), kernel, groups=n * c).reshape(n, c, *size)


# Steps that need the network around them: a module called again on another value, a weight of an earlier layer.
WITH_NETWORK = ("again", "tied")


class Head(nn.Module):
    """From a value to an output."""

    def __init__(self, kind: str, x: Tensor) -> None:
        super().__init__()
        self.kind = kind
        if kind == "fc":
            self.fc = nn.Linear(x.shape[1], 3)
        elif kind == "flat":
            self.fc = nn.Linear(x[0].numel(), 3)
        elif kind == "normed":
            self.norm, self.fc = nn.LayerNorm(x.shape[1]), nn.Linear(x.shape[1], 3)
        elif kind == "map":
            self.conv = layer(x, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "fc":
            return self.fc(pooled(x))
        if self.kind == "flat":
            return self.fc(x.flatten(1))
        if self.kind == "normed":
            return self.fc(self.norm(pooled(x)))
        return self.conv(x) if self.kind == "map" else x.clone()


# -- a recipe as a network --------------------------------------------------------------------------------
class RandomNet(nn.Module):
    """The network of a recipe. ``applied``: the operators of the steps that fitted."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.output = recipe.output
        self.steps, self.reads = nn.ModuleList(), []
        self.heads, self.heads_read = nn.ModuleList(), []
        self.applied: list[str] = []
        self.eval()
        values = list(inputs_of(recipe, torch.float32))
        for name, a, b, width, variant in recipe.steps:
            reads = [len(values) - 1 - n % len(values) for n in ((a, b) if name in BINARY else (a,))]
            sources = [values[i] for i in reads]
            try:  # no chipnet here: what does not run on these shapes is no network
                module = self._made(name, sources[0], sources[-1], b, width, variant).eval()
                out = module(*(v.clone() for v in sources))
            except Exception:
                continue
            if not 2 <= out.dim() <= 5 or not 1 <= out.shape[1] <= 30 or not 1 <= out[0].numel() <= 2000:
                continue
            self.steps.append(module)
            self.reads.append(reads)
            self.applied.append(name)
            values.append(out)
        for kind, a in recipe.heads:
            self.heads_read.append(len(values) - 1 - a % len(values))
            self.heads.append(Head(kind, values[self.heads_read[-1]]))

    def _made(self, name: str, x: Tensor, y: Tensor, b: int, width: int, variant: int) -> nn.Module:
        if name == "again":
            return self.steps[len(self.steps) - 1 - b % len(self.steps)]
        if name == "tied":
            kind, kernel = type(layer(x, width)), (3,) * (x.dim() - 2)
            same = [
                m
                for m in self.steps.modules()
                if type(m) is kind and m.weight.shape[1:] == (x.shape[1], *kernel)
            ]
            earlier = same[b % len(same)]
            module = layer(x, earlier.weight.shape[0], bias=variant % 2 == 0)
            module.weight = earlier.weight
            return module
        return (UNARY | BINARY)[name](x, y, width, variant)

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for step, reads in zip(self.steps, self.reads, strict=True):
            values.append(step(*[values[i] for i in reads]))
        outs = [head(values[i]) for head, i in zip(self.heads, self.heads_read, strict=True)]
        if self.output == "dict":
            return {f"out{i}": out for i, out in enumerate(outs)}
        if self.output == "nested":
            return {"outs": outs, "first": (outs[0],)}
        return outs[0] if self.output == "tensor" and len(outs) == 1 else tuple(outs)


def inputs_of(recipe: Recipe, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    maps = [(2, c, *[recipe.size] * recipe.dims) for c in recipe.inputs]
    shapes = [*([(2, recipe.vector)] if recipe.vector else []), *maps]
    return tuple(torch.randn(s, generator=generator, dtype=dtype) for s in shapes)


@torch.no_grad()
def build(recipe: Recipe) -> RandomNet:
    """The network in float64 and eval mode, under parameters and statistics with which every channel matters."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = RandomNet(recipe).double().eval()
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                t.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                t.normal_(0, 0.3)
            elif t.dim() == 1 and isinstance(t, nn.Parameter) and "parametrizations" not in name:
                t.uniform_(0.5, 1.5)
    return model


# -- drawing recipes --------------------------------------------------------------------------------------
WIDTHS = (4, 6, 8, 12, 2, 3, 5, 7, 9, 10, 11, 13)
LAYERS = ("conv", "cbr", "preactivation", "depthwise", "grouped", "Residual", "Dense", "SqueezeExcite")


def vocabulary() -> tuple[str, ...]:
    """What steps are drawn from; layers more often, since gates act there."""
    names = [*LAYERS, "cbr", "conv", *UNARY, "norm", "act", *BINARY, *BINARY, *WITH_NETWORK]
    return tuple(n for n in names if n not in LEFT_OUT)


def random_recipe(integer: Callable[[int, int], int]) -> Recipe:
    """A recipe from a source of integers ``low..high``: hypothesis, or a seeded generator."""
    names = vocabulary()

    def pick(options: Sequence[T]) -> T:
        return options[integer(0, len(options) - 1)]

    dims = pick((2, 2, 2, 1, 3))
    steps = [(pick(("conv", "cbr")), 0, 0, pick(WIDTHS), integer(0, 5))]
    while len(steps) < 9 and integer(0, 8):
        steps.append((pick(names), pick((0, 0, 0, 0, 1, 2, 3)), integer(0, 4), pick(WIDTHS), integer(0, 18)))
    heads = [(pick(("fc", "flat", "map", "normed")), 0)]
    while len(heads) < 3 and integer(0, 4) == 4:
        heads.append((pick(("fc", "flat", "map", "normed", "raw")), integer(0, 4)))
    return Recipe(
        steps=tuple(steps),
        heads=tuple(heads),
        output=pick(("tensor", "tensor", "tensor", "tuple", "dict", "nested")),
        inputs=pick(((3,), (3,), (3,), (3, 5), (4, 4))),
        vector=pick((0, 0, 0, 0, 5)),
        dims=dims,
        size=pick((4, 5, 6, 8)) if dims < 3 else 4,
        realisation=pick(("plain", "indexed")),
        seed=integer(0, 99),
        norms=pick(("live", "live", "dense")),
        attention=pick(("narrow", "narrow", "whole")),
    )


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Recipes for hypothesis, which shrinks a failing one to few steps."""
    return random_recipe(lambda low, high: draw(st.integers(low, high)))


# -- what holds for every network -------------------------------------------------------------------------
def check(recipe: Recipe) -> Counter[str]:
    """Prune the recipe's network in every way; raise where a promise is broken.

    Returns:
        How often each operator was part of it, and ``networks``, ``no gates``, ``masks``, ``budget refused``.
    """
    model, inputs = build(recipe), inputs_of(recipe)
    before = snapshot(model)
    seen = Counter({"networks": 1})
    s = Structure(model, inputs, realisation=recipe.realisation, norms=recipe.norms, heads=recipe.attention)
    # Capture keeps whole what a trial finds inexact. That is right where a width is used as a number; elsewhere
    # it would hide a wrong rule.
    used = [getattr(step, "function", None) for step in model.steps]
    if not any(f in WIDTH_AS_NUMBER for f in used):
        inexact = [site.name for site in s.sites if "outputs change" in site.reason]
        assert not inexact, f"pruning {inexact} changes outputs"
    seen["no gates" if s.gates == 0 else "gated"] += 1
    masks = _masks(s, recipe.seed, seen) if s.gates else []
    others = inputs_of(recipe, seed=1)
    conforms(model, others, s, masks, factory=lambda: build(recipe), train=_trains(model, others))
    seen["masks"] += len(masks)
    assert_same(before, snapshot(model))
    return seen + Counter(model.applied)


def _masks(s: Structure, seed: int, seen: Counter[str]) -> list[Tensor]:
    """Random masks that leave the network connected, and one that meets a budget."""
    generator = torch.Generator().manual_seed(seed)
    masks = [s.canonical(torch.rand(s.gates, generator=generator) < d) for d in (0.2, 0.5, 0.8)]
    masks = [m for m in masks if s.connected(m)]
    try:
        mask = s.harden(torch.rand(s.gates, generator=generator), {"macs": 0.6})
    except BudgetError:
        seen["budget refused"] += 1
        return masks
    assert s.cost.exact(mask).macs <= s.limits({"macs": 0.6})["macs"]
    assert s.connected(mask)
    return [*masks, mask]


def _trains(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Some dense networks do not: a batch norm of one value, a value changed in place after it was saved."""
    try:
        gradients(model, inputs)
    except (RuntimeError, ValueError):
        return False
    return True


# -- shrinking --------------------------------------------------------------------------------------------
def shrunk(recipe: Recipe, fails: Callable[[Recipe], bool], tries: int = 150) -> Recipe:
    """A smaller recipe that still fails: steps and heads are deleted and numbers made small, while it does."""
    seen = {recipe}
    while True:
        for smaller in _smaller(recipe):
            if smaller in seen:
                continue
            seen.add(smaller)
            if len(seen) > tries:
                return recipe
            if fails(smaller):
                recipe = smaller
                break
        else:
            return recipe


def _smaller(r: Recipe) -> list[Recipe]:
    out = [replace(r, steps=r.steps[:i] + r.steps[i + 1 :]) for i in reversed(range(len(r.steps)))]
    if len(r.heads) > 1:
        out += [replace(r, heads=r.heads[:i] + r.heads[i + 1 :]) for i in range(len(r.heads))]
    plain = {f.name: f.default for f in fields(r) if f.name != "steps"}
    out += [replace(r, **{name: value}) for name, value in plain.items() if getattr(r, name) != value]
    for i, (name, *numbers) in enumerate(r.steps):
        for j, (n, least) in enumerate(zip(numbers, (0, 0, 2, 0), strict=True)):
            for less in sorted({least, n // 2, n - 1}):
                if least <= less < n:
                    step = (name, *numbers[:j], less, *numbers[j + 1 :])
                    out.append(replace(r, steps=(*r.steps[:i], step, *r.steps[i + 1 :])))
    return out
