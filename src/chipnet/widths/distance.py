"""How far are the outputs of a network from those of the dense one?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from chipnet.program.inputs import Inputs
from chipnet.repair.layers import exact

Distance = Literal["error", "kl"]
"""``error``: the squared error of every output as a part of its square, summed over outputs. ``kl``: the mean
Kullback-Leibler divergence of classes, for outputs that are logits with classes along axis 1."""


@torch.no_grad()
def between(
    dense: nn.Module, others: Sequence[nn.Module], batches: Sequence[Inputs], distance: Distance = "error"
) -> list[float]:
    """The distance of each network's outputs from the dense one's, all in eval mode; infinity where they are not
    finite or of other shapes."""
    if not others:
        return []
    distances = [torch.zeros(0, dtype=torch.float64)] * len(others)
    size = torch.zeros(0, dtype=torch.float64)
    for batch in batches:
        wanted = _floats(batch, dense)
        size = _plus(size, [_size(w, distance) for w in wanted])
        for i, other in enumerate(others):
            distances[i] = _plus(distances[i], _distances(wanted, _floats(batch, other), distance))
    size = size.clamp(min=torch.finfo(torch.float64).tiny)
    return [float(torch.nan_to_num(a / size, nan=torch.inf, posinf=torch.inf).sum()) for a in distances]


def _floats(batch: Inputs, model: nn.Module) -> list[Tensor]:
    found = [torch.view_as_real(x) if x.is_complex() else x for x in batch.read(model)]
    return [exact(x) for x in found if x.is_floating_point()]


def _plus(sums: Tensor, more: Sequence[Tensor | float]) -> Tensor:
    new = torch.tensor([float(m) for m in more], dtype=torch.float64)
    return new if not len(sums) else sums + new


def _size(x: Tensor, distance: Distance) -> float:
    return float(len(x)) if _logits(x, distance) else float(x.square().sum())


def _distances(wanted: Sequence[Tensor], given: Sequence[Tensor], distance: Distance) -> list[float]:
    if [x.shape for x in wanted] != [x.shape for x in given]:
        return [float("inf")] * len(wanted)
    return [_one(x, y, distance) for x, y in zip(wanted, given, strict=True)]


def _one(wanted: Tensor, given: Tensor, distance: Distance) -> float:
    if not _logits(wanted, distance):
        return float((wanted - given).square().sum())
    positions = wanted[0, 0].numel()
    log = wanted.log_softmax(1)
    return float((log.exp() * (log - given.log_softmax(1))).sum()) / max(positions, 1)


def _logits(x: Tensor, distance: Distance) -> bool:
    return distance == "kl" and x.dim() > 1
