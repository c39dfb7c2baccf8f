"""Costs: four integers that count what physically exists.

=========  ==========================================================================================
channels   output channels of every convolution and linear layer (a layer used twice counts once)
volume     output elements of every call of a convolution or linear layer, for the example inputs
params     ``sum(p.numel() for p in model.parameters())``
macs       multiply-accumulates as ``torch.utils.flop_counter`` counts them (2 FLOPs each), for the example inputs
=========  ==========================================================================================

Each is a sum of products ``coefficient * |rows| * |columns| * alive`` of counts of channels that exist. There is
one formula, given to the caller as one function of gate values: soft values in, a differentiable relaxation
out; zeros and ones in, the integers of the network that is shipped out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from chipnet._budget import KINDS
from chipnet._formula import FALSE, TRUE, Program
from chipnet._graph import Layer
from chipnet._liveness import Ids, Liveness


@dataclass(frozen=True)
class Cost:
    """Costs of one network; what each counts is in this module's table."""

    channels: int
    volume: int
    params: int
    macs: int

    def __getitem__(self, kind: str) -> int:
        return int(getattr(self, kind))

    def to_json(self) -> dict[str, int]:
        return {k: self[k] for k in KINDS}


class CostModel:
    """Cost of a network as a function of its gates.

    Args:
        liveness: formulas of the network.
        model: the dense network (for parameters that no channel owns).
    """

    def __init__(self, liveness: Liveness, model: nn.Module) -> None:
        self._counts: dict[tuple[tuple[int, int], ...], int] = {}
        self._live = liveness
        terms: Counter[tuple[int, tuple[int, ...]]] = Counter()
        g = liveness.graph
        alive_of = {name: liveness.alive(facts) for name, facts in g.owners.items()}

        # Surgery replaces a module when all of its calls are dead; what is no module runs on.
        module_of = {fact: name for name, facts in g.owners.items() for fact in facts}

        def runs(layer: Layer) -> tuple[int, int]:
            if layer.fact not in module_of:
                return 0, 0
            reads = liveness.formulas.any(liveness.present(layer.cols).tolist())
            return self._alive(alive_of[module_of[layer.fact]]), self._alive(reads)

        for layer in g.layers:
            works, reads = runs(layer)
            rows, cols = self._count(liveness.present(layer.rows)), self._count(liveness.present(layer.cols))
            if layer.macs_per:
                terms[3, (works, rows, cols)] += layer.macs_per
            terms[1, (works, reads, rows)] += layer.area
        for layer in {layer.weight: layer for layer in g.layers}.values():
            terms[0, (*runs(layer), self._count(liveness.present(layer.rows)))] += 1
        for name, p in model.named_parameters():
            owner = name.rpartition(".")[0]
            factors = [self._alive(alive_of[owner])] if owner in alive_of else []
            fixed = p.numel()
            for axis, slots in g.axes.get(name, {}).items():
                factors.append(self._count(liveness.present(slots)))
                fixed //= p.shape[axis]
            terms[2, tuple(factors)] += fixed
        terms[3, ()] += g.fixed_macs

        # Counts as one sparse product: count[k] = constant[k] + sum of multiplicity * formula.
        index: dict[int, int] = {}
        which, weight = [], []
        constant = np.zeros(len(self._counts) + 1)
        constant[0] = 1.0
        for key, k in self._counts.items():
            for formula, times in key:
                if formula == TRUE:
                    constant[k] += times
                elif formula != FALSE:
                    index.setdefault(formula, len(index))
                    which.append(k)
                    weight.append((index[formula], times))
        self.program: Program = liveness.formulas.compile(list(index), liveness.gates)
        self._source = torch.tensor([i for i, _ in weight], dtype=torch.int64)
        self._times = torch.tensor([w for _, w in weight], dtype=torch.float64)
        self._which = torch.tensor(which, dtype=torch.int64)
        self._constant = torch.tensor(constant, dtype=torch.float64)
        products = sorted(terms.items())
        wide = max((len(f) for (_, f), _ in products), default=1)
        padded = [list(f) + [0] * (wide - len(f)) for (_, f), _ in products]
        self._factors = torch.tensor(padded, dtype=torch.int64).reshape(len(padded), wide)
        self._kind = torch.tensor([k for (k, _), _ in products], dtype=torch.int64)
        self._coefficient = torch.tensor([c for _, c in products], dtype=torch.float64)
        ones = torch.ones(liveness.gates, dtype=torch.float64)
        self.dense = self.exact(ones)

    def _count(self, formulas: Ids) -> int:
        return self._key(Counter(formulas.tolist()))

    def _alive(self, formula: int) -> int:
        return 0 if formula == TRUE else self._key(Counter([formula]))

    def _key(self, counter: Counter[int]) -> int:
        return self._counts.setdefault(tuple(sorted(counter.items())), len(self._counts) + 1)

    def __call__(self, gates: Tensor) -> Tensor:
        """Costs ``[..., 4]`` in the order of ``KINDS``, for gate values ``[..., gates]`` in [0, 1]."""
        if self._source.device != gates.device:
            for name in ("_source", "_times", "_which", "_constant", "_factors", "_kind", "_coefficient"):
                setattr(self, name, getattr(self, name).to(gates.device))
        dtype = gates.dtype
        values = self.program(gates)
        picked = values.index_select(-1, self._source) * self._times.to(dtype)
        base = self._constant.to(dtype).expand(*gates.shape[:-1], -1)
        counts = base.index_add(-1, self._which, picked)
        factors = counts.index_select(-1, self._factors.flatten()).unflatten(-1, self._factors.shape)
        product = factors.prod(-1) * self._coefficient.to(dtype)
        return product.new_zeros(*gates.shape[:-1], len(KINDS)).index_add(-1, self._kind, product)

    @torch.no_grad()
    def exact(self, mask: Tensor) -> Cost:
        """Integer costs of the network that Boolean ``mask`` ``[gates]`` leaves."""
        return Cost(*(round(v) for v in self(mask.double()).tolist()))
