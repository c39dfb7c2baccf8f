"""Where does a call of an operator stand, and what did it receive?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from chipnet._util.torch_private import tree_leaves, value_of
from chipnet.graph.facts import Pin, PinCode, Place, Realisation, Tie
from chipnet.program.counting import counting
from chipnet.program.names import Modules, line_of, operator_name, shape_of
from chipnet.program.watch import Given, Watch


@dataclass(frozen=True)
class Forward:
    """A captured forward, and what is known before it is walked.

    Attributes:
        modules: the modules of the network.
        parameters: the names of its parameters; other tensors that it holds are buffers.
        realisation: may layers read or write fewer channels than the tensors around them have?
        literal: operators whose sizes do not follow widths, with the reason. All others are taken to follow them.
        fused: modules whose weights a method of another module reads. No index map may stand there, as the method
            would not see it.
        readers: for every parameter, how many operators read it.
        entered: for every module, the calls by which it is entered.
        results: for every such call, how many tensors made in it are read outside of it.
        watch: knows which operators received numbers from attributes; None where that is not known.
        heads: reshapes that make heads of attention, each with the axis of heads.
        narrow: do all heads lose the same features, or do heads go?
        grids: weights whose rows write heads and features that both go, with these rows.
        counting: do its operators cost anything? Those of a train-mode graph do not.
    """

    modules: Modules
    parameters: frozenset[str]
    realisation: Realisation
    literal: Mapping[str, str]
    fused: frozenset[str]
    readers: Mapping[str, int]
    entered: Mapping[str, Set[str]]
    results: Mapping[str, int]
    watch: Watch | None
    counting: bool
    heads: Mapping[str, int] = field(default_factory=dict)
    narrow: bool = True
    grids: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One call of an operator."""

    node: Node
    forward: Forward

    @property
    def key(self) -> str:
        """The name of the node. It is unique over the graphs that are walked."""
        return self.node.name if self.forward.counting else f"training {self.node.name}"

    @cached_property
    def name(self) -> str:
        """The name of the operator. ATen's have no namespace, and ``add_`` is called ``add``."""
        return operator_name(self.node)

    @cached_property
    def module(self) -> str:
        """The path of the innermost module whose forward contains the call."""
        return self.forward.modules.around(self.node)

    @property
    def owner(self) -> nn.Module | None:
        """The module at that path."""
        return self.forward.modules.get(self.module)

    @cached_property
    def line(self) -> str:
        """The file and line of the user's code."""
        return line_of(self.node)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of the output, or of the first one."""
        return shape_of(self.node)

    @property
    def outputs(self) -> Any:
        """The output as a tensor that holds no numbers; several as a tuple or list."""
        return value_of(self.node)

    @cached_property
    def place(self) -> Place:
        """Node, module and line in one value."""
        return Place(self.node.name, self.module, self.line)

    def why(self, reason: str, code: PinCode) -> Pin:
        """A pin with the place of this call."""
        return Pin(code, reason, self.place)

    @property
    def tie(self) -> Tie:
        """A note that this call ties slots."""
        return Tie(f"tied by {self.node.target}", self.place)

    # -- sizes that are kept as numbers -----------------------------------------------------------------------
    @property
    def is_literal(self) -> bool:
        """Is it known that the sizes which the operator received do not follow widths?"""
        return self.key in self.forward.literal

    @cached_property
    def received(self) -> Given | None:
        """The arguments as the user's code gave them; None where none of them came from attributes."""
        return self.forward.watch.of(self.node) if self.forward.watch is not None else None

    def given(self, name: str, position: int) -> Any:
        """One argument as the user's code gave it; None where none came from attributes."""
        return self.received.given(name, position) if self.received is not None else None

    def sizes(self, shape: tuple[int, ...], skip: int = 0, first: int = 1) -> list[Any]:
        """The number that says how long each axis of ``shape`` is, or None where that is not known.

        The numbers are those from argument ``first`` on, after the first ``skip`` of them.
        """
        numbers = self.received.numbers(first)[skip:] if self.received is not None else []
        if len(numbers) != len(shape) or any(n not in (-1, s) for n, s in zip(numbers, shape, strict=True)):
            return [None] * len(shape)
        return [None if n == -1 else n for n in numbers]

    # -- cost -------------------------------------------------------------------------------------------------
    def macs(self) -> int:
        """The operator's own multiply-accumulates, by PyTorch's counter."""
        if not self.forward.counting:
            return 0
        args, kwargs = torch.fx.node.map_arg((self.node.args, self.node.kwargs), value_of)
        fakes = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        if not any(f.is_floating_point() or f.is_complex() for f in fakes) or not callable(self.node.target):
            return 0
        try:
            with fakes[0].fake_mode, counting() as counter:  # type: ignore[attr-defined]
                self.node.target(*args, **kwargs)
            return int(counter.get_total_flops()) // 2
        # It cannot be rerun on fakes, or its sizes depend on values: the real forward counts it.
        except Exception:
            return 0
