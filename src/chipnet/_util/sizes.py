"""How small and how large may a size be? One table, whether it stands on the command line, in a file or in a name.

Beyond the most it is a slip of the pen, or meant to do harm: it would take the machine's memory, or never end.
"""

from __future__ import annotations

import numbers
from typing import Any

from chipnet.errors import ConfigError

MIN_OF = {
    **dict.fromkeys(("threads", "round_to", "num_classes", "in_channels"), 1),
    **dict.fromkeys(("batch", "batch_size", "static_batch", "images", "opset"), 1),
    **dict.fromkeys(("min_channels", "seed"), 0),
}
"""The least that a size may be; others have no least here."""
MAX_OF = {
    **dict.fromkeys(("train", "prune", "finetune", "epochs"), 10**6),
    **dict.fromkeys(("batch", "batch_size", "static_batch", "images"), 10**7),
    **dict.fromkeys(("threads", "workers", "devices"), 1024),
    "image_size": 2**14,
    "num_classes": 10**6,
    "in_channels": 10**4,
    "limit": 10**12,
    "limit_test": 10**12,
    "seed": 2**63 - 1,
    "depth": 2000,
}
"""The most that a size may be."""
MAX = 10**9
"""That of others; of the numbers in one tensor; and of the parameters of a network that a name makes."""


def too_large(name: str, value: Any, called: str = "") -> str:
    """What is wrong with a size that nothing is built for, or nothing. What is no whole number is not judged.

    Args:
        name: of the size, in the tables.
        value: to be judged.
        called: what to call it; by default its name.
    """
    most = MAX_OF.get(name, MAX)
    integral = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integral or value <= most:
        return ""
    shown = value if value < 10**24 else "a number of many digits"
    return f"{called or name} must be at most {most:,}, not {shown}"


def wrong(name: str, value: Any, called: str = "") -> str:
    """What is wrong with a size, too small or too large, or nothing. See `too_large`.

    >>> wrong("threads", 0), wrong("threads", 4), wrong("batch", 10**11, "--batch")
    ('threads must be at least 1, not 0', '', '--batch must be at most 10,000,000, not 100000000000')
    """
    minimum = MIN_OF.get(name)
    if isinstance(value, int) and minimum is not None and value < minimum:
        return f"{called or name} must be at least {minimum}, not {value}"
    return too_large(name, value, called)


def check_size(name: str, value: int, called: str = "") -> None:
    """Refuse a size that is too small or too large.

    Raises:
        ConfigError: it is.
    """
    if said := wrong(name, value, called):
        raise ConfigError(f"{said}.")
