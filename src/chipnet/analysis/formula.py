"""Monotone Boolean formulas over gates, and the one program that evaluates them.

A formula says when a channel is live, needed or present. It is built once, simplified while it is built,
and compiled into a few flat gathers and products. The same program reads gate values in [0, 1] (soft,
differentiable: AND is a product, OR is ``1 - prod(1 - p)``) and gate values in {0, 1} (exact).

This file knows nothing of tensors of a network, of layers or of costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

FALSE, TRUE = 0, 1
_CONST, _GATE, _AND, _OR = range(4)


class Formulas:
    """An arena of hash-consed formulas: equal formulas have equal integer ids.

    Simplifications keep soft values close to exact ones: an independent reading of
    ``x or (x and y)`` would count ``x`` twice, so such repetitions are removed where they are made.

    Example:
        >>> f = Formulas()
        >>> a, b = f.gate(0), f.gate(1)
        >>> f.any([a, f.all([a, b])]) == a
        True
    """

    def __init__(self) -> None:
        self._kind = [_CONST, _CONST]
        self._children: list[frozenset[int]] = [frozenset(), frozenset()]
        self._memo: dict[tuple[int, frozenset[int]], int] = {}
        self._ands: dict[tuple[int, int], int] = {}
        self._ors: dict[tuple[int, int], int] = {}
        self._gate_ids: dict[int, int] = {}
        self.gate_of: dict[int, int] = {}

    def gate(self, index: int) -> int:
        """The formula that is true where gate ``index`` is open."""
        if index not in self._gate_ids:
            self._kind.append(_GATE)
            self._children.append(frozenset())
            node = len(self._kind) - 1
            self._gate_ids[index] = node
            self.gate_of[node] = index
        return self._gate_ids[index]

    def both(self, a: int, b: int) -> int:
        """``a and b``."""
        if a in (b, FALSE) or b == TRUE:
            return a
        if a == TRUE or b == FALSE:
            return b
        key = (a, b) if a < b else (b, a)
        found = self._ands.get(key)
        if found is None:
            found = self._ands[key] = self.all(key)
        return found

    def either(self, a: int, b: int) -> int:
        """``a or b``."""
        if a in (b, TRUE) or b == FALSE:
            return a
        if a == FALSE or b == TRUE:
            return b
        key = (a, b) if a < b else (b, a)
        found = self._ors.get(key)
        if found is None:
            found = self._ors[key] = self.any(key)
        return found

    def all(self, ids: Iterable[int]) -> int:
        """True where every formula of ``ids`` is."""
        literals = self._factors(ids)
        if FALSE in literals:
            return FALSE
        kind, children = self._kind, self._children
        absorbed = []
        for i in literals:  # x and (x or y) = x
            if kind[i] == _OR and not children[i].isdisjoint(literals):
                absorbed.append(i)
        return self._node(_AND, literals.difference(absorbed) if absorbed else literals, TRUE)

    def any(self, ids: Iterable[int]) -> int:
        """True where at least one formula of ``ids`` is."""
        terms = set(ids)
        terms.discard(FALSE)
        if TRUE in terms:
            return TRUE
        if len(terms) > 1:
            kinds = {self._kind[t] for t in terms}
            if kinds != {_GATE}:
                terms = self._absorb(terms, kinds)
        if len(terms) > 1 and _AND in kinds:
            # (x and y) or (x and z) = x and (y or z)
            common = self._common(terms)
            if common:
                return self.all([*common, self.any([self._without(t, common) for t in terms])])
        return self._node(_OR, frozenset(terms), FALSE)

    def _without(self, term: int, common: frozenset[int]) -> int:
        rest = self._factors((term,)) - common
        return self.all(rest) if len(rest) != 1 else next(iter(rest))

    def _common(self, terms: set[int]) -> frozenset[int]:
        """Literals that are factors of every term."""
        common: frozenset[int] | None = None
        for t in terms:
            mine = self._children[t] if self._kind[t] == _AND else frozenset((t,))
            common = mine if common is None else common & mine
            if not common:
                break
        return common or frozenset()

    def _absorb(self, terms: set[int], kinds: set[int]) -> set[int]:
        """Drop what another term of the same OR already implies."""
        kind, children = self._kind, self._children
        kept = set(terms)
        if _OR in kinds:
            for t in terms:
                if kind[t] == _OR:
                    kept -= children[t]
        if _AND not in kinds:
            return kept
        ands = [t for t in kept if kind[t] == _AND]
        for t in ands:
            for literal in children[t]:
                if literal in kept or (kind[literal] == _OR and children[literal] <= kept):
                    kept.discard(t)
                    break
        ands = [t for t in ands if t in kept]
        if 1 < len(ands) <= 32:
            for t in ands:
                if any(u != t and u in kept and children[u] < children[t] for u in ands):
                    kept.discard(t)
        return kept

    def _factors(self, ids: Iterable[int]) -> frozenset[int]:
        kind = self._kind
        out: set[int] = set()
        for i in ids:
            if kind[i] == _AND:
                out |= self._children[i]
            elif i != TRUE:
                out.add(i)
        return frozenset(out)

    def _node(self, kind: int, children: frozenset[int], empty: int) -> int:
        if not children:
            return empty
        if len(children) == 1:
            return next(iter(children))
        key = (kind, children)
        if key not in self._memo:
            self._kind.append(kind)
            self._children.append(children)
            self._memo[key] = len(self._kind) - 1
        return self._memo[key]

    def compile(self, roots: Sequence[int], gates: int) -> Program:
        """A program that evaluates ``roots`` for ``gates`` gate values."""
        return Program(self, roots, gates)


class Program:
    """Formulas flattened into levels of padded gathers: ``[..., gates] -> [..., roots]``.

    Nodes of one level depend on earlier levels only. Within a level, nodes of one kind and of similar width
    are evaluated by one gather and one product. A node used by a single parent of its own kind is merged
    into that parent, which keeps chains of additions (deep residual streams) flat.
    """

    def __init__(self, formulas: Formulas, roots: Sequence[int], gates: int) -> None:
        kind = formulas._kind
        children = self._inlined(formulas, roots)
        order = list(children)
        level: dict[int, int] = {}
        for n, below in children.items():
            level[n] = 1 + max([level[c] for c in below]) if below else 0

        # Positions in the value vector: [0, 1, gate 0, gate 1, ..., level 1, level 2, ...]
        position = {FALSE: 0, TRUE: 1}
        position.update({n: 2 + formulas.gate_of[n] for n in order if kind[n] == _GATE})
        size = 2 + gates
        buckets: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for n in order:
            if children[n]:
                width = 1 << (len(children[n]) - 1).bit_length()
                buckets[level[n], kind[n], width].append(n)
        self.gates = gates
        self._levels: list[list[tuple[bool, Tensor]]] = []
        for lv in range(1, max(level.values(), default=0) + 1):
            steps = []
            for (_, k, width), nodes in sorted((key, v) for key, v in buckets.items() if key[0] == lv):
                index = np.full((len(nodes), width), position[TRUE if k == _AND else FALSE], dtype=np.int64)
                for row, n in enumerate(nodes):
                    index[row, : len(children[n])] = [position[c] for c in sorted(children[n])]
                    position[n] = size + row
                size += len(nodes)
                steps.append((k == _AND, torch.from_numpy(index)))
            self._levels.append(steps)
        self.roots = torch.tensor([position[r] for r in roots], dtype=torch.int64)
        self.depth, self.nodes = len(self._levels), size

    @staticmethod
    def _inlined(formulas: Formulas, roots: Sequence[int]) -> dict[int, list[int]]:
        """Nodes and their children, in an order in which children come first (that of their making)."""
        kind, children = formulas._kind, formulas._children
        seen = set(roots)
        stack = list(seen)
        uses = [0] * len(kind)
        for r in seen:
            uses[r] = 1
        while stack:
            for c in children[stack.pop()]:
                uses[c] += 1
                if c not in seen:
                    seen.add(c)
                    stack.append(c)
        out: dict[int, list[int]] = {}
        for n in sorted(seen):
            flat: list[int] = []
            for c in children[n]:
                if uses[c] == 1 and kind[c] == kind[n]:
                    flat += out.pop(c)
                else:
                    flat.append(c)
            out[n] = flat
        return out

    def __call__(self, gates: Tensor) -> Tensor:
        """Values of the roots. ``gates``: ``[..., gates]`` in [0, 1]; returns ``[..., roots]``."""
        if self.roots.device != gates.device:
            self._move(gates.device)
        end = (*gates.shape[:-1], 1)
        values = torch.cat([gates.new_zeros(end), gates.new_ones(end), gates], -1)
        for steps in self._levels:
            new = [values]
            for conjunction, index in steps:
                x = values.index_select(-1, index.flatten()).unflatten(-1, index.shape)
                new.append(x.prod(-1) if conjunction else 1 - (1 - x).prod(-1))
            values = torch.cat(new, -1)
        return values.index_select(-1, self.roots)

    def _move(self, device: torch.device) -> None:
        self._levels = [[(c, i.to(device)) for c, i in steps] for steps in self._levels]
        self.roots = self.roots.to(device)
