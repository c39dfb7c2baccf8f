"""Toy networks with answers worked out by hand.

Every toy has a diagram, prime widths (so that a wrong axis cannot pass by luck) and, for hand-picked masks, the
exact indices each parameter keeps and the exact costs. Costs are written as sums over layers, in the order of
the diagram: ``positions * kernel * columns * rows``. All feature maps are 5x5 and batches have 2 images, so a
padded convolution has ``A = 2 * 5 * 5`` output positions.

Notation of diagrams: ``conv 3>7`` reads 3 channels and writes 7, ``(g)`` marks where gates act.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipnet import Cost, Structure
from chipnet.program.counting import counting

A = 2 * 5 * 5
Keep = dict[str, dict[int, tuple[int, ...]]]


@dataclass(frozen=True)
class Answer:
    """For one mask: which indices stay and what the network then costs.

    ``open``: site -> channels whose gates are open; sites that are not named are all open.
    ``realisations``: to which of them the answer applies.
    """

    open: Mapping[str, Sequence[int]]
    keep: Keep
    cost: Cost
    share: bool = True
    realisations: tuple[str, ...] = ("plain", "indexed")
    zero: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    remaps: tuple[tuple[str, str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, eq=False)
class Toy:
    """A network, its input shapes, how many gates act at each site (share=True, share=False), and answers.

    ``whole``: site -> words that the reason for its ungated channels must contain.
    """

    build: Callable[[], nn.Module]
    gated: Mapping[str, int]
    answers: tuple[Answer, ...] = ()
    shape: tuple[int, ...] = (2, 3, 5, 5)
    whole: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shared: int = 0
    """How many gates sites have in common when shared: the sum of ``gated`` less this is the number of gates."""


def bn(name: str, *indices: int) -> Keep:
    """What a batch norm keeps: affine parameters and running statistics."""
    return {f"{name}.{k}": {0: indices} for k in ("weight", "bias", "running_mean", "running_var")}


def conv(
    name: str, rows: Sequence[int] | None = None, cols: Sequence[int] | None = None, bias: bool = False
) -> Keep:
    """What a convolution or linear layer keeps; None: all."""
    axes = {a: tuple(i) for a, i in ((0, rows), (1, cols)) if i is not None}
    out = {f"{name}.weight": axes}
    if bias and rows is not None:
        out[f"{name}.bias"] = {0: tuple(rows)}
    return out


# -- helpers ----------------------------------------------------------------------------------------------
@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with parameters and statistics under which every channel matters."""
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if not t.is_floating_point():
            continue
        if name.endswith("running_var"):
            t.uniform_(0.5, 1.5)
        else:
            t.normal_(0.2, 0.7)
    return model.double().eval()


@functools.cache
def made(toy: Toy, **options: object) -> tuple[nn.Module, Tensor, Structure]:
    """A randomised toy, an input and its structure; made once, so tests that change a model copy it."""
    torch.manual_seed(0)
    model = randomised(toy.build())
    x = torch.randn(toy.shape, dtype=torch.float64)
    return model, x, Structure(model, x, **options)  # type: ignore[arg-type]


def mask_of(s: Structure, opened: Mapping[str, Sequence[int]]) -> Tensor:
    """Boolean gates: at the named sites only the given channels, elsewhere all."""
    names = {site.name: site for site in s.sites}
    mask = torch.ones(s.gates, dtype=torch.bool)
    for name, channels in opened.items():
        site = names[name]
        assert (site.gates >= 0).any(), f"{name} is not gated"
        for i, gate in enumerate(site.gates.tolist()):
            if i not in channels and gate >= 0:
                mask[gate] = False
    for name, channels in opened.items():
        gates = names[name].gates
        assert all(mask[gates[i]] for i in channels if gates[i] >= 0), (
            f"{name}: gates are shared with shut ones"
        )
    return mask


def random_mask(s: Structure, density: float, seed: int) -> Tensor | None:
    """A canonical random mask; None where it disconnects the network."""
    generator = torch.Generator().manual_seed(seed)
    mask = s.canonical(torch.rand(s.gates, generator=generator) < density)
    return mask if s.connected(mask) else None


