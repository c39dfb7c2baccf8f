"""Rules of operators over space, and of those that move data: what they leave prunable, exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from rule_cases import ALL, NO, Around, Case, gains, in_batches, reasons
from torch import Tensor, nn

ONE = {"a": 11, "b": 5}  # one channel stays: the operator refuses to have none


def sampled(x: Tensor) -> Tensor:
    theta = torch.eye(2, 3, dtype=x.dtype).mul(0.7).expand(x.shape[0], 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def sampled_in_3d(x: Tensor) -> Tensor:
    theta = torch.eye(3, 4, dtype=x.dtype).mul(0.7).expand(x.shape[0], 3, 4)
    x = x[:, :, None].repeat(1, 1, 2, 1, 1)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=True), align_corners=True)[
        :, :, 1
    ]


def pooled(x: Tensor) -> Tensor:
    return torchvision.ops.roi_align(x, [torch.tensor([[0.0, 1, 4, 5]], dtype=x.dtype)] * 2, 3)


def unpooled(x: Tensor) -> Tensor:
    y, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y * 2, places, 2)


SPACE: dict[str, Case] = {
    "sampler": (sampled, ALL, 12),
    "sampler in 3d": (sampled_in_3d, ALL, 12),
    "regions": (pooled, ALL, 12),
    "unpooled": (unpooled, ALL, 12),
    "adaptive places": (
        lambda x: x[..., :3, :3] * F.adaptive_max_pool2d(x, 3, return_indices=True)[1],
        ALL,
        12,
    ),
    "lp_pool": (lambda x: F.lp_pool2d(x.abs() + 0 * x, 2, 2), ONE, 12),
    "unfold, channels x window": (lambda x: F.unfold(x, 2).unsqueeze(3), ALL, 48),
    "fold": (lambda x: F.fold(F.unfold(x, 2), list(x.shape[2:]), 2), ALL, 12),
    "fold of other channels": (lambda x: F.fold(x.flatten(2)[..., :25], [6, 6], 2), {"a": 3, "b": 5}, 3),
    "rot90": (lambda x: x.rot90(1, (2, 3)), ALL, 12),
    "rotated into channels": (lambda x: x.rot90(1, (1, 2)).rot90(-1, (1, 2)), ALL, 12),
    "tile": (lambda x: x.tile(1, 1, 2, 1), ALL, 12),
    "tiled channels": (lambda x: x.tile((2, 1, 1)), ALL, 24),
    "flip": (lambda x: x.flip(2), ALL, 12),
    "flipped channels": (lambda x: torch.cat([x.flip(1), x], 1), ALL, 24),
    "roll": (lambda x: x.roll((1, 2), (2, 3)), ALL, 12),
    "rolled channels": (lambda x: x.roll(1, 1), NO, 12),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 3), {"a": 4, "b": 5}, 12),
    "reflected": (lambda x: F.pad(x.flatten(2), (1, 1), "reflect")[..., None], ALL, 12),
    "reflected in 3d": (
        lambda x: F.pad(x.unsqueeze(2).repeat(1, 1, 2, 1, 1), (1,) * 6, "reflect")[:, :, 0],
        ALL,
        12,
    ),
    "replicated": (lambda x: torch.ops.aten.replication_pad1d(x.flatten(2), [1, 2])[..., None], ALL, 12),
    "circular": (lambda x: F.pad(x, (1, 1, 1, 1), "circular"), ALL, 12),
    "circular channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), "circular"), NO, 14),
    "padded batch": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 0, 0, 1))[1:], ALL, 12),
    "shifted padding": (lambda x: F.pad(x, (1, 1), value=1.0), NO, 12),
    "repeated positions": (lambda x: x.repeat_interleave(2, dim=2), ALL, 12),
    "repeated as a tensor says": (
        lambda x: x.repeat_interleave(torch.tensor([1, 2, 1, 1, 1, 1]), 2, output_size=7),
        ALL,
        12,
    ),
    "channels repeated": (lambda x: x.repeat_interleave(2, 1), ALL, 24),
    "channels repeated as a tensor says": (
        lambda x: x.repeat_interleave(torch.tensor([1, 2] * 6), 1, output_size=18),
        NO,
        18,
    ),
    "triangle": (lambda x: x.triu() + x.tril(-1), ALL, 12),
    "diagonal": (lambda x: x.diagonal(dim1=2, dim2=3).unsqueeze(3), ALL, 12),
    "shifted spectrum": (lambda x: torch.fft.fftshift(torch.fft.fft2(x), (2, 3)).real, ALL, 12),
    "neighbours in channels": (lambda x: F.local_response_norm(x, 3), NO, 12),
}


@pytest.mark.parametrize(("f", "gates", "c"), in_batches(SPACE))
def test_what_an_operator_over_space_leaves_prunable(f, gates, c):
    gains(lambda: Around(f, c), gates)


class Transformed(nn.Module):
    """A spatial transformer: a localisation network gives the grid."""

    def __init__(self) -> None:
        super().__init__()
        self.where, self.theta = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, 6)
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta(F.relu(self.where(x)).mean((2, 3))).view(-1, 2, 3)
        y = F.relu(self.a(x))
        y = F.grid_sample(y, F.affine_grid(theta, list(y.shape), align_corners=False), align_corners=False)
        return self.fc(F.relu(self.b(y)).mean((2, 3)))


def test_a_spatial_transformers_grid_is_needed_and_kept():
    s, _ = gains(Transformed, {"where": 6, "a": 8, "b": 5})
    assert "the grid of a sampler" in reasons(s)


class SegNet(nn.Module):
    """Pooling places travel from the encoder to the decoder, whose channels are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.an, self.b, self.bn = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 8, 1),
            nn.BatchNorm2d(8),
        )
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.c, self.d, self.e = nn.Conv2d(8, 7, 1), nn.Conv2d(7, 6, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, places = self.pool(F.relu(self.an(self.a(x))))
        x = F.relu(self.c(F.relu(self.bn(self.b(x)))))
        return self.e(self.unpool(F.relu(self.d(x)), places))


def test_pooling_places_tie_encoder_and_decoder():
    _, found = gains(SegNet, {"an": 6, "bn": 8, "c": 7, "d": 6})
    assert all(small.a.out_channels == small.d.out_channels for small, *_ in found)


class Deformed(nn.Module):
    """A deformable convolution: offsets and mask are kept whole."""

    def __init__(self, groups: int = 1, offsets: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.a, self.offset, self.mask = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 18 * offsets, 3, padding=1),
            nn.Conv2d(8, 9 * offsets, 1),
        )
        self.b = torchvision.ops.DeformConv2d(8, 6, 3, padding=1, groups=groups, bias=bias)
        self.norm, self.fc = nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        y = self.b(x, self.offset(x), self.mask(x).sigmoid())
        return self.fc(F.relu(self.norm(y)).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "gates"),
    [
        (Deformed, {"a": 7, "norm": 5}),
        (lambda: Deformed(bias=False), {"a": 7, "norm": 5}),
        (lambda: Deformed(groups=2), {"a": 3, "norm": 2}),
        (lambda: Deformed(offsets=2), {"a": 3, "norm": 5}),
    ],
)
def test_a_deformable_convolution_is_pruned_as_a_convolution(build, gates):
    s, found = gains(build, gates)
    assert "where a deformable convolution reads" in reasons(s)
    for small, *_ in found:
        assert small.b.in_channels == small.a.out_channels
        assert small.b.out_channels == small.norm.num_features
