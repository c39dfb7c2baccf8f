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

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from chipnet.analysis.formula import FALSE, TRUE, Program
from chipnet.analysis.kinds import KINDS, LATENCY
from chipnet.analysis.liveness import Ids, Liveness
from chipnet.analysis.vectors import read_mask
from chipnet.graph.channels import Layer, is_within

if TYPE_CHECKING:
    from chipnet.timing.tables import LatencyModel


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


def _holders(model: nn.Module) -> dict[str, set[str]]:
    """Parameter -> the modules that hold it (by the first of their names)."""
    first: dict[int, str] = {}
    holders: dict[str, set[str]] = {}
    names: dict[int, str] = {id(p): n for n, p in model.named_parameters()}
    for path, module in model.named_modules(remove_duplicate=False):
        known = first.setdefault(id(module), path)
        for p in module._parameters.values():
            if p is not None:
                holders.setdefault(names[id(p)], set()).add(known)
    return holders


class CostModel:
    """Cost of a network as a function of its gates.

    Args:
        liveness: formulas of the network.
        model: the dense network (for parameters that no channel owns).
    """

    def __init__(self, liveness: Liveness, model: nn.Module) -> None:
        self._counts: dict[tuple[tuple[int, int], ...], int] = {}
        self._live = liveness
        self.calls: list[tuple[Layer, int, int, int]] = []
        """Every call of a layer, with the indices of its counts: is it alive, rows, columns."""
        self.latency: LatencyModel | None = None
        """A fifth cost, in nanoseconds, where someone asks for it (`Structure.time`)."""
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
            self.calls.append((layer, works, rows, cols))
        for product in g.products:
            terms[3, (self._count(liveness.present(product.slots)),)] += product.macs_per
        for layer in {layer.weight: layer for layer in g.layers}.values():
            terms[0, (*runs(layer), self._count(liveness.present(layer.rows)))] += 1
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        # A frozen layer has its computed weight and its bias, whatever the weight was computed from.
        inside = {n: f for f in g.frozen for n in shapes if is_within(n, f)}
        kept = {n: v for n, v in shapes.items() if n not in inside or n == f"{inside[n]}.bias"}
        frozen = {f"{f.module}.weight": f.shape for f in g.frozen.values()}
        holders = _holders(model)
        for name, shape in {**kept, **frozen}.items():
            owners = holders.get(name, {name.rpartition(".")[0]})
            factors = []
            if all(o in alive_of for o in owners):
                factors.append(self._alive(liveness.formulas.any({alive_of[o] for o in owners})))
            fixed = math.prod(shape)
            for axis, slots in g.axes.get(name, {}).items():
                factors.append(self._count(liveness.present(slots)))
                fixed //= shape[axis]
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
        # The network as given: also what is computed for nothing, or frozen by surgery.
        calls = {layer.weight: len(layer.rows) for layer in g.layers}
        self.dense = Cost(
            channels=sum(calls.values()),
            volume=sum(layer.area * len(layer.rows) for layer in g.layers),
            params=sum(math.prod(shape) for shape in shapes.values()),
            macs=g.macs,
        )

    def _count(self, formulas: Ids) -> int:
        return self._key(Counter(formulas.tolist()))

    def _alive(self, formula: int) -> int:
        return 0 if formula == TRUE else self._key(Counter([formula]))

    def _key(self, counter: Counter[int]) -> int:
        return self._counts.setdefault(tuple(sorted(counter.items())), len(self._counts) + 1)

    def __call__(self, gates: Tensor) -> Tensor:
        """Costs ``[..., kinds]`` in the order of ``kinds``, for gate values ``[..., gates]`` in [0, 1]."""
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
        costs = product.new_zeros(*gates.shape[:-1], len(KINDS)).index_add(-1, self._kind, product)
        if self.latency is None:
            return costs
        return torch.cat([costs, self.latency(counts, costs[..., 1]).unsqueeze(-1)], -1)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is counted: ``KINDS``, and the latency where it has been measured."""
        return KINDS if self.latency is None else (*KINDS, LATENCY)

    @property
    def whole(self) -> dict[str, int]:
        """The dense network's cost of every kind."""
        whole = self.dense.to_json()
        if self.latency is not None:
            gates = torch.ones(self._live.gates, dtype=torch.float64, device=self._source.device)
            whole[LATENCY] = round(float(self(gates)[-1]))
        return whole

    @torch.no_grad()
    def exact(self, mask: Tensor) -> Cost:
        """Integer costs of the network that ``mask`` ``[gates]``, of Booleans or of 0 and 1, leaves."""
        mask = read_mask(mask, self._live.gates)
        return Cost(*(round(v) for v in self(mask.double()).tolist()[: len(KINDS)]))
