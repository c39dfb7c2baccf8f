"""What is not finite, and when: noticed without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor, nn

from chipnet._util.text import few
from chipnet._util.torch_private import NormBase
from chipnet.errors import ChipNetError


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """A Boolean scalar, on the device of the first tensor. Nothing waits for it.

    Example:
        >>> all_finite([torch.ones(3), torch.ones(2, dtype=torch.int64)]).item()
        True
        >>> all_finite([torch.ones(3), torch.tensor([1.0, float("nan")])]).item()
        False
    """
    floats = [t.detach() for t in tensors if t.numel() and (t.is_floating_point() or t.is_complex())]
    if not floats:
        return torch.tensor(True)
    return torch.isfinite(torch.nn.utils.get_total_norm(floats, float("inf")))


def check_finite(
    model: nn.Module,
    known: Collection[str] | None = None,
    when: str = "",
    kind: type[ChipNetError] = ChipNetError,
) -> set[str]:
    """Refuse a network with weights or running statistics that are not finite.

    Args:
        model: any network; what is on the meta device is passed over.
        known: what was not finite before, by name: nothing else may be. None: infinities in parameters that need
            no gradient (masks) may be meant, and buffers but for statistics of norms may never have been written.
        when: an addition to what is said.
        kind: of the error.

    Returns:
        Names of parameters and buffers that are not finite, as may be.

    Raises:
        ChipNetError: names the first of them.
    """
    named = {n: t.detach() for n, t in [*model.named_parameters(), *model.named_buffers()] if not t.is_meta}
    found = {n: int((~ok).sum()) for n, t in named.items() if not bool((ok := torch.isfinite(t)).all())}
    if known is None:
        learnt = {n for n, p in model.named_parameters() if p.requires_grad}
        statistics = {
            f"{name}.{key}" if name else key
            for name, m in model.named_modules()
            if isinstance(m, NormBase)
            for key in ("running_mean", "running_var")
        }
        nan = {n for n, _ in model.named_parameters() if n in found and bool(named[n].isnan().any())}
        known = found.keys() - learnt - statistics - nan
    wrong = [f"{n}: {k:,} of {named[n].numel():,} numbers" for n, k in found.items() if n not in known]
    if wrong:
        raise kind(
            f"{when}weights of this {type(model).__name__} are NaN or infinite: {few(wrong, 3, '; ', '; and ')}. "
            "Training has diverged, or they were not loaded: go back to weights that are finite, look for NaN in "
            "the data, skip optimiser steps whose loss is not finite, and try a lower learning rate or clipped "
            "gradients."
        )
    return set(found)


class Flags:
    """Booleans that a device computes, read when they are here: on the CPU at once, from a GPU some steps later.

    Example:
        >>> flags = Flags()
        >>> flags.send(3, [torch.tensor(True), torch.tensor(False)])
        >>> flags.arrived()
        [(3, [True, False])]
        >>> flags.arrived()
        []
    """

    def __init__(self) -> None:
        self._sent: list[tuple[int, Tensor, Callable[[], bool]]] = []

    def send(self, step: int, flags: Sequence[Tensor]) -> None:
        """Boolean scalars of a step."""
        together = torch.stack([flag.to(flags[0].device) for flag in flags])
        if not together.is_cuda:
            self._sent.append((step, together.cpu(), lambda: True))
            return
        host = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
        host.copy_(together, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(together.device))
        self._sent.append((step, host, event.query))

    def arrived(self) -> list[tuple[int, list[bool]]]:
        """(step, its flags) of all that is here and was not given yet, in order."""
        found = []
        while self._sent and self._sent[0][2]():
            step, flags, _ = self._sent.pop(0)
            found.append((step, flags.tolist()))
        return found
