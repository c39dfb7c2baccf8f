"""Modules that are norms over channels are known by what they compute, however they are written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rule_cases import gains
from torch import Tensor, nn

from chipnet import Structure
from chipnet.graph.facts import LiveNorm


class Affine(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.shape, self.eps = (width,), 0.1


class Functional(Affine):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.shape, self.weight, self.bias, 0.1).permute(
            0, 3, 1, 2
        )


class Between(nn.LayerNorm):
    """As timm and torchvision write it."""

    def forward(self, input: Tensor) -> Tensor:
        x = input.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class OfOneGroup(nn.GroupNorm):
    """As timm's pooling networks have it: over all of an example."""

    def __init__(self, width: int) -> None:
        super().__init__(1, width, eps=0.1)

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class OfExamples(Affine):
    """The same by hand, with a weight for each channel."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean((1, 2, 3), keepdim=True)
        x = x * torch.rsqrt(x.square().mean((1, 2, 3), keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ByHand(Affine):
    """As ConvNeXt writes it."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Weighted(nn.Module):
    def __init__(self, width: int, eps: float = 0.1) -> None:
        super().__init__()
        self.scale, self.small = nn.Parameter(torch.rand(width)), eps

    def normed(self, x: Tensor, eps: float) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + eps)


class Root(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return self.scale[:, None, None] * self.normed(x, self.small)


class RootOfLiteral(Weighted):
    def forward(self, x: Tensor) -> Tensor:
        return self.scale[:, None, None] * self.normed(x, 0.2)


class OnePlus(Weighted):
    """As Gemma has it."""

    def forward(self, x: Tensor) -> Tensor:
        return (1 + self.scale[:, None, None]) * self.normed(x, self.small)


class Unweighted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.movedim(1, -1), (x.shape[1],), eps=0.1).movedim(-1, 1)


class Net(nn.Module):
    """a 3>9 - norm - b 9>9 - add - norm again? - relu - c 9>6 - fc"""

    def __init__(self, norm) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 9, 1), norm
        self.b, self.c, self.fc = nn.Conv2d(9, 9, 1), nn.Conv2d(9, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.b(self.norm(x))
        return self.fc(F.relu(self.c(F.relu(x))).mean((2, 3)))


SPELLINGS = {
    "functional": (
        lambda: Functional(9),
        8,
        "live",
    ),  # nothing stands in for a class of the user's: one stays
    "between": (lambda: Between(9), 9, "live"),
    "one-group": (lambda: OfOneGroup(9), 9, "live"),
    "examples": (lambda: OfExamples(9), 8, "live"),
    "by-hand": (lambda: ByHand(9), 8, "live"),
    "root": (lambda: Root(9), 8, {"scale": 0.5, "small": 1.0}),
    "root-of-literal": (lambda: RootOfLiteral(9), 8, "live"),
    "one-plus": (lambda: OnePlus(9), 8, "live"),
    "unweighted": (Unweighted, 8, "live"),
}


@pytest.mark.parametrize(("build", "free", "how"), SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_is_pruned_exactly(build, free, how):
    s, _ = gains(lambda: Net(build()), {"a": free, "b": free, "c": 6})
    if how == "live":
        assert s.graph.live.keys() == {"norm"} and not s.graph.rescaled
    else:
        assert s.graph.rescaled["norm"].numbers == how and not s.graph.live


@pytest.mark.parametrize("build", [Between, OfOneGroup], ids=["between", "one-group"])
def test_images_as_wide_and_high_as_a_norm_has_channels(build):
    """Any of three axes could be that of channels: the norm runs on one only."""
    gains(lambda: Net(build(9)), {"a": 9, "b": 9, "c": 6}, (2, 3, 9, 9))


class Deviation(Affine):
    """Divides by the root plus eps, not by the root of the sum."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        x = x / (x.pow(2).mean(1, keepdim=True).sqrt() + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Unbiased(Affine):
    def forward(self, x: Tensor) -> Tensor:
        x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Clipped(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1, 1)


@pytest.mark.parametrize("build", [Deviation, Unbiased], ids=["root-plus-eps", "unbiased"])
def test_what_only_looks_like_a_norm_is_kept_whole(build):
    gains(lambda: Net(build(9)), {"c": 6})


def test_a_norm_that_does_more_is_kept_whole():
    s = Structure(Net(Clipped(9)), torch.randn(1, 3, 4, 4))
    assert not s.graph.live
    assert {site.name for site in s.sites if site.free} == {"c"}


class OnlyInEval(ByHand):
    """As SLAB replaces layer norm in training."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else super().forward(x)


class Dropping(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.1, self.training))


@pytest.mark.parametrize("build", [OnlyInEval, Dropping])
def test_a_norm_in_eval_mode_only_is_kept_whole_where_the_network_is_random_in_training(build):
    """No trial of a pruned copy compares what is random."""
    s = Structure(nn.Sequential(Net(build(9)), nn.Dropout()), torch.randn(1, 3, 4, 4))
    assert not s.graph.live
    assert {site.name for site in s.sites if site.free} == {"0.c"}


class Inside(nn.Module):
    """A norm among other things."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 9), nn.Linear(9, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.layer_norm(self.a(x), (9,)))))


def test_a_norm_in_a_larger_forward_says_why_it_stays():
    s = Structure(Inside(), torch.randn(2, 3))
    reasons = {site.name: site.reason for site in s.sites}
    assert "a norm over channels that is no module of its own" in reasons["a"]
    assert reasons["b"] == ""


class Twice(nn.Module):
    """One norm without parameters, called on two streams: one mask."""

    def __init__(self, second: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(9, elementwise_affine=False) if second == 9 else nn.GroupNorm(1, 9)
        self.a, self.b, self.fc = nn.Conv2d(3, 9, 1), nn.Conv2d(3, second, 1), nn.Linear(9 + second, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self.norm(f(x).movedim(1, -1)).movedim(-1, 1) for f in (self.a, self.b))
        return self.fc(torch.cat([a, b], 1).mean((2, 3)))


def test_a_norm_called_on_two_tensors_ties_them():
    s, _ = gains(lambda: Twice(9), {"a": 9, "b": 9})
    sites = {site.name: site.gates.tolist() for site in s.sites}
    assert len(s.graph.live) == 1 and isinstance(s.graph.live["norm"][0], LiveNorm)
    assert sites["a"] == sites["b"]
