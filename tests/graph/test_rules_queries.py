"""Attention of language models: few heads of keys, rotary embeddings, norms of heads, scales in the forward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import conforms, corner_masks, random_mask, randomised
from rule_cases import gains, reasons
from torch import Tensor, nn

import chipnet
from chipnet import Structure

TOKENS = 5


def half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def sliced(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    n = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., n:], x[..., : x.shape[-1] // 2]), -1) * sin


def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    return x * cos + turned * sin


def partial(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    n = cos.shape[-1]
    return torch.cat([half(x[..., :n], cos, sin), x[..., n:]], -1)


ROTARY = {f.__name__: f for f in (half, sliced, interleaved, partial)}


class Rotary(nn.Module):
    """Tables that are computed from frequencies in each call."""

    def __init__(self, width: int, style: str) -> None:
        super().__init__()
        self.style = style
        self.register_buffer("frequencies", 1 / 10 ** (torch.arange(0, width, 2) / width))

    def forward(self, tokens: int) -> tuple[Tensor, Tensor]:
        places = torch.arange(tokens)[None, None, :].to(self.frequencies.dtype)
        angle = (self.frequencies[None, :, None] @ places).transpose(1, 2)
        both = (
            angle.repeat_interleave(2, -1) if self.style == "interleaved" else torch.cat((angle, angle), -1)
        )
        return both.cos()[:, None], both.sin()[:, None]


class Hand(nn.Module):
    """RMS norm as it is written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


NORMS: dict[str, Callable[[int], nn.Module]] = {"rms": nn.RMSNorm, "hand": Hand, "layer": nn.LayerNorm}
REPEATS = {
    "interleaved": lambda a, x: x.repeat_interleave(a.groups, 1),
    "expanded": lambda a, x: (
        x[:, :, None]
        .expand(x.shape[0], a.few, a.groups, x.shape[2], a.width)
        .reshape(x.shape[0], a.few * a.groups, x.shape[2], a.width)
    ),
    "broadcast": lambda a, x: x,
}
SCALES: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "size": lambda a, q, k: (q @ k.mT) * (1.0 / math.sqrt(k.size(-1))),
    "divided": lambda a, q, k: (q @ k.mT) / math.sqrt(q.shape[-1]),
    "attribute": lambda a, q, k: (q @ k.mT) * a.width**-0.5,
    "queries": lambda a, q, k: (q * q.shape[-1] ** -0.5) @ k.mT,
    "keys": lambda a, q, k: q @ (k / math.sqrt(k.shape[-1])).mT,
}  # fmt: skip


class Attention(nn.Module):
    """4 heads of 4 features, or of 8 where a part is rotated, with so ``few`` heads of keys and values."""

    def __init__(
        self, few: int = 4, repeat: str = "", rotary: str = "", norm: str = "", scale: str = ""
    ) -> None:
        super().__init__()
        self.heads, self.width = 4, 8 if rotary == "partial" else 4
        self.few, self.groups, self.repeat, self.scale = few, 4 // few, repeat, scale
        size = 4 * self.width
        self.stream, self.q, self.out = nn.Linear(3, 4), nn.Linear(4, size), nn.Linear(size, 4)
        self.k, self.v = nn.Linear(4, few * self.width), nn.Linear(4, few * self.width)
        self.head = nn.Linear(4, 2)
        self.rotate = ROTARY.get(rotary)
        self.rotary = Rotary(4, rotary) if rotary else None
        self.q_norm, self.k_norm = (
            (NORMS[norm](4), NORMS[norm](4)) if norm else (nn.Identity(), nn.Identity())
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stream(x)
        q = self.q_norm(self.q(x).view(*x.shape[:2], self.heads, self.width)).transpose(1, 2)
        k = self.k_norm(self.k(x).view(*x.shape[:2], self.few, self.width)).transpose(1, 2)
        v = self.v(x).view(*x.shape[:2], self.few, self.width).transpose(1, 2)
        if self.rotary is not None:
            cos, sin = self.rotary(x.shape[1])
            q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        if self.repeat in REPEATS:
            k, v = (REPEATS[self.repeat](self, y) for y in (k, v))
        if self.scale:
            y = SCALES[self.scale](self, q, k).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.repeat == "enabled")
        return self.head(x + self.out(y.transpose(1, 2).reshape(*x.shape[:2], self.heads * self.width)))


def features(n: int, **more: int) -> dict[str, int]:
    return {"stream": 4, "out": 4, "q": n, "k": n, "v": n} | more


SHAPE = (2, TOKENS, 3)


@pytest.mark.parametrize("repeat", ["interleaved", "expanded", "enabled", "broadcast"])
@pytest.mark.parametrize("few", [2, 1])
def test_few_heads_of_keys_and_values_lose_the_same_features(few, repeat):
    if few > 1 and repeat == "broadcast":
        pytest.skip("two heads are not broadcast to four")
    _, found = gains(lambda: Attention(few, repeat), features(4), SHAPE, norms="live")
    for small, *_ in found:
        if isinstance(small.q, nn.Linear):
            assert small.q.out_features == 4 * small.width and small.k.out_features == few * small.width


@pytest.mark.parametrize("repeat", ["interleaved", "expanded", "enabled"])
def test_heads_of_queries_go_with_their_head_of_keys(repeat):
    _, found = gains(lambda: Attention(2, repeat), {"stream": 4, "out": 4, "v": 2}, SHAPE, heads="whole")
    seen = {(small.heads, small.few) for small, *_ in found if type(small.v) is nn.Linear}
    assert seen == {(4, 2), (2, 1)}


