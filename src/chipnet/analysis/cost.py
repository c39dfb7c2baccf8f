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

import copy
import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from chipnet.analysis.formula import FALSE, TRUE, Program
from chipnet.analysis.kinds import KINDS
from chipnet.analysis.liveness import Ids, Liveness
from chipnet.analysis.vectors import read_mask
from chipnet.graph.facts import Layer, is_within

Measured = Callable[[Tensor, Tensor], Tensor]
"""A cost that is measured, from counts ``[..., K]`` and the volume ``[...]``: ``[...]``."""


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


@dataclass(frozen=True)
class _Tables:
    """Counts as one sparse product, and costs as sums of products of counts."""

    source: Tensor
    times: Tensor
    which: Tensor
    constant: Tensor
    factors: Tensor
    kind: Tensor
    coefficient: Tensor

    def to(self, device: torch.device) -> _Tables:
        return _Tables(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class CostModel:
    """Cost of a network as a function of its gates.

    Args:
        liveness: formulas of the network.
        model: the dense network (for parameters that no channel owns).
    """

    def __init__(self, liveness: Liveness, model: nn.Module) -> None:
        self._counts: dict[tuple[tuple[int, int], ...], int] = {}
        self.measured: Mapping[str, Measured] = {}
        """Kinds that have been measured."""
        self._live = liveness
        self.calls: list[tuple[Layer, int, int, int]] = []
        """Every call of a layer, with the indices of its counts: is it alive, rows, columns."""
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
        products = sorted(terms.items())
        wide = max((len(f) for (_, f), _ in products), default=1)
        padded = [list(f) + [0] * (wide - len(f)) for (_, f), _ in products]
        self._tables = {
            torch.device("cpu"): _Tables(
                source=torch.tensor([i for i, _ in weight], dtype=torch.int64),
                times=torch.tensor([w for _, w in weight], dtype=torch.float64),
                which=torch.tensor(which, dtype=torch.int64),
                constant=torch.tensor(constant, dtype=torch.float64),
                factors=torch.tensor(padded, dtype=torch.int64).reshape(len(padded), wide),
                kind=torch.tensor([k for (k, _), _ in products], dtype=torch.int64),
                coefficient=torch.tensor([c for _, c in products], dtype=torch.float64),
            )
        }
        """On every device where gates have been given."""
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

    def extended(self, kind: str, measured: Measured) -> CostModel:
        """A model that has one kind more; this one stays as it is."""
        more = copy.copy(self)
        more.measured = {**self.measured, kind: measured}
        return more

    def __call__(self, gates: Tensor) -> Tensor:
        """Costs ``[..., kinds]`` in the order of ``kinds``, for gate values ``[..., gates]`` in [0, 1]."""
        if gates.device not in self._tables:
            self._tables[gates.device] = self._tables[torch.device("cpu")].to(gates.device)
        t, dtype = self._tables[gates.device], gates.dtype
        values = self.program(gates)
        picked = values.index_select(-1, t.source) * t.times.to(dtype)
        base = t.constant.to(dtype).expand(*gates.shape[:-1], -1)
        counts = base.index_add(-1, t.which, picked)
        factors = counts.index_select(-1, t.factors.flatten()).unflatten(-1, t.factors.shape)
        product = factors.prod(-1) * t.coefficient.to(dtype)
        costs = product.new_zeros(*gates.shape[:-1], len(KINDS)).index_add(-1, t.kind, product)
        if not self.measured:
            return costs
        volume = costs[..., KINDS.index("volume")]
        return torch.cat([costs, *(f(counts, volume).unsqueeze(-1) for f in self.measured.values())], -1)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is counted: ``KINDS``, and what has been measured."""
        return (*KINDS, *self.measured)

    @functools.cached_property
    def whole(self) -> dict[str, int]:
        """The dense network's cost of every kind."""
        costs = self(torch.ones(self._live.gates, dtype=torch.float64))
        measured = zip(self.kinds[len(KINDS) :], costs[len(KINDS) :].tolist(), strict=True)
        return {**self.dense.to_json(), **{kind: round(cost) for kind, cost in measured}}

    @torch.no_grad()
    def exact(self, mask: Tensor) -> Cost:
        """Integer costs of the network that ``mask`` ``[gates]``, of Booleans or of 0 and 1, leaves."""
        mask = read_mask(mask, self._live.gates)
        return Cost(*(round(v) for v in self(mask.double()).tolist()[: len(KINDS)]))
