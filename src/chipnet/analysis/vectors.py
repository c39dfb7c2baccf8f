"""Masks and scores that users hand over: one number for every gate, read in one place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from chipnet._util.text import amount
from chipnet.errors import PlanError

_HOW = "Masks come from harden(), pruner.mask, Plan.mask or a comparison such as scores > 0.5"


def read_mask(mask: Any, gates: int, batch: bool = False) -> Tensor:
    """A Boolean mask ``[gates]``, or with ``batch`` several: ``[..., gates]``. A tensor's stays on its device.

    Args:
        mask: a tensor, a NumPy array or a list: of Booleans, or of numbers that are all 0 or 1.
        gates: how many the network has.

    Raises:
        PlanError: it is none of these, has another shape, or other values.

    Example:
        >>> read_mask([1, 0, 1], 3)
        tensor([ True, False,  True])
    """
    values = _numbers(mask, "the mask", _HOW)
    _fits(values, gates, batch, "the mask", _HOW)
    if values.dtype == torch.bool:
        return values
    if not bool(((values == 0) | (values == 1)).all()):
        odd = values[(values != 0) & (values != 1)][0].item()
        raise PlanError(
            f"the mask must hold 0 and 1 (or False and True), and it holds {odd:g}: a gate is open or shut. "
            f"{_HOW}; for scores use structure.harden(scores, budget)."
        )
    return values == 1


def read_scores(scores: Any, gates: int) -> Tensor:
    """Scores ``[gates]`` in float64 on the CPU.

    Raises:
        PlanError: they are no numbers, have another shape, or are not finite.

    Example:
        >>> read_scores([3, 1, 2], 3)
        tensor([3., 1., 2.], dtype=torch.float64)
    """
    how = "Give one finite number for every gate of the structure, the largest for those to keep"
    values = _numbers(scores, "the scores", how).cpu().double()
    _fits(values, gates, False, "the scores", how)
    if not bool(torch.isfinite(values).all()):
        odd = values[~torch.isfinite(values)]
        raise PlanError(
            f"{len(odd):,} of {amount(gates, 'score')} are NaN or infinite ({odd[0].item():g} first). {how}."
        )
    return values


def _numbers(given: Any, what: str, how: str) -> Tensor:
    """Real numbers as a tensor."""
    try:
        if not isinstance(given, (Tensor, np.ndarray, list, tuple)):
            raise TypeError(f"it is a {type(given).__name__}")
        values = torch.as_tensor(given).detach()
        if values.is_complex() or values.is_quantized:
            raise TypeError(f"it is a tensor of {values.dtype}")
    except (TypeError, ValueError, RuntimeError, OverflowError, NotImplementedError) as error:
        said = str(error).split("\n")[0]
        raise PlanError(
            f"{what} must be a tensor, an array or a list of real numbers ({said}). {how}."
        ) from error
    return values


def _fits(values: Tensor, gates: int, batch: bool, what: str, how: str) -> None:
    wrong = values.dim() < 1 or values.shape[-1] != gates if batch else values.shape != (gates,)
    if wrong:
        verb = "have" if what.endswith("s") else "has"
        raise PlanError(
            f"{what} {verb} shape {tuple(values.shape)}; this network has {amount(gates, 'gate')}. {how}."
        )
