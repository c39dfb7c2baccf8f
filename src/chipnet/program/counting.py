"""How many multiply-accumulates does a real forward take, by PyTorch's counter?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chipnet.program.inputs import Inputs


class _Everywhere(contextlib.nullcontext[None]):
    """Stands for the counter's bookkeeping by module, whose hooks fail on views of parameters without gradients."""

    parents = ("Global",)

    def __exit__(self, *_: object) -> None:  # the counter calls it bare
        pass


@contextlib.contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """PyTorch's counter, for a forward inside the block.

    Attention counts as two matrix products whatever kernel runs: PyTorch does not count all of them, and which one
    runs depends on widths.
    """
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
    """Multiply-accumulates of one real forward; 0 where PyTorch's counter cannot watch it."""
    try:
        with counting() as counter:
            inputs(model)
    except Exception:  # a forward that no dispatch mode can look into
        return 0
    return int(counter.get_total_flops()) // 2
