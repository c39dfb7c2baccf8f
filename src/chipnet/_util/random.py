"""Random numbers: seeds of streams, and the state of the global generators of Python, NumPy and PyTorch."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any

import numpy as np
import torch

from chipnet._util.sizes import check_size


def stream_seed(seed: int, *parts: int) -> int:
    """One non-negative 63-bit seed from several integers, the same on every machine (`numpy.random.SeedSequence`).

    torch's CPU generator reads only the low 32 bits of a seed, so sums such as seed + epoch would give
    neighbouring runs each other's streams; hashed, they have nothing in common. The parts are a spawn key: as more
    entropy, `stream_seed(7)` and `stream_seed(7, 0)` would be one.

    Args:
        seed: from 0 to 2**63 − 1.
        parts: such as an epoch and an image; not negative.

    Raises:
        ConfigError: the seed is too small or too large.

    Example:
        >>> len({stream_seed(0, 1), stream_seed(1, 0), stream_seed(1), stream_seed(1, 0, 0)})
        4
    """
    check_size("seed", seed)
    return int(np.random.SeedSequence(int(seed), spawn_key=parts).generate_state(1, np.uint64)[0]) >> 1


def seed_everything(seed: int) -> None:
    """Seed all three, for initial weights, networks' own randomness and other people's data."""
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
