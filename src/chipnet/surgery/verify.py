"""Do two networks compute the same? What was compared is counted: where nothing was, nothing is verified."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chipnet.program.inputs import Inputs
from chipnet.program.ready import copied


@dataclass(frozen=True)
class OutputComparison:
    """Outputs of two networks, side by side. Unpacks as ``difference, scale``.

    Attributes:
        difference: the largest, of the output that differs most for its scale; infinity where shapes, whole numbers
            or the places of NaN and infinities differ; NaN where no number was compared.
        scale: the largest number of that output.
        compared: how many numbers were compared: finite ones, whole ones and Booleans.
        unverified: outputs, by their place, that have elements but no finite number.
        drawn: inputs were drawn at random too, since the given ones tell too little (no finite outputs, or constant
            inputs).
    """

    difference: float
    scale: float
    compared: int = 0
    unverified: tuple[int, ...] = ()
    drawn: bool = False

    def __iter__(self) -> Iterator[float]:
        yield from (self.difference, self.scale)

    @property
    def complete(self) -> bool:
        """Has every output that has elements been compared, and any?"""
        return self.compared > 0 and not self.unverified

    def within(self, limit: float, min_scale: float = 0.0, blind: frozenset[int] = frozenset()) -> bool:
        """Complete but for outputs ``blind``, and no difference above ``limit`` times the scale (of at least
        ``min_scale``)?"""
        complete = self.compared > 0 and blind.issuperset(self.unverified)
        return complete and self.difference <= limit * max(self.scale, min_scale)


@torch.no_grad()
def compare_outputs(a: nn.Module, b: nn.Module, inputs: Inputs) -> OutputComparison:
    """Compare two networks in eval mode on ``inputs``; where these tell too little, on drawn ones too.

    Raises:
        Exception: what their forwards raise on the given inputs, and the second one's on drawn ones.
    """
    found = compared(outputs(a, inputs), outputs(b, inputs))
    if found.difference == math.inf or (found.complete and telling(inputs)):
        return found
    for other in drawn(inputs):
        try:
            wanted = outputs(a, other)
        except Exception:  # inputs that it does not take
            continue
        found = _both(found, compared(wanted, outputs(b, other)))
        if found.complete or found.difference == math.inf:
            break
    return found


def repeatable(model: nn.Module, inputs: Inputs) -> bool:
    """Do outputs in train mode tell what was pruned: does the model run there, nothing random in it, and does it
    not blow rounding up (batch norms over values that are all alike)?"""
    if not _floats(inputs):
        return False
    try:
        if inputs.twice().draws(copied(model).train()):
            return False
        first = train_outputs(model, inputs)
        again = compared(first, train_outputs(model, inputs))  # a generator of its own goes on
        near = compared(first, train_outputs(model, _nudged(inputs)))
    except Exception:  # it wants targets
        return False
    return again.difference == 0 and again.complete and near.within(1e-4)


def train_outputs(model: nn.Module, inputs: Inputs, *, spent: bool = False) -> list[Tensor]:
    """The tensors that matter of what a copy of a network returns in train mode; the network itself where it is
    ``spent``: nobody needs it afterwards."""
    with torch.no_grad():
        return inputs.twice().read((model if spent else copied(model)).train())


def compare_training(a: nn.Module, b: nn.Module, inputs: Inputs, *, spent: bool = False) -> OutputComparison:
    """Compare (copies of) two networks in train mode."""
    return compared(train_outputs(a, inputs, spent=spent), train_outputs(b, inputs, spent=spent))


def _nudged(inputs: Inputs) -> Inputs:
    """The same inputs but for rounding."""

    def one(x: object) -> object:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return x * (1 + 8 * torch.finfo(x.dtype).eps)

    return inputs.mapped(one)


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The tensors that a network returns in eval mode, of those that matter."""
    with torch.no_grad():
        return inputs.read(model.eval())


