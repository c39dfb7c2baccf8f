"""Costs: integers that count what physically exists; `chipnet.analysis.kinds` says what each kind counts.

Each is a sum of products ``coefficient * count * count * ...`` of counts of channels that exist, or the largest of
several such sums. There is one formula, given to the caller as one function of gate values: soft values in, a
differentiable relaxation out; zeros and ones in, the integers of the network that is shipped out.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from chipnet._util.text import type_text
from chipnet.analysis.counts import ExistingChannels
from chipnet.analysis.kinds import KIND, KINDS
from chipnet.analysis.kinds.base import CountedCall
from chipnet.analysis.vectors import read_mask
from chipnet.errors import PlanError

Measured = Callable[[Tensor, Tensor], Tensor]
"""A cost that is measured, from counts ``[..., K]`` and the volume ``[...]``: ``[...]``."""


@dataclass(frozen=True)
class Cost:
    """Costs of one network; what each counts is in its file of `chipnet.analysis.kinds`."""

    channels: int
    volume: int
    params: int
    macs: int
    more: Mapping[str, int] = field(default_factory=dict)
    """Costs of other kinds that a budget names."""

    def __getitem__(self, kind: str) -> int:
        return int(self.more[kind] if kind in self.more else getattr(self, kind))

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is counted."""
        return (*KINDS, *self.more)

    def to_json(self) -> dict[str, int]:
        return {k: self[k] for k in self.kinds}

    @staticmethod
    def record(data: Any) -> Any:
        """What ``to_json`` wrote, as a record of this class: counted kinds stand beside each other in files."""
        if not isinstance(data, dict):
            return data
        more = {k: v for k, v in data.items() if k in KIND and k not in KINDS}
        return {k: v for k, v in data.items() if k not in more} | ({"more": more} if more else {})


