"""What do layers of the dense network read? Means and covariances, from one pass over the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chipnet.program.inputs import Inputs
from chipnet.repair.layers import LayerProduct
from chipnet.repair.sums import Sums, ridged
from chipnet.repair.watch import LayerCall, each_call

RIDGE = 1e-2
"""Added to the diagonal of covariances, in mean variances: inputs that hardly vary call for no large weights."""


@dataclass(frozen=True, eq=False)
class Reads:
    """What one ungrouped layer reads, over all images and positions.

    Attributes:
        layer: how its weight is used.
        weight: the weight, ``[columns, outputs]`` in float64.
        mean: ``[columns]``.
        covariance: ``[columns, columns]``; about zero where there is no place for an offset.
        rounding: what may be wrong in an eigenvalue of the covariance.
        place: where an offset goes: the name of the bias, or of the running mean of the batch norm that alone reads
            the output; None: nowhere.
        sign: of the offset there.
    """

    layer: LayerProduct
    weight: Tensor
    mean: Tensor
    covariance: Tensor
    rounding: Tensor
    place: str | None
    sign: int

    @property
    def regular(self) -> Tensor:
        """The covariance with the ridge."""
        return ridged(self.covariance, RIDGE, self.rounding)[0]

    @property
    def variance(self) -> float:
        """The variance of all outputs together."""
        return float(((self.covariance @ self.weight) * self.weight).sum())

    def columns(self, channels: Tensor) -> Tensor:
        """The columns of the matrix that belong to some channels of the input."""
        each = self.layer.columns // self.inputs
        return (channels[:, None] * each + torch.arange(each, device=channels.device)).flatten()

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return self.layer.shape[0 if self.layer.transposed else 1]

    def narrowed(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        """The weight ``[columns of the channels, outputs]`` that makes the best of some channels, and the offset
        ``[outputs]`` that goes with it."""
        columns = self.columns(channels)
        left = self.regular[columns]
        weight = torch.cholesky_solve(left @ self.weight, torch.linalg.cholesky(left[:, columns]))
        return weight, self.mean @ self.weight - self.mean[columns] @ weight


def layer_reads(
    model: nn.Module, batches: Sequence[Inputs], wanted: Mapping[str, LayerCall]
) -> dict[str, Reads]:
    """What layers read, by the names of their weights; ``wanted`` has a call of each. Sums are float64:
    ``8 columns²`` bytes a layer."""
    sums: dict[str, Sums] = {}

    def seen(call: LayerCall) -> None:
        if call.layer is not None and call.name in wanted:
            for x, _ in call.layer.pairs(call.given["input"], call.output):
                mine = Sums.of(x, x[..., :0])
                sums[call.name] = sums[call.name] + mine if call.name in sums else mine

    for batch in batches:
        each_call(model, batch, seen)
    weights = dict(model.named_parameters())
    return {name: _read(wanted[name], found.check(name), weights[name]) for name, found in sums.items()}


def _read(call: LayerCall, sums: Sums, weight: Tensor) -> Reads:
    norm = call.norm if call.normed else None
    means = sums.centred(call.bias is not None or norm is not None)
    assert call.layer is not None
    return Reads(
        call.layer,
        call.layer.matrix(weight)[0],
        means.x[0],
        means.xx[0],
        means.rounding[0],
        call.bias or (norm.name if norm is not None else None),
        1 if call.bias is not None else -1,
    )


def usable(call: LayerCall, most: int) -> bool:
    """May a layer's inputs be summed up: is it ungrouped, with at most ``most`` columns?"""
    return call.layer is not None and call.layer.groups == 1 and call.layer.columns <= most