def example(model: nn.Module, inputs: Inputs) -> tuple[Inputs, frozenset[int]] | None:
    """The inputs, given or drawn, that vary and on which most outputs of the model can be compared, with the
    outputs that cannot; None where none can."""
    best: tuple[tuple[int, bool, int], Inputs, frozenset[int]] | None = None
    for i, some in enumerate([inputs, *drawn(inputs)]):
        try:
            outs = outputs(model, some)
        except Exception:
            if not i:
                raise
            continue
        found = compared(outs, outs)
        worth = -len(found.unverified), telling(some), -i
        if found.compared and (best is None or worth > best[0]):
            best = worth, some, frozenset(found.unverified)
            if found.complete and telling(some):
                break
    return best[1:] if best is not None else None


def telling(inputs: Inputs) -> bool:
    """Does every floating-point input vary? Layers without biases make zeros of zeros, whatever their weights."""
    return all(x.numel() < 2 or bool((x != x.flatten()[0]).any()) for x in _floats(inputs))


def drawn(inputs: Inputs) -> Iterator[Inputs]:
    """The same inputs with other floating-point numbers: normal ones, and such between 0 and 1. Nothing where
    there are none to draw."""
    if not any(x.numel() for x in _floats(inputs)):
        return
    for draw in (torch.randn, torch.rand):
        generator = torch.Generator().manual_seed(0)

        def one(x: object, draw=draw, generator=generator) -> object:  # type: ignore[no-untyped-def]
            if not isinstance(x, Tensor) or not x.is_floating_point():
                return x
            return draw(x.shape, generator=generator, dtype=torch.float64).to(x.device, x.dtype)

        yield inputs.mapped(one)


def _floats(inputs: Inputs) -> list[Tensor]:
    return [x for x in inputs.tensors() if x.is_floating_point()]


def _both(a: OutputComparison, b: OutputComparison) -> OutputComparison:
    """Two comparisons of the same networks as one: the worse difference, and what neither compared."""
    parts = [c for c in (a, b) if c.compared] or [a]
    worst = max(parts, key=lambda c: c.difference / c.scale if c.scale else float(c.difference > 0))
    left = tuple(i for i in a.unverified if i in b.unverified) if b.compared else a.unverified
    if any(c.difference == math.inf for c in (a, b)):
        return OutputComparison(math.inf, 1.0, drawn=True)
    return OutputComparison(worst.difference, worst.scale, a.compared + b.compared, left, drawn=True)


def compared(wanted: list[Tensor], found: list[Tensor]) -> OutputComparison:
    """Two lists of outputs, tensor by tensor."""
    different = OutputComparison(math.inf, 1.0)
    if [x.shape for x in wanted] != [y.shape for y in found]:
        return different
    worst, scale, count, unverified = 0.0, 0.0, 0, []
    for i, (x, y) in enumerate(zip(wanted, found, strict=True)):
        if x.is_complex() and y.is_complex():
            x, y = torch.view_as_real(x), torch.view_as_real(y)
        if not x.numel():
            continue
        if x.is_floating_point() != y.is_floating_point():
            return different
        if not x.is_floating_point():
            if not torch.equal(x, y.to(x.dtype)):
                return different
            count += x.numel()
            continue
        finite = torch.isfinite(x)
        odd = torch.nan_to_num(x[~finite], 2.0, 1.0, -1.0)  # NaN and the two infinities, told apart
        if not torch.equal(finite, torch.isfinite(y)) or not torch.equal(
            odd, torch.nan_to_num(y[~finite], 2.0, 1.0, -1.0).to(odd.dtype)
        ):
            return different
        if not bool(finite.any()):
            unverified.append(i)
            continue
        count += int(finite.sum())
        difference, size = float((x - y)[finite].abs().max()), float(x[finite].abs().max())
        if difference * scale >= worst * size:  # the worst output relative to its own scale
            worst, scale = difference, size
    if not count:
        return OutputComparison(math.nan, 1.0, 0, tuple(unverified))
    return OutputComparison(worst, scale, count, tuple(unverified))