@dataclass(frozen=True)
class _Tables:
    """Counts as one sparse product, and parts of costs as sums of products of counts."""

    source: Tensor
    times: Tensor
    which: Tensor
    constant: Tensor
    factors: Tensor
    part: Tensor
    coefficient: Tensor

    def to(self, device: torch.device) -> _Tables:
        return _Tables(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class CostModel:
    """Cost of a network as a function of its gates. It never changes; `counting` and `extended` make others.

    Args:
        counts: of the network's channels.
        more: kinds besides those that are counted for every network.
    """

    def __init__(self, counts: ExistingChannels, more: Iterable[str] = ()) -> None:
        self._counted = (*KINDS, *more)
        self._counts = counts
        self.measured: Mapping[str, Measured] = {}
        """Kinds that have been measured."""
        terms: Counter[tuple[int, tuple[int, ...]]] = Counter()
        self._sizes: list[int] = []
        """How many parts each kind is counted in."""
        for name in self._counted:
            parts = list(KIND[name].parts(counts)) or [()]
            for number, part in enumerate(parts, sum(self._sizes)):
                for coefficient, factors in part:
                    terms[number, factors] += coefficient
            self._sizes.append(len(parts))
        products = sorted(terms.items())
        wide = max((len(f) for (_, f), _ in products), default=1)
        padded = [list(f) + [0] * (wide - len(f)) for (_, f), _ in products]
        self.program, source, times, which, constant = counts.compiled()
        self._tables = {
            torch.device("cpu"): _Tables(
                source=source,
                times=times,
                which=which,
                constant=constant,
                factors=torch.tensor(padded, dtype=torch.int64).reshape(len(padded), wide),
                part=torch.tensor([k for (k, _), _ in products], dtype=torch.int64),
                coefficient=torch.tensor([c for _, c in products], dtype=torch.float64),
            )
        }
        """Tables on every device where gates have been given."""
        dense = {k: KIND[k].dense(counts) for k in self._counted}
        self.dense = _cost(dense)

    @property
    def calls(self) -> Sequence[CountedCall]:
        """Every call of a layer, with the indices of its counts."""
        return self._counts.calls

    def counting(self, more: Iterable[str]) -> CostModel:
        """A model that counts further kinds."""
        made = CostModel(self._counts, (*self._counted[len(KINDS) :], *more))
        made.measured = self.measured
        return made

    def extended(self, kind: str, measured: Measured) -> CostModel:
        """A model that has a kind which was measured."""
        made = copy.copy(self)
        made.__dict__.pop("whole", None)
        made.measured = {**self.measured, kind: measured}
        return made

    def __call__(self, gates: Tensor) -> Tensor:
        """Costs ``[..., kinds]`` in the order of ``kinds``, for gate values ``[..., gates]`` in [0, 1].

        Raises:
            PlanError: they are no tensor with a value for each gate.
        """
        if not isinstance(gates, Tensor) or not gates.dim() or gates.shape[-1] != self._counts.live.gates:
            shape = f"one of shape {tuple(gates.shape)}" if isinstance(gates, Tensor) else type_text(gates)
            raise PlanError(f"values of gates are a tensor [..., {self._counts.live.gates}], not {shape}")
        counts, parts = self._parts(gates)
        costs = parts
        if len(self._sizes) < parts.shape[-1]:
            costs = torch.stack([kind.amax(-1) for kind in parts.split(self._sizes, -1)], -1)
        return self._with_measured(counts, costs)

    def by_part(self, gates: Tensor) -> Tensor:
        """Costs in which all parts of a kind count: their sum, with random weights, in place of the largest.

        Two gates with the same derivatives of these are interchangeable. The largest part alone would not tell.
        """
        counts, parts = self._parts(gates)
        if len(self._sizes) < parts.shape[-1]:
            weights = torch.rand(
                parts.shape[-1], generator=torch.Generator().manual_seed(0), dtype=parts.dtype
            )
            weights[: len(KINDS)] = 1
            parts = torch.stack([kind.sum(-1) for kind in (parts * weights).split(self._sizes, -1)], -1)
        return self._with_measured(counts, parts)

    def _parts(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Counts ``[..., K]`` and the parts of every kind, in order."""
        if gates.device not in self._tables:
            self._tables[gates.device] = self._tables[torch.device("cpu")].to(gates.device)
        t, dtype = self._tables[gates.device], gates.dtype
        values = self.program(gates)
        picked = values.index_select(-1, t.source) * t.times.to(dtype)
        base = t.constant.to(dtype).expand(*gates.shape[:-1], -1)
        counts = base.index_add(-1, t.which, picked)
        factors = counts.index_select(-1, t.factors.flatten()).unflatten(-1, t.factors.shape)
        product = factors.prod(-1) * t.coefficient.to(dtype)
        return counts, product.new_zeros(*gates.shape[:-1], sum(self._sizes)).index_add(-1, t.part, product)

    def _with_measured(self, counts: Tensor, costs: Tensor) -> Tensor:
        if not self.measured:
            return costs
        volume = costs[..., KINDS.index("volume")]
        return torch.cat([costs, *(f(counts, volume).unsqueeze(-1) for f in self.measured.values())], -1)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is counted: ``KINDS``, what else was asked for, and what has been measured."""
        return (*self._counted, *self.measured)

    @functools.cached_property
    def dense_costs(self) -> dict[str, int]:
        """The dense network's cost of every kind."""
        costs = self(torch.ones(self._counts.live.gates, dtype=torch.float64)).tolist()
        return {**self.dense.to_json(), **{k: round(costs[self.kinds.index(k)]) for k in self.measured}}

    @torch.no_grad()
    def exact(self, mask: Tensor) -> Cost:
        """Integer costs of the network that ``mask`` ``[gates]``, of Booleans or of 0 and 1, leaves."""
        mask = read_mask(mask, self._counts.live.gates)
        costs = dict(zip(self.kinds, map(round, self(mask.double()).tolist()), strict=True))
        return _cost({k: costs[k] for k in self._counted})


def _cost(counted: Mapping[str, int]) -> Cost:
    channels, volume, params, macs = (counted[k] for k in KINDS)
    return Cost(channels, volume, params, macs, {k: v for k, v in counted.items() if k not in KINDS})
