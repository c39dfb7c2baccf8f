"""Multiply-accumulates of a real forward, as PyTorch counts them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chipnet.program.inputs import Inputs


class _Everywhere(contextlib.nullcontext[None]):
    """In place of the counter's bookkeeping by module, whose hooks want a graph of a parameter's view
    (`cls_token.expand`) also where there is none."""

    parents = ("Global",)

    def __exit__(self, *_: object) -> None:  # the counter calls it bare
        pass


@contextlib.contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """PyTorch's counter around a forward. Attention counts as its two matrix products, whatever kernel would run:
    some are not counted, and which one runs depends on widths."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = _Everywhere()  # type: ignore[assignment]
        with sdpa_kernel(SDPBackend.MATH), counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@torch.no_grad()
def counted(model: nn.Module, inputs: Inputs) -> int:
    """Multiply-accumulates of one real forward by PyTorch's counter; 0 where that cannot watch it."""
    try:
        with counting() as counter:
            inputs(model)
    except Exception:  # a forward that no dispatch mode can look into
        return 0
    return int(counter.get_total_flops()) // 2