@pytest.mark.parametrize(
    ("rotary", "scale"), [("half", ""), ("sliced", "attribute"), ("interleaved", "size"), ("half", "size")]
)
def test_rotary_embeddings_lose_features_in_pairs(rotary, scale):
    _, found = gains(lambda: Attention(rotary=rotary, scale=scale), features(2), SHAPE)
    for small, *_ in found:
        if type(small.q) is nn.Linear:
            assert small.width == 2 * len(small.rotary.frequencies)


def test_a_part_of_the_features_is_rotated():
    """Those that are come in pairs, and others one by one."""
    gains(lambda: Attention(rotary="partial"), features(6), SHAPE)


@pytest.mark.parametrize("rotary", ["half", "sliced", "interleaved", "partial"])
def test_heads_with_rotary_embeddings_go_whole(rotary):
    _, found = gains(lambda: Attention(rotary=rotary), {"stream": 4, "out": 4, "v": 4}, SHAPE, heads="whole")
    assert all(small.width == (8 if rotary == "partial" else 4) for small, *_ in found)


@pytest.mark.parametrize("rotary", ["", "half"])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_norm_of_each_head_is_scaled_in_place_of_the_queries(norm, rotary):
    """What a norm reads may be any multiple: it is the weight of the norm that makes up for fewer features."""
    n = 2 if rotary else 4
    _, found = gains(lambda: Attention(norm=norm, rotary=rotary), features(n), SHAPE)
    rows = {r.parameter for _, plan, _ in found for r in plan.rows}
    assert rows == ({"q_norm.weight", "q_norm.bias"} if norm == "layer" else {"q_norm.weight"})


@pytest.mark.parametrize("norm", ["rms", "hand", "layer"])
def test_whole_heads_keep_the_norm_of_each(norm):
    _, found = gains(lambda: Attention(norm=norm), {"stream": 4, "out": 4, "v": 4}, SHAPE, heads="whole")
    assert all(not plan.rows for _, plan, _ in found)


@pytest.mark.parametrize("scale", [*SCALES])
def test_a_root_of_the_width_in_the_forward_is_made_up_for(scale):
    _, found = gains(lambda: Attention(scale=scale), features(4), SHAPE)
    scaled = {"k"} if scale == "keys" else {"q"}
    assert {r.parameter.partition(".")[0] for _, plan, _ in found for r in plan.rows} == scaled


def test_two_layers_of_one_width_are_told_apart():
    """Both divide by the root of the same number, which is the size of two tensors."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Attention(scale="size"), Attention(scale="attribute")
            self.second.stream = nn.Linear(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    both = {f"{at}.{name}": n for at in ("first", "second") for name, n in features(4).items()}
    gains(Two, both | {"first.head": 2}, SHAPE)


def test_queries_that_something_else_reads_stay():
    class Shared(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x @ x.new_ones(3, 4))
            y = (q @ q.mT) / math.sqrt(q.shape[-1])
            return self.head(self.out(y.softmax(-1) @ q) + q.mean(-1, keepdim=True))

    s = Structure(randomised(Shared()), torch.randn(*SHAPE, dtype=torch.float64))
    assert {site.name for site in s.sites if site.free} == {"out"}
    assert "q" in {site.name for site in s.sites if site.reason}


def test_a_number_that_is_a_root_by_chance_is_none():
    """0.5 is one over the root of 4 features, and no number of the forward's was ever 4."""

    class Plain(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x) for f in (self.q, self.k, self.v))
            return self.head(self.out((0.25 * q @ k.mT).softmax(-1) @ v))

    model = Plain().double().eval()
    model.q, model.k, model.v = (nn.Linear(3, 16).double() for _ in range(3))
    s = Structure(model, torch.randn(*SHAPE, dtype=torch.float64))
    mask = torch.ones(s.gates, dtype=torch.bool)
    mask[next(site for site in s.sites if site.name == "q").gates[:8]] = False
    plan = s.plan(mask)
    assert plan.rows == ()
    difference, scale = chipnet.verify_compact(model, chipnet.compact(model, plan), plan, None)
    assert difference < 1e-12 * scale


@pytest.mark.parametrize(
    "options",
    [{"few": 2, "repeat": "expanded"}, {"rotary": "half"}, {"norm": "rms"}, {"few": 2, "repeat": "enabled"}],
)
def test_where_heads_and_features_cannot_both_go_heads_do(options):
    torch.manual_seed(0)
    model, x = randomised(Attention(**options)), torch.randn(*SHAPE, dtype=torch.float64)
    s = Structure(model, x, heads="both")
    assert {site.name: site.free for site in s.sites if site.free} == {
        "stream": 4,
        "out": 4,
        "v": options.get("few", 4),
    }
    conforms(model, x, s, [random_mask(s, 0.5), *corner_masks(s)])


def test_heads_and_features_are_counted_by_the_product_of_two_attributes():
    torch.manual_seed(0)
    model, x = randomised(Attention()), torch.randn(*SHAPE, dtype=torch.float64)
    s = Structure(model, x, heads="both")
    free = {site.name: site.free for site in s.sites if site.free}
    assert free == {"stream": 4, "out": 4, "q": 3, "k": 3, "v": 3, "v heads": 3, "v block": 1}, reasons(s)
    found = conforms(model, x, s, [random_mask(s, d) for d in (0.3, 0.5, 0.7)] + list(corner_masks(s)))
    assert len({(small.heads, small.width) for small, *_ in found}) > 2
