"""What is not finite, and when: noticed without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn


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


def not_finite(model: nn.Module) -> list[str]:
    """Names of parameters and buffers with a NaN or an infinity, parameters first."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, t in named if not bool(torch.isfinite(t.detach()).all())]


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
