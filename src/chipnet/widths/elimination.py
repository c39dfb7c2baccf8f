"""Which channels of a site are needed least, if what reads them may be refitted? They are taken away one by one.

Source: the optimal brain surgeon (Hassibi and Stork 1992) for whole channels, as in ZipLM (Kurtic et al. 2023,
arXiv 2302.04089): the error of taking columns ``B`` from a least-squares layer is ``tr(Wᴮᵀ ((H⁻¹)ᴮᴮ)⁻¹ Wᴮ)`` after
the other columns have made up for it, and inverse and weight are updated in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chipnet.widths.reads import Reads

AT_ONCE = 64
"""One channel goes at a time while so many are left; of more, more: sites of thousands take no hours."""


class _Reader:
    """A layer that reads a site, while channels go.

    Args:
        reads: what it reads.
        gone: ``[gates, channels]``, which of its input channels vanish with each gate.
    """

    def __init__(self, reads: Reads, gone: Tensor) -> None:
        self.reads, self.gone = reads, gone.to(reads.mean.device, copy=True)
        self.columns = [self._columns(row) for row in self.gone]
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(reads.regular))
        self.weight = reads.weight.clone()
        self.scale = max(reads.variance, torch.finfo(torch.float64).tiny)
        self.left = torch.ones(len(self.weight), dtype=torch.bool, device=self.weight.device)
        self.place = torch.arange(len(self.weight), device=self.weight.device)
        """The place of each column in ``inverse`` and ``weight``, which get smaller from time to time."""

    def _columns(self, channels: Tensor) -> Tensor:
        return self.reads.columns(torch.nonzero(channels).flatten())

    def errors(self, gates: Sequence[int]) -> Tensor:
        """What each gate's end would cost, as a part of the variance of the outputs: ``[gates]``."""
        out = torch.zeros(len(gates), dtype=torch.float64)
        sizes = torch.tensor([len(self.columns[g]) for g in gates])
        for size in sizes.unique().tolist():
            if size:
                mine = torch.nonzero(sizes == size).flatten()
                columns = self.place[torch.stack([self.columns[gates[i]] for i in mine.tolist()])]
                block, weight = self.inverse[columns[:, :, None], columns[:, None, :]], self.weight[columns]
                out[mine] = ((weight * torch.linalg.solve(block, weight)).sum((1, 2)) / self.scale).cpu()
        return out

    def drop(self, gates: Sequence[int]) -> None:
        """Take gates away; the columns that are left make up for theirs."""
        channels = self.gone[list(gates)].any(0)
        columns = self.place[self._columns(channels)]
        for g in torch.nonzero((self.gone & channels).any(1)).flatten().tolist():  # theirs no more
            self.gone[g] &= ~channels
            self.columns[g] = self._columns(self.gone[g])
        if len(columns):
            across = self.inverse[:, columns]
            solved = torch.linalg.solve(across[columns], torch.cat([self.weight[columns], across.T], 1))
            outputs = self.weight.shape[1]
            self.weight.addmm_(across, solved[:, :outputs], alpha=-1)
            self.inverse.addmm_(across, solved[:, outputs:], alpha=-1)
            self.left[columns] = False
            self._tidy()

    def _tidy(self) -> None:
        """Forget the columns that are gone, where they are more than a quarter."""
        if int(self.left.sum()) < 0.75 * len(self.left):
            self.weight, self.inverse = self.weight[self.left], self.inverse[self.left][:, self.left]
            self.place = (self.left.cumsum(0) - 1)[self.place]
            self.left = self.left[self.left]


def eliminate(readers: Sequence[tuple[Reads, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """The order in which a site's gates are needed.

    Args:
        readers: layers that read the site, each with ``[gates, channels]``: which of its input channels vanish with
            each gate.
        count: of gates.

    Returns:
        Gates from the one that is needed most to the one that is needed least, ``[count]``; and for every number of
        gates that are left, from none to all, the summed errors of the layers that read them, as parts of the
        variances of their outputs, ``[count + 1]``.
    """
    states = [_Reader(reads, gone) for reads, gone in readers]
    left, gone, errors = list(range(count)), [], [0.0]
    while left:
        each = sum((state.errors(left) for state in states), torch.zeros(len(left), dtype=torch.float64))
        many = max(1, len(left) // AT_ONCE)
        cheapest = torch.argsort(each, stable=True)[:many].tolist()
        for i in cheapest:
            gone.append(left[i])
            errors.append(errors[-1] + max(float(each[i]), 0.0))
        for state in states:
            state.drop([left[i] for i in cheapest])
        left = [g for i, g in enumerate(left) if i not in set(cheapest)]
    return torch.tensor(gone[::-1], dtype=torch.int64), torch.tensor(errors[::-1], dtype=torch.float64)
