"""How many channels exist, as sums of formulas: what costs are made of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from chipnet._util.torch_private import parameters_of
from chipnet.analysis.formula import FALSE, TRUE, Program
from chipnet.analysis.kinds.base import CountedCall, Term
from chipnet.analysis.liveness import Liveness
from chipnet.graph.facts import Layer, Slots
from chipnet.program.names import is_within


class ExistingChannels:
    """Counts of channels that exist, each under an index; 0 is the number 1.

    Args:
        liveness: formulas of the network.
        model: the dense network, for its parameters.
    """

    def __init__(self, liveness: Liveness, model: nn.Module) -> None:
        self.live, self.graph = liveness, liveness.graph
        self.shapes: Mapping[str, tuple[int, ...]] = {n: tuple(p.shape) for n, p in model.named_parameters()}
        self._index: dict[tuple[tuple[int, int], ...], int] = {}
        self._holders = _holders(model)
        self._alive_of = {name: liveness.alive(facts) for name, facts in self.graph.owners.items()}
        # Surgery replaces a module when all of its calls are dead; what is no module runs on.
        self._module_of = {fact: name for name, facts in self.graph.owners.items() for fact in facts}
        self._reading = {name: liveness.reading(facts) for name, facts in self.graph.owners.items()}
        self._cols = {layer.weight: layer for layer in self.graph.layers if layer.fact in self._module_of}
        self.calls: Sequence[CountedCall] = [self._call(layer) for layer in self.graph.layers]
        for product in self.graph.products:
            self.count(product.slots)

    def count(self, slots: Slots) -> int:
        """Index of the number of these slots that exist."""
        return self._key(Counter(self.live.present(slots).tolist()))

    def _call(self, layer: Layer) -> CountedCall:
        works = reads = 0  # what is no module always runs
        cols = self.count(layer.cols)
        if (module := self._module_of.get(layer.fact)) is not None:
            works, reads = self._one(self._alive_of[module]), self._one(self._reading[module])
            cols = self._key(self._columns(layer))
        across = 0 if layer.across is None else self.count(layer.across)
        return CountedCall(layer, works, reads, self.count(layer.rows), cols, across)

    def _columns(self, layer: Layer) -> Counter[int]:
        """Formulas of a layer's columns. Those that are always there go where all that it reads is zero."""
        reading = self._reading[self._module_of[layer.fact]]
        return Counter(reading if f == TRUE else f for f in self.live.present(layer.cols).tolist())

    def parameters(self) -> Iterator[Term]:
        """Elements of every parameter. A frozen layer has its computed weight and its bias, whatever the weight was
        computed from."""
        g = self.graph
        inside = {n: f for f in g.frozen for n in self.shapes if is_within(n, f)}
        kept = {n: v for n, v in self.shapes.items() if n not in inside or n == f"{inside[n]}.bias"}
        frozen = {f"{f.module}.weight": f.shape for f in g.frozen.values()}
        for name, shape in {**kept, **frozen}.items():
            owners = self._holders.get(name, {name.rpartition(".")[0]})
            factors = []
            if all(o in self._alive_of for o in owners):
                factors.append(self._one(self.live.formulas.any({self._alive_of[o] for o in owners})))
            fixed = math.prod(shape)
            layer = self._cols.get(name)
            for axis, slots in g.axes.get(name, {}).items():
                read = layer is not None and np.array_equal(slots, layer.cols)
                factors.append(self._key(self._columns(layer)) if layer and read else self.count(slots))
                fixed //= shape[axis]
            yield fixed, tuple(factors)

    def _one(self, formula: int) -> int:
        return 0 if formula == TRUE else self._key(Counter([formula]))

    def _key(self, counter: Counter[int]) -> int:
        return self._index.setdefault(tuple(sorted(counter.items())), len(self._index) + 1)

    def compiled(self) -> tuple[Program, Tensor, Tensor, Tensor, Tensor]:
        """Counts as one sparse product: ``count[k] = constant[k] + sum of times * formula``.

        Returns the formulas' program, and per product its formula, how many times it counts, and for which count;
        and the constants.
        """
        index: dict[int, int] = {}
        which, weight = [], []
        constant = np.zeros(len(self._index) + 1)
        constant[0] = 1.0
        for key, k in self._index.items():
            for formula, times in key:
                if formula == TRUE:
                    constant[k] += times
                elif formula != FALSE:
                    index.setdefault(formula, len(index))
                    which.append(k)
                    weight.append((index[formula], times))
        return (
            self.live.formulas.compile(list(index), self.live.gates),
            torch.tensor([i for i, _ in weight], dtype=torch.int64),
            torch.tensor([w for _, w in weight], dtype=torch.float64),
            torch.tensor(which, dtype=torch.int64),
            torch.tensor(constant, dtype=torch.float64),
        )


def _holders(model: nn.Module) -> Mapping[str, set[str]]:
    """Parameter -> the modules that hold it (by the first of their names)."""
    first: dict[int, str] = {}
    holders: dict[str, set[str]] = {}
    names: dict[int, str] = {id(p): n for n, p in model.named_parameters()}
    for path, module in model.named_modules(remove_duplicate=False):
        known = first.setdefault(id(module), path)
        for p in parameters_of(module).values():
            if p is not None:
                holders.setdefault(names[id(p)], set()).add(known)
    return holders
