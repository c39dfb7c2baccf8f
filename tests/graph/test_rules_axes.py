"""Rules of operators that reduce axes, or mix what lies along one: what they leave prunable, exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rule_cases import ALL, NO, Around, Case, gains, in_batches, reasons
from torch import Tensor, nn

AXES: dict[str, Case] = {
    "max over space": (lambda x: x.max(-1)[0].max(2, keepdim=True)[0].unsqueeze(3), ALL, 12),
    "min, named": (lambda x: x.min(dim=2, keepdim=True).values, ALL, 12),
    "max of two": (lambda x: x.max(x * 2), ALL, 12),
    "min of two": (lambda x: x.min(x * 2), ALL, 12),
    "max over channels": (lambda x: x - x.max(1, keepdim=True)[0], NO, 12),
    "max of everything": (lambda x: x / (x.max() + 20), NO, 12),
    "maxout": (lambda x: x.view(x.shape[0], -1, 3, *x.shape[2:]).max(2)[0], {"a": 4, "b": 5}, 4),
    "maxout, places": (
        lambda x: x * x.unflatten(1, (-1, 3)).argmax(2).repeat_interleave(3, 1).to(x.dtype),
        {"a": 4, "b": 5},
        12,
    ),
    # detached: torch 2.11 has no derivative of it
    "aminmax": (lambda x: torch.stack(x.detach().flatten(2).aminmax(dim=2), 2)[..., None], ALL, 12),
    "argmax over space": (lambda x: x * x.argmax(3, keepdim=True).to(x.dtype), ALL, 12),
    "nanmean": (lambda x: x.nanmean((2, 3), keepdim=True), ALL, 12),
    "nansum over channels": (lambda x: x * x.abs().nansum(1, keepdim=True), ALL, 12),
    "any": (lambda x: x * (x > 0).any(3, keepdim=True), ALL, 12),
    "any over channels": (lambda x: x * (x > 1).any(1, keepdim=True), ALL, 12),
    "all": (lambda x: x * (x > -1).all(3, keepdim=True), ALL, 12),
    "all over channels": (lambda x: x * (x > -1).all(1, keepdim=True), NO, 12),
    "norm of everything": (lambda x: x / x.norm().clamp_min(0.1), ALL, 12),
    "norm over space": (lambda x: torch.linalg.norm(x, dim=(2, 3), keepdim=True), ALL, 12),
    "spectral norm": (lambda x: torch.linalg.norm(x, 2, dim=(2, 3), keepdim=True), NO, 12),
    "largest over channels": (lambda x: x / torch.linalg.norm(x, torch.inf, dim=1, keepdim=True), NO, 12),
    "cosine of channels": (lambda x: x * F.cosine_similarity(x, x.relu(), 1)[:, None], ALL, 12),
    "cosine over space": (
        lambda x: F.cosine_similarity(x.flatten(2), x.flatten(2).relu(), 2)[..., None, None],
        ALL,
        12,
    ),
    "distance": (lambda x: x * x.dist(x.relu()), ALL, 12),
    "pairwise distance": (
        lambda x: x * F.pairwise_distance(x.mean((2, 3)), x.sum((2, 3)))[:, None, None, None],
        NO,
        12,
    ),
    "var_mean": (lambda x: sum(torch.var_mean(x, (2, 3), keepdim=True)), ALL, 12),
    "std_mean": (lambda x: sum(torch.std_mean(x, 2, keepdim=True)), ALL, 12),
    "var_mean over channels": (lambda x: x * torch.var_mean(x, 1, keepdim=True)[0], NO, 12),
    "count_nonzero": (lambda x: x * x.count_nonzero((2, 3))[..., None, None], ALL, 12),
    "counted over channels": (lambda x: x * x.relu().count_nonzero(1)[:, None].to(x.dtype), ALL, 12),
    "topk over space": (lambda x: x.topk(2, 2)[0], ALL, 12),
    "topk over channels": (lambda x: x.topk(7, 1)[0], NO, 7),
    "largest, in order": (lambda x: x.gather(2, x.topk(2, 2)[1].sort(2)[0]), ALL, 12),
    "taken at the largest": (lambda x: x.abs().take_along_dim(x.argmax(2, keepdim=True), 2), ALL, 12),
    "taken at another's largest": (lambda x: x.gather(2, x.flip(1).topk(2, 2)[1]), {"a": 6, "b": 5}, 12),
    "places of topk": (lambda x: x[:, :, :2] * x.topk(2, 2)[1].to(x.dtype), ALL, 12),
    "sort": (lambda x: x.sort(2)[0] + x.sort(dim=3, stable=True, descending=True)[0], ALL, 12),
    "sort over channels": (lambda x: x.sort(1)[0], NO, 12),
    "argsort": (lambda x: x * x.argsort(2).to(x.dtype), ALL, 12),
    "median": (lambda x: x.median(2, keepdim=True)[0] + x.nanmedian(2, keepdim=True)[0], ALL, 12),
    "median of everything": (lambda x: x - x.median(), NO, 12),
    "quantile": (lambda x: x.quantile(0.3, 2, keepdim=True), ALL, 12),
    "quantiles": (
        lambda x: x.quantile(torch.tensor([0.3, 0.9], dtype=x.dtype), 2).sum(0)[:, :, None],
        ALL,
        12,
    ),
    "quantile over channels": (lambda x: x * x.quantile(0.3, 1, keepdim=True), NO, 12),
    "quantile of everything": (lambda x: x * x.quantile(0.3), NO, 12),
    "kthvalue": (lambda x: x.kthvalue(2, 2, keepdim=True)[0], ALL, 12),
    "mode": (lambda x: x.mode(2, keepdim=True)[0], ALL, 12),
    "cummax": (lambda x: x.cummax(2)[0] + x.cummin(3)[0], ALL, 12),
    "cumprod": (lambda x: x.cumprod(2), ALL, 12),
    "logcumsumexp": (lambda x: x * x.logcumsumexp(2), ALL, 12),
    "log_softmax": (lambda x: x * F.log_softmax(x, 3), ALL, 12),
    "diff": (lambda x: x.diff(dim=2), ALL, 12),
    "diff over channels": (lambda x: x.diff(dim=1), NO, 11),
    "fft": (lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2, s=x.shape[-2:]), ALL, 12),
    "fft, spectrum": (lambda x: torch.fft.fftn(x, dim=(2, 3)).abs(), ALL, 12),
    "fft over a row": (lambda x: torch.view_as_real(torch.fft.rfft(x, dim=3)).flatten(3), ALL, 12),
    "fft over channels": (lambda x: torch.fft.fft(x, dim=1).real, NO, 12),
    "fft over everything": (lambda x: torch.fft.fftn(x).real, NO, 12),
}


@pytest.mark.parametrize(("f", "gates", "c"), in_batches(AXES))
def test_what_an_operator_along_axes_leaves_prunable(f, gates, c):
    gains(lambda: Around(f, c), gates)


class Cosine(nn.Module):
    """A cosine classifier: features and rows of a weight, of length one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)
        self.weight, self.scale = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x)))).mean((2, 3))
        return self.scale * F.linear(F.normalize(x), F.normalize(self.weight))


def test_a_weight_whose_rows_are_normalised_keeps_its_columns_with_the_reason():
    """Less of a row is a row of another length: the columns that are left would change."""
    s, _ = gains(Cosine, {"a": 8})
    assert "a weight that is computed" in reasons(s)


class Equalised(nn.Module):
    """A layer that multiplies its weight and bias by constants as it runs (equalised learning rate)."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.weight, self.bias, self.gain = (
            nn.Parameter(torch.randn(o, i)),
            nn.Parameter(torch.randn(o)),
            i**-0.5,
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias / 2)


def test_a_weight_times_a_number_is_that_weight():
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            Equalised(8, 6),
            nn.ReLU(),
            Equalised(6, 3),
        )

    gains(build, {"0": 7, "3": 5})
