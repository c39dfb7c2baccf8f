"""The global random generators of Python, NumPy and PyTorch: seeded, read, put back, or lent for a while."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """For initial weights, networks' own randomness and other people's data."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generators() -> dict[str, Any]:
    """Their states, as tensors and plain values."""
    numpy: Any = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_generators(states: dict[str, Any]) -> None:
    """Continue where `generators` was called."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


class OwnRandomness:
    """Random numbers of its own for somebody else's code: every ``with`` goes on where the last one ended.

    What runs inside depends on the seed alone, and nothing outside depends on it.

    Example:
        >>> own, again = OwnRandomness(3), OwnRandomness(3)
        >>> with own:
        ...     first = torch.rand(1)
        >>> noise = torch.rand(1)  # draws from the usual generator
        >>> with own:
        ...     second = torch.rand(1)
        >>> with again:
        ...     both = torch.rand(1), torch.rand(1)
        >>> both == (first, second)
        True
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._inside: dict[str, Any] | None = None

    def __enter__(self) -> None:
        self._outside = generators()
        if self._inside is None:
            seed_everything(self._seed)
        else:
            set_generators(self._inside)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside = generators()
        set_generators(self._outside)
