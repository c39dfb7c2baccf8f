"""What PyTorch is set to around a call: inference mode, autocast."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def plainly(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function outside of the caller's inference mode and autocast regions.

    What it makes may be used in training later, where PyTorch refuses tensors of an inference mode, and is as exact
    as it is elsewhere. Without an inference mode gradients are recorded as around the call; within it they are not.

    Example:
        >>> with torch.inference_mode():
        ...     plainly(torch.ones)(1).is_inference(), torch.ones(1).is_inference()
        (False, True)
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with contextlib.ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return call