def counted_macs(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates by PyTorch's own counter."""
    with counting() as counter, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(*inputs)
    total = counter.get_total_flops()
    assert total % 2 == 0
    return total // 2


def counted_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def counted_channels_and_volume(model: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """Output channels of every conv and linear module, and output elements of every call of one."""
    channels: dict[nn.Module, int] = {}
    volume = 0

    def hook(module: nn.Module, args: object, output: Tensor) -> None:
        nonlocal volume
        weight = module.weight
        assert isinstance(weight, Tensor)
        if weight.numel():  # not a stand-in, which reads nothing
            channels[module] = weight.shape[0]
            volume += weight.shape[0] * (
                output.numel() // max(output.shape[1 if weight.dim() > 2 else -1], 1)
            )

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [m.register_forward_hook(hook, prepend=True) for m in layers]
    with torch.no_grad():
        model(*inputs)
    for h in handles:
        h.remove()
    return sum(channels.values()), volume


def outputs(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        out = model(*inputs)
    return list(out) if isinstance(out, (tuple, list)) else [out]


@torch.no_grad()
def independently_masked(model: nn.Module, s: Structure, mask: Tensor) -> nn.Module:
    """A copy whose shut channels are multiplied away, straight from sites and open channels."""
    out = copy.deepcopy(model)
    parameters = dict(out.named_parameters())
    opened = s.analysis.open(mask).double().split([site.channels for site in s.sites])
    for site, z in zip(s.sites, opened, strict=True):
        axis, z = site.host.axis, z.clone()
        if isinstance(norm := out.get_submodule(site.host.module), nn.LayerNorm):
            norm.register_forward_hook(_live_statistics)
        elif site.host.weight in parameters:
            p = parameters[site.host.weight]
            p.mul_(z.reshape([-1 if a == axis else 1 for a in range(p.dim())]))
            if site.host.bias is not None:
                parameters[site.host.bias].mul_(z)
        else:
            assert site.host.output is not None
            z = z.reshape([-1] + [1] * (-1 - site.host.output))
            out.get_submodule(site.host.module).register_forward_hook(lambda m, a, y, z=z: y * z)
    return out


def _live_statistics(norm: nn.LayerNorm, args: tuple[Tensor], out: Tensor) -> Tensor:
    """Layer norm of feature maps, over the channels that are not zero everywhere."""
    (x,) = args
    on = (x != 0).any(-1).any(-1).any(0)
    if not on.any():
        return torch.zeros_like(x)
    live = x[:, on] - x[:, on].mean((1, 2, 3), keepdim=True)
    y = live / (live.square().mean((1, 2, 3), keepdim=True) + norm.eps).sqrt()
    out = torch.zeros_like(x)
    out[:, on] = y * norm.weight[on] + norm.bias[on]
    return out


def assert_same_outputs(a: nn.Module, b: nn.Module, *inputs: Tensor) -> None:
    """Equal to 1e-9 of the outputs' scale, and the scale is not nothing."""
    for x, y in zip(outputs(a, *inputs), outputs(b, *inputs), strict=True):
        assert x.shape == y.shape
        scale = float(x.abs().max())
        assert scale > 1e-6
        assert float((x - y).abs().max()) <= 1e-9 * scale


# -- chain ------------------------------------------------------------------------------------------------
class Chain(nn.Module):
    """conv1 3>7 - bn1(g) - relu - conv2 7>11 - bn2(g) - relu - pool - fc 11>5"""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(7)
        self.conv2 = nn.Conv2d(7, 11, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(11)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(11, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


CHAIN = Toy(
    Chain,
    gated={"bn1": 7, "bn2": 11},
    whole={"conv1": ("further down",), "conv2": ("further down",), "fc": ("an output of the network",)},
    answers=(
        Answer(
            open={"bn1": (0, 2, 5), "bn2": (1, 4, 6, 10)},
            keep={
                **conv("conv1", (0, 2, 5)),
                **bn("bn1", 0, 2, 5),
                **conv("conv2", (1, 4, 6, 10), (0, 2, 5)),
                **bn("bn2", 1, 4, 6, 10),
                **conv("fc", None, (1, 4, 6, 10)),
            },
            zero={"bn1.weight": (1, 3, 4, 6), "bn2.weight": (0, 2, 3, 5, 7, 8, 9)},
            cost=Cost(
                channels=3 + 4 + 5,
                volume=A * 3 + A * 4 + 2 * 5,
                params=3 * 3 * 9 + 2 * 3 + 3 * 4 * 9 + 2 * 4 + 4 * 5 + 5,
                macs=A * 9 * 3 * 3 + A * 9 * 3 * 4 + 2 * 4 * 5,
            ),
        ),
        Answer(
            open={},
            keep={},
            cost=Cost(
                channels=7 + 11 + 5,
                volume=A * 7 + A * 11 + 2 * 5,
                params=3 * 7 * 9 + 2 * 7 + 7 * 11 * 9 + 2 * 11 + 11 * 5 + 5,
                macs=A * 9 * 3 * 7 + A * 9 * 7 * 11 + 2 * 11 * 5,
            ),
        ),
    ),
)


# -- residual ---------------------------------------------------------------------------------------------
class Residual(nn.Module):
    """
    conv0 3>7 - bn0(g) - relu -+- conv1 7>11 - bn1(g) - relu - conv2 11>7 - bn2(g) -(+)- relu - pool - fc 7>5
                               +---------------------------------------------------'
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(7)
        self.conv1 = nn.Conv2d(7, 11, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(11)
        self.conv2 = nn.Conv2d(11, 7, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(7)
        self.fc = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(x)))
        y = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(y)))
        return self.fc(x.mean((2, 3)))


_THREE = (0, 1, 4)
_STREAM: Keep = {
    **conv("conv0", _THREE),
    **bn("bn0", *_THREE),
    **conv("conv1", (2, 3), _THREE),
    **bn("bn1", 2, 3),
    **conv("conv2", _THREE, (2, 3)),
    **bn("bn2", *_THREE),
    **conv("fc", None, _THREE),
}
_STREAM_COST = Cost(
    channels=3 + 2 + 3 + 5,
    volume=A * 3 + A * 2 + A * 3 + 2 * 5,
    params=3 * 3 * 9 + 2 * 3 + 3 * 2 * 9 + 2 * 2 + 2 * 3 + 2 * 3 + 3 * 5 + 5,
    macs=A * 9 * 3 * 3 + A * 9 * 3 * 2 + A * 2 * 3 + 2 * 3 * 5,
)
RESIDUAL = Toy(
    Residual,
    gated={"bn0": 7, "bn1": 11, "bn2": 7},
    shared=7,
    answers=(
        Answer(
            open={"bn0": _THREE, "bn1": (2, 3), "bn2": _THREE},
            keep=_STREAM,
            zero={"bn0.weight": (2, 3, 5, 6), "bn2.weight": (2, 3, 5, 6)},
            cost=_STREAM_COST,
        ),
        # Not shared: the union {0, 1, 4} exists everywhere, and rows that are shut on one side stay as zeros.
        Answer(
            share=False,
            realisations=("plain",),
            open={"bn0": (0, 1), "bn1": (2, 3), "bn2": (1, 4)},
            keep=_STREAM,
            zero={"bn0.weight": (2, 3, 4, 5, 6), "bn2.weight": (0, 2, 3, 5, 6)},
            cost=_STREAM_COST,
        ),
        # With index maps conv1 reads only what bn0 wrote, and conv2 and bn2 write only their own two.
        Answer(
            share=False,
            realisations=("indexed",),
            open={"bn0": (0, 1), "bn1": (2, 3), "bn2": (1, 4)},
            keep={
                **conv("conv0", _THREE),
                **bn("bn0", *_THREE),
                **conv("conv1", (2, 3), (0, 1)),
                **bn("bn1", 2, 3),
                **conv("conv2", (1, 4), (2, 3)),
                **bn("bn2", 1, 4),
                **conv("fc", None, _THREE),
            },
            remaps=(("conv1", "input", (0, 1)), ("bn2", "output", (-1, 0, 1))),
            cost=Cost(
                channels=3 + 2 + 2 + 5,
                volume=A * 3 + A * 2 + A * 2 + 2 * 5,
                params=3 * 3 * 9 + 2 * 3 + 2 * 2 * 9 + 2 * 2 + 2 * 2 + 2 * 2 + 3 * 5 + 5,
                macs=A * 9 * 3 * 3 + A * 9 * 2 * 2 + A * 2 * 2 + 2 * 3 * 5,
            ),
        ),
        # All inner gates shut: the branch disappears, its convolutions and norms with it.
        Answer(
            open={"bn0": _THREE, "bn1": (), "bn2": _THREE},
            realisations=("plain",),
            keep={
                **conv("conv0", _THREE),
                **bn("bn0", *_THREE),
                **conv("conv1", (), _THREE),
                **bn("bn1"),
                **conv("conv2", _THREE, ()),
                **bn("bn2", *_THREE),
                **conv("fc", None, _THREE),
            },
            stand_ins={"conv1": "dead", "bn1": "norm", "conv2": "dead", "bn2": "norm"},
            zero={"bn0.weight": (2, 3, 5, 6), "bn1.weight": tuple(range(11)), "bn2.weight": tuple(range(7))},
            cost=Cost(
                channels=3 + 5,
                volume=A * 3 + 2 * 5,
                params=3 * 3 * 9 + 2 * 3 + 3 * 5 + 5,
                macs=A * 9 * 3 * 3 + 2 * 3 * 5,
            ),
        ),
    ),
)


# -- concatenation ----------------------------------------------------------------------------------------
class Concat(nn.Module):
    """
    x -+- conv_a 3>5 - bn_a(g) -+- cat 12 - relu - conv_c 12>5
       +- conv_b 3>7 - bn_b(g) -'
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.bn_a = nn.BatchNorm2d(5)
        self.conv_b = nn.Conv2d(3, 7, 1, bias=False)
        self.bn_b = nn.BatchNorm2d(7)
        self.conv_c = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_c(F.relu(torch.cat([self.bn_a(self.conv_a(x)), self.bn_b(self.conv_b(x))], 1)))


CONCAT = Toy(
    Concat,
    gated={"bn_a": 5, "bn_b": 7},
    answers=(
        Answer(
            open={"bn_a": (1, 3), "bn_b": (0, 4, 6)},
            keep={
                **conv("conv_a", (1, 3)),
                **bn("bn_a", 1, 3),
                **conv("conv_b", (0, 4, 6)),
                **bn("bn_b", 0, 4, 6),
                **conv("conv_c", None, (1, 3, 5 + 0, 5 + 4, 5 + 6)),
            },
            cost=Cost(
                channels=2 + 3 + 5,
                volume=A * 2 + A * 3 + A * 5,
                params=3 * 2 * 9 + 2 * 2 + 3 * 3 + 2 * 3 + 5 * 5 + 5,
                macs=A * 9 * 3 * 2 + A * 3 * 3 + A * 5 * 5,
            ),
        ),
        Answer(  # one side dies whole
            open={"bn_a": (), "bn_b": (0, 4, 6)},
            realisations=("plain",),
            keep={
                **conv("conv_a", ()),
                **bn("bn_a"),
                **conv("conv_b", (0, 4, 6)),
                **bn("bn_b", 0, 4, 6),
                **conv("conv_c", None, (5 + 0, 5 + 4, 5 + 6)),
            },
            stand_ins={"conv_a": "dead", "bn_a": "norm"},
            cost=Cost(
                channels=3 + 5,
                volume=A * 3 + A * 5,
                params=3 * 3 + 2 * 3 + 3 * 5 + 5,
                macs=A * 3 * 3 + A * 3 * 5,
            ),
        ),
    ),
)


# -- depthwise --------------------------------------------------------------------------------------------
class Depthwise(nn.Module):
    """expand 3>7 - bn1 - relu - depthwise 7 - bn2(g) - relu - project 7>5 - bn3"""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 7, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(7)
        self.depthwise = nn.Conv2d(7, 7, 3, padding=1, groups=7, bias=False)
        self.bn2 = nn.BatchNorm2d(7)
        self.project = nn.Conv2d(7, 5, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.expand(x)))
        return self.bn3(self.project(F.relu(self.bn2(self.depthwise(x)))))


DEPTHWISE = Toy(
    Depthwise,
    gated={"bn2": 7},
    whole={"bn1": ("further down",), "depthwise": ("further down",), "bn3": ("an output of the network",)},
    answers=(
        Answer(
            open={"bn2": (1, 2, 6)},
            keep={
                **conv("expand", (1, 2, 6)),
                **bn("bn1", 1, 2, 6),
                **conv("depthwise", (1, 2, 6)),
                **bn("bn2", 1, 2, 6),
                **conv("project", None, (1, 2, 6)),
            },
            cost=Cost(
                channels=3 + 3 + 5,
                volume=A * 3 + A * 3 + A * 5,
                params=3 * 3 + 2 * 3 + 9 * 3 + 2 * 3 + 3 * 5 + 2 * 5,
                macs=A * 3 * 3 + A * 9 * 3 + A * 3 * 5,
            ),
        ),
    ),
)


# -- squeeze and excite -----------------------------------------------------------------------------------
class SqueezeExcite(nn.Module):
    """
    conv 3>11 - bn(g) - relu -+--------------------------------------------(*)- project 11>5
                              +- pool - fc1 11>3(g) - relu - fc2 3>11 - sigmoid -'
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 11, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(11)
        self.fc1 = nn.Conv2d(11, 3, 1)
        self.fc2 = nn.Conv2d(3, 11, 1)
        self.project = nn.Conv2d(11, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        s = torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))
        return self.project(x * s)


SQUEEZE_EXCITE = Toy(
    SqueezeExcite,
    gated={"bn": 11, "fc1": 3},
    whole={"fc2": ("goes with what it is multiplied by",)},
    answers=(
        Answer(
            open={"bn": (0, 4, 7, 9), "fc1": (0, 2)},
            keep={
                **conv("conv", (0, 4, 7, 9)),
                **bn("bn", 0, 4, 7, 9),
                **conv("fc1", (0, 2), (0, 4, 7, 9), bias=True),
                **conv("fc2", (0, 4, 7, 9), (0, 2), bias=True),
                **conv("project", None, (0, 4, 7, 9)),
            },
            cost=Cost(
                channels=4 + 2 + 4 + 5,
                volume=A * 4 + 2 * 2 + 2 * 4 + A * 5,
                params=3 * 4 * 9 + 2 * 4 + 4 * 2 + 2 + 2 * 4 + 4 + 4 * 5 + 5,
                macs=A * 9 * 3 * 4 + 2 * 4 * 2 + 2 * 2 * 4 + A * 4 * 5,
            ),
        ),
        Answer(  # nothing is squeezed: fc2 reads nothing and stays as its bias
            open={"bn": (0, 4, 7, 9), "fc1": ()},
            realisations=("plain",),
            keep={
                **conv("conv", (0, 4, 7, 9)),
                **bn("bn", 0, 4, 7, 9),
                **conv("fc1", (), (0, 4, 7, 9), bias=True),
                **conv("fc2", (0, 4, 7, 9), (), bias=True),
                **conv("project", None, (0, 4, 7, 9)),
            },
            stand_ins={"fc1": "dead", "fc2": "constant"},
            cost=Cost(
                channels=4 + 5,
                volume=A * 4 + A * 5,
                params=3 * 4 * 9 + 2 * 4 + 4 + 4 * 5 + 5,
                macs=A * 9 * 3 * 4 + A * 4 * 5,
            ),
        ),
    ),
)


# -- shuffle ----------------------------------------------------------------------------------------------
class Shuffle(nn.Module):
    """conv1 3>14 - bn1(g: i with i+7) - relu - shuffle in 2 groups - conv2 14>5"""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 14, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(14)
        self.conv2 = nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.conv2(x)


SHUFFLE = Toy(
    Shuffle,
    gated={"bn1": 7},
    answers=(
        Answer(
            open={"bn1": (1, 4, 7 + 1, 7 + 4)},
            keep={
                **conv("conv1", (1, 4, 8, 11)),
                **bn("bn1", 1, 4, 8, 11),
                # channel p of group g lands at 2 * p + g
                **conv("conv2", None, (2, 3, 8, 9)),
            },
            cost=Cost(
                channels=4 + 5,
                volume=A * 4 + A * 5,
                params=3 * 4 * 9 + 2 * 4 + 4 * 5 + 5,
                macs=A * 9 * 3 * 4 + A * 4 * 5,
            ),
        ),
    ),
)


# -- flatten ----------------------------------------------------------------------------------------------
class Flatten(nn.Module):
    """conv1 3>7 - bn1(g) - relu - flatten 7*2*3 - fc 42>5"""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(7)
        self.fc = nn.Linear(42, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.relu(self.bn1(self.conv1(x))), 1))


FLATTEN = Toy(
    Flatten,
    shape=(2, 3, 2, 3),
    gated={"bn1": 7},
    answers=(
        Answer(
            open={"bn1": (2, 5)},
            keep={
                **conv("conv1", (2, 5)),
                **bn("bn1", 2, 5),
                **conv("fc", None, (*range(12, 18), *range(30, 36))),
            },
            cost=Cost(
                channels=2 + 5,
                volume=2 * 6 * 2 + 2 * 5,
                params=3 * 2 * 9 + 2 * 2 + 12 * 5 + 5,
                macs=2 * 6 * 9 * 3 * 2 + 2 * 12 * 5,
            ),
        ),
    ),
)


# -- grouped convolutions ---------------------------------------------------------------------------------
class ManyGroups(nn.Module):
    """conv1 3>14 - bn1 - relu - grouped 14>14 in 7 groups of 2 - bn2(g: a gate per group) - relu - conv3 14>5"""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 14, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(14)
        self.grouped = nn.Conv2d(14, 14, 3, padding=1, groups=7, bias=False)
        self.bn2 = nn.BatchNorm2d(14)
        self.conv3 = nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.conv3(F.relu(self.bn2(self.grouped(x))))


MANY_GROUPS = Toy(
    ManyGroups,
    gated={"bn2": 7},
    whole={"bn1": ("further down",)},
    answers=(
        Answer(  # groups 1 and 5 and 6 stay
            open={"bn2": (2, 3, 10, 11, 12, 13)},
            keep={
                **conv("conv1", (2, 3, 10, 11, 12, 13)),
                **bn("bn1", 2, 3, 10, 11, 12, 13),
                **conv("grouped", (2, 3, 10, 11, 12, 13)),
                **bn("bn2", 2, 3, 10, 11, 12, 13),
                **conv("conv3", None, (2, 3, 10, 11, 12, 13)),
            },
            cost=Cost(
                channels=6 + 6 + 5,
                volume=A * 6 + A * 6 + A * 5,
                params=3 * 6 + 2 * 6 + 6 * 2 * 9 + 2 * 6 + 6 * 5 + 5,
                macs=A * 3 * 6 + A * 9 * 2 * 6 + A * 6 * 5,
            ),
        ),
    ),
)


class FewGroups(nn.Module):
    """conv1 3>14 - bn1(g: i, i+7) - relu - grouped 14>22 in 2 groups - bn2(g: i, i+11) - relu - conv3 22>5"""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 14, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(14)
        self.grouped = nn.Conv2d(14, 22, 3, padding=1, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(22)
        self.conv3 = nn.Conv2d(22, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.conv3(F.relu(self.bn2(self.grouped(x))))


FEW_GROUPS = Toy(
    FewGroups,
    gated={"bn1": 7, "bn2": 11},
    answers=(
        Answer(
            open={"bn1": (1, 4, 5, 8, 11, 12), "bn2": (0, 3, 11, 14)},
            keep={
                **conv("conv1", (1, 4, 5, 8, 11, 12)),
                **bn("bn1", 1, 4, 5, 8, 11, 12),
                **conv("grouped", (0, 3, 11, 14), (1, 4, 5)),
                **bn("bn2", 0, 3, 11, 14),
                **conv("conv3", None, (0, 3, 11, 14)),
            },
            cost=Cost(
                channels=6 + 4 + 5,
                volume=A * 6 + A * 4 + A * 5,
                params=3 * 6 + 2 * 6 + 4 * 3 * 9 + 2 * 4 + 4 * 5 + 5,
                macs=A * 3 * 6 + A * 9 * 4 * 3 + A * 4 * 5,
            ),
        ),
    ),
)


# -- pre-activation ---------------------------------------------------------------------------------------
class PreActivation(nn.Module):
    """
    conv0 3>7 -+- bn1(g) - relu - conv1 7>11 - bn2(g) - relu - conv2 11>7 -(+)- bn3(g) - relu - conv3 7>5
               +----------------------------------------------------------'
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(7)
        self.conv1 = nn.Conv2d(7, 11, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(11)
        self.conv2 = nn.Conv2d(11, 7, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(7)
        self.conv3 = nn.Conv2d(7, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        y = self.conv1(F.relu(self.bn1(x)))
        x = x + self.conv2(F.relu(self.bn2(y)))
        return self.conv3(F.relu(self.bn3(x)))


_PRE = (0, 2, 4)
_PRE_OPEN = {"bn1": (0, 2), "bn2": (1, 3, 10), "bn3": (2, 4)}
PRE_ACTIVATION = Toy(
    PreActivation,
    gated={"bn1": 7, "bn2": 11, "bn3": 7},
    shared=7,
    whole={"conv0": ("further down",), "conv2": ("further down",)},
    answers=(
        # A stream channel exists where any reader's gate is open: {0, 2} or {2, 4}.
        Answer(
            share=False,
            realisations=("plain",),
            open=_PRE_OPEN,
            keep={
                **conv("conv0", _PRE),
                **bn("bn1", *_PRE),
                **conv("conv1", (1, 3, 10), _PRE),
                **bn("bn2", 1, 3, 10),
                **conv("conv2", _PRE, (1, 3, 10)),
                **bn("bn3", *_PRE),
                **conv("conv3", None, _PRE),
            },
            zero={"bn1.weight": (1, 3, 4, 5, 6), "bn3.weight": (0, 1, 3, 5, 6)},
            cost=Cost(
                channels=3 + 3 + 3 + 5,
                volume=A * 3 + A * 3 + A * 3 + A * 5,
                params=3 * 3 * 9 + 2 * 3 + 3 * 3 * 9 + 2 * 3 + 3 * 3 + 2 * 3 + 3 * 5 + 5,
                macs=A * 9 * 3 * 3 + A * 9 * 3 * 3 + A * 3 * 3 + A * 3 * 5,
            ),
        ),
        # With index maps bn1 reads its own two of the stream, and conv2 writes only what bn3 reads.
        Answer(
            share=False,
            realisations=("indexed",),
            open=_PRE_OPEN,
            keep={
                **conv("conv0", _PRE),
                **bn("bn1", 0, 2),
                **conv("conv1", (1, 3, 10), (0, 2)),
                **bn("bn2", 1, 3, 10),
                **conv("conv2", (2, 4), (1, 3, 10)),
                **bn("bn3", *_PRE),
                **conv("conv3", None, _PRE),
            },
            remaps=(("bn1", "input", (0, 1)), ("conv2", "output", (-1, 0, 1))),
            cost=Cost(
                channels=3 + 3 + 2 + 5,
                volume=A * 3 + A * 3 + A * 2 + A * 5,
                params=3 * 3 * 9 + 2 * 2 + 2 * 3 * 9 + 2 * 3 + 3 * 2 + 2 * 3 + 3 * 5 + 5,
                macs=A * 9 * 3 * 3 + A * 9 * 2 * 3 + A * 3 * 2 + A * 3 * 5,
            ),
        ),
    ),
)


# -- a module called twice --------------------------------------------------------------------------------
class CalledTwice(nn.Module):
    """conv0 3>7 - bn0(g) - relu - [conv 7>7 - bn(g) - relu] twice - head 7>5: one set of weights, one of gates"""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(7)
        self.conv = nn.Conv2d(7, 7, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(7)
        self.head = nn.Conv2d(7, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(x)))
        for _ in range(2):
            x = F.relu(self.bn(self.conv(x)))
        return self.head(x)


_TWICE = (1, 3, 6)
CALLED_TWICE = Toy(
    CalledTwice,
    gated={"bn0": 7, "bn": 7},
    shared=7,
    answers=(
        Answer(
            open={"bn0": _TWICE, "bn": _TWICE},
            keep={
                **conv("conv0", _TWICE),
                **bn("bn0", *_TWICE),
                **conv("conv", _TWICE, _TWICE),
                **bn("bn", *_TWICE),
                **conv("head", None, _TWICE),
            },
            cost=Cost(
                channels=3 + 3 + 5,
                volume=A * 3 + 2 * A * 3 + A * 5,
                params=3 * 3 * 9 + 2 * 3 + 3 * 3 * 9 + 2 * 3 + 3 * 5 + 5,
                macs=A * 9 * 3 * 3 + 2 * A * 9 * 3 * 3 + A * 3 * 5,
            ),
        ),
        Answer(
            share=False,
            open={"bn0": (1, 3), "bn": (3, 6)},
            keep={
                **conv("conv0", _TWICE),
                **bn("bn0", *_TWICE),
                **conv("conv", _TWICE, _TWICE),
                **bn("bn", *_TWICE),
                **conv("head", None, _TWICE),
            },
            zero={"bn0.weight": (0, 2, 4, 5, 6), "bn.weight": (0, 1, 2, 4, 5)},
            cost=Cost(
                channels=3 + 3 + 5,
                volume=A * 3 + 2 * A * 3 + A * 5,
                params=3 * 3 * 9 + 2 * 3 + 3 * 3 * 9 + 2 * 3 + 3 * 5 + 5,
                macs=A * 9 * 3 * 3 + 2 * A * 9 * 3 * 3 + A * 3 * 5,
            ),
        ),
    ),
)


# -- two outputs ------------------------------------------------------------------------------------------
class TwoOutputs(nn.Module):
    """
    conv1 3>7 - bn1(g) - relu -+- head_a 7>5                -> first output
                               +- conv_b 7>11 - bn_b - relu -> second output, kept whole
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(7)
        self.head_a = nn.Conv2d(7, 5, 1)
        self.conv_b = nn.Conv2d(7, 11, 3, padding=1, bias=False)
        self.bn_b = nn.BatchNorm2d(11)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.head_a(x), F.relu(self.bn_b(self.conv_b(x)))


TWO_OUTPUTS = Toy(
    TwoOutputs,
    gated={"bn1": 7},
    whole={"bn_b": ("an output of the network",), "head_a": ("an output of the network",)},
    answers=(
        Answer(
            open={"bn1": (0, 6)},
            keep={
                **conv("conv1", (0, 6)),
                **bn("bn1", 0, 6),
                **conv("head_a", None, (0, 6)),
                **conv("conv_b", None, (0, 6)),
            },
            cost=Cost(
                channels=2 + 5 + 11,
                volume=A * 2 + A * 5 + A * 11,
                params=3 * 2 * 9 + 2 * 2 + 2 * 5 + 5 + 2 * 11 * 9 + 2 * 11,
                macs=A * 9 * 3 * 2 + A * 2 * 5 + A * 9 * 2 * 11,
            ),
        ),
    ),
)


# -- what cannot be read, and what looks readable but is not ---------------------------------------------------
class Wrapped(nn.Module):
    """conv0 3>11 - bn0(g) - relu - conv1 11>width - bn1 - [middle] - conv2 inner>5"""

    def __init__(self, middle: nn.Module, width: int = 7, inner: int | None = None) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 11, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(11)
        self.conv1 = nn.Conv2d(11, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.middle = middle
        self.conv2 = nn.Conv2d(inner or width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(x)))
        return self.conv2(self.middle(self.bn1(self.conv1(x))))


_BN1 = (0, 3, 4)
_BN0 = (1, 5)


def _only_bn0(width: int, inner: int, macs: int = 0, params: int = 0) -> Answer:
    """The middle pins conv1's rows; its columns follow bn0."""
    return Answer(
        open={"bn0": (1, 5, 8)},
        keep={**conv("conv0", (1, 5, 8)), **bn("bn0", 1, 5, 8), **conv("conv1", None, (1, 5, 8))},
        cost=Cost(
            channels=3 + width + 5,
            volume=A * 3 + A * width + A * 5,
            params=3 * 3 * 9 + 2 * 3 + 3 * width + 2 * width + inner * 5 + 5 + params,
            macs=A * 9 * 3 * 3 + A * 3 * width + A * inner * 5 + macs,
        ),
    )


def _both(middle: Keep | None = None, cols: Sequence[int] = _BN1, inner: int = 3, params: int = 0) -> Answer:
    """bn0 and bn1 are gated; the middle has ``params`` parameters left."""
    return Answer(
        open={"bn0": _BN0, "bn1": _BN1},
        keep={
            **conv("conv0", _BN0),
            **bn("bn0", *_BN0),
            **conv("conv1", _BN1, _BN0),
            **bn("bn1", *_BN1),
            **(middle or {}),
            **conv("conv2", None, cols),
        },
        cost=Cost(
            channels=2 + 3 + 5,
            volume=A * 2 + A * 3 + A * 5,
            params=3 * 2 * 9 + 2 * 2 + 2 * 3 + 2 * 3 + params + inner * 5 + 5,
            macs=A * 9 * 3 * 2 + A * 2 * 3 + A * inner * 5,
        ),
    )


class Cumsum(nn.Module):
    """A running sum over channels: an operator without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x, 1)


CUMSUM = Toy(
    lambda: Wrapped(Cumsum()),
    gated={"bn0": 11},
    whole={"bn1": ("cumsum", "'middle'", "toys.py:")},
    answers=(_only_bn0(7, 7),),
)


class Attention(nn.Module):
    """Attention among channels, by hand: two matrix products whose sizes no mask changes."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        weights = torch.softmax(flat @ flat.transpose(1, 2), -1)
        return (weights @ flat).reshape(x.shape)


ATTENTION = Toy(
    lambda: Wrapped(Attention()),
    gated={"bn0": 11},
    whole={"bn1": ("matmul", "'middle'", "toys.py:")},
    answers=(_only_bn0(7, 7, macs=2 * 7 * 25 * 7 + 2 * 7 * 7 * 25),),
)


class LiteralSplit(nn.Module):
    """Halves of 7 channels each, whatever the width is."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [7, 7], 1)
        return a * b


LITERAL_SPLIT = Toy(
    lambda: Wrapped(LiteralSplit(), 14, 7),
    gated={"bn0": 11},
    whole={"bn1": ("split", "fixed width", "'middle'", "toys.py:")},
    answers=(_only_bn0(14, 7),),
)


class LiteralView(nn.Module):
    """A width of 14 written into the reshape."""

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        return x.view(b, 14, -1).flip(1).view(b, 14, h, w)


LITERAL_VIEW = Toy(
    lambda: Wrapped(LiteralView(), 14),
    gated={"bn0": 11},
    whole={"bn1": ("reshaped", "'middle'", "toys.py:")},
    answers=(_only_bn0(14, 14),),
)


class Unequal(nn.Module):
    """Pieces of 3 and 4 channels."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [3, 4], 1)
        return torch.cat([b, a], 1)


UNEQUAL_SPLIT = Toy(
    lambda: Wrapped(Unequal()),
    gated={"bn0": 11},
    whole={"bn1": ("split into pieces of a fixed width (3, 4)", "'middle'")},
    answers=(_only_bn0(7, 7),),
)


class Sliced(nn.Module):
    """The first 5 channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :5]


SLICED = Toy(
    lambda: Wrapped(Sliced(), 7, 5),
    gated={"bn0": 11},
    whole={"bn1": ("fixed part", "'middle'")},
    answers=(_only_bn0(7, 5),),
)


class SigmoidInForward(Wrapped):
    """A sigmoid that is no module: where it ends no gate can act."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(x)))
        return self.conv2(torch.sigmoid(self.bn1(self.conv1(x))))


SIGMOID_IN_FORWARD = Toy(
    lambda: SigmoidInForward(nn.Identity()),
    gated={"bn0": 11},
    whole={"bn1": ("not zero where it is read",)},
    answers=(_only_bn0(7, 7),),
)

LAYER_NORM = Toy(
    lambda: Wrapped(nn.LayerNorm([7, 5, 5])),
    gated={"bn0": 11, "bn1": 7},
    answers=(_both({"middle.weight": {0: _BN1}, "middle.bias": {0: _BN1}}, params=2 * 3 * 25),),
)


PRELU = Toy(
    lambda: Wrapped(nn.PReLU(7)),
    gated={"bn0": 11, "bn1": 7},
    answers=(_both({"middle.weight": {0: _BN1}}, params=3),),
)

SIGMOID = Toy(
    lambda: Wrapped(nn.Sigmoid()),
    gated={"bn0": 11, "middle": 7},  # a sigmoid of zero is one half: the gate acts on its output
    answers=(dataclasses.replace(_both(), open={"bn0": _BN0, "middle": _BN1}),),
)

PLAIN_NORM = Toy(
    lambda: Wrapped(nn.BatchNorm2d(7, affine=False)),
    gated={"bn0": 11, "middle": 7},
    answers=(
        dataclasses.replace(
            _both({"middle.running_mean": {0: _BN1}, "middle.running_var": {0: _BN1}}),
            open={"bn0": _BN0, "middle": _BN1},
        ),
    ),
)

SILU = Toy(lambda: Wrapped(nn.SiLU()), gated={"bn0": 11, "bn1": 7}, answers=(_both(),))


class PadChannels(nn.Module):
    """Two zero channels before, three behind."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 2, 3))


PAD = Toy(
    lambda: Wrapped(PadChannels(), 7, 12),
    gated={"bn0": 11, "bn1": 7},
    answers=(_both(cols=(0, 1, 2 + 0, 2 + 3, 2 + 4, 9, 10, 11), inner=8),),
)


class Gated(nn.Module):
    """
    x -+- conv_a 3>7 - bn_a(g) ------------(*)- conv2 7>5
       +- conv_b 3>7 - bn_b - sigmoid -----'
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(3, 7, 3, padding=1, bias=False)
        self.bn_a = nn.BatchNorm2d(7)
        self.conv_b = nn.Conv2d(3, 7, 1, bias=False)
        self.bn_b = nn.BatchNorm2d(7)
        self.conv2 = nn.Conv2d(7, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.bn_a(self.conv_a(x)) * torch.sigmoid(self.bn_b(self.conv_b(x))))


SIGMOID_GATED = Toy(
    Gated,
    gated={"bn_a": 7},
    whole={"bn_b": ("goes with what it is multiplied by",)},
    answers=(
        Answer(
            open={"bn_a": (2, 3, 5)},
            keep={
                **conv("conv_a", (2, 3, 5)),
                **bn("bn_a", 2, 3, 5),
                **conv("conv_b", (2, 3, 5)),
                **bn("bn_b", 2, 3, 5),
                **conv("conv2", None, (2, 3, 5)),
            },
            cost=Cost(
                channels=3 + 3 + 5,
                volume=A * 3 + A * 3 + A * 5,
                params=3 * 3 * 9 + 2 * 3 + 3 * 3 + 2 * 3 + 3 * 5 + 5,
                macs=A * 9 * 3 * 3 + A * 3 * 3 + A * 3 * 5,
            ),
        ),
    ),
)


class FunctionalConv(nn.Module):
    """A weight of one's own, used by F.conv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 3, 3, 3))
        self.bias = nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)


class Functional(nn.Module):
    """functional conv 3>7(g, but for channel 0) - relu - conv2 7>5. No module can stand in for the first."""

    def __init__(self) -> None:
        super().__init__()
        self.f = FunctionalConv()
        self.conv2 = nn.Conv2d(7, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.f(x)))


FUNCTIONAL = Toy(
    Functional,
    gated={"f": 6},
    whole={"f": ("not a plain torch.nn module", "'f'")},
    answers=(
        Answer(
            open={"f": (0, 2, 6)},
            keep={**conv("f", (0, 2, 6), bias=True), **conv("conv2", None, (0, 2, 6))},
            cost=Cost(
                channels=3 + 5,
                volume=A * 3 + A * 5,
                params=3 * 3 * 9 + 3 + 3 * 5 + 5,
                macs=A * 9 * 3 * 3 + A * 3 * 5,
            ),
        ),
    ),
)


class NoNorm(nn.Module):
    """conv1 3>7(g) - relu - maxpool - conv2 7>11(g) - relu - fc 11>5: gates on filters and biases"""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 7, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.conv2 = nn.Conv2d(7, 11, 3, padding=1)
        self.fc = nn.Linear(11, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


NO_NORM = Toy(
    NoNorm,
    gated={"conv1": 7, "conv2": 11},
    answers=(
        Answer(
            open={"conv1": (1, 6), "conv2": (0, 3, 9)},
            keep={
                **conv("conv1", (1, 6), bias=True),
                **conv("conv2", (0, 3, 9), (1, 6), bias=True),
                **conv("fc", None, (0, 3, 9)),
            },
            zero={"conv1.weight": (0, 2, 3, 4, 5), "conv1.bias": (0, 2, 3, 4, 5)},
            cost=Cost(
                channels=2 + 3 + 5,
                volume=A * 2 + A * 3 + 2 * 5,
                params=3 * 2 * 9 + 2 + 2 * 3 * 9 + 3 + 3 * 5 + 5,
                macs=A * 9 * 3 * 2 + A * 9 * 2 * 3 + 2 * 3 * 5,
            ),
        ),
    ),
)

TOYS: dict[str, Toy] = {
    "chain": CHAIN,
    "residual": RESIDUAL,
    "concat": CONCAT,
    "depthwise": DEPTHWISE,
    "squeeze_excite": SQUEEZE_EXCITE,
    "shuffle": SHUFFLE,
    "flatten": FLATTEN,
    "many_groups": MANY_GROUPS,
    "few_groups": FEW_GROUPS,
    "pre_activation": PRE_ACTIVATION,
    "called_twice": CALLED_TWICE,
    "two_outputs": TWO_OUTPUTS,
    "cumsum": CUMSUM,
    "attention": ATTENTION,
    "literal_split": LITERAL_SPLIT,
    "literal_view": LITERAL_VIEW,
    "unequal_split": UNEQUAL_SPLIT,
    "sliced": SLICED,
    "sigmoid": SIGMOID,
    "sigmoid_in_forward": SIGMOID_IN_FORWARD,
    "plain_norm": PLAIN_NORM,
    "layer_norm": LAYER_NORM,
    "prelu": PRELU,
    "silu": SILU,
    "pad": PAD,
    "sigmoid_gated": SIGMOID_GATED,
    "functional": FUNCTIONAL,
    "no_norm": NO_NORM,
}


ANSWERS = [
    pytest.param(name, answer, realisation, id=f"{name}-{i}-{realisation}")
    for name, toy in TOYS.items()
    for i, answer in enumerate(toy.answers)
    for realisation in answer.realisations
]
"""Every hand-worked answer, in every realisation that it holds for: name, answer, realisation."""

OPTIONS = [
    pytest.param(r, share, id=f"{r}-{'shared' if share else 'unshared'}")
    for r in ("plain", "indexed")
    for share in (True, False)
]
"""Realisations, with gates shared and not."""
