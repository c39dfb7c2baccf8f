"""Which lines of code are the user's? Those that are neither PyTorch's nor chipnet's."""

from __future__ import annotations

import os
import sys
from types import FrameType

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))).replace("\\", "/")
_NETWORKS = f"{_OURS}/lab/models/"
"""Networks of ours are read as anybody's."""


def is_users(file: str) -> bool:
    """Is the code in ``file`` the user's?

    Example:
        >>> is_users("/home/me/net.py"), is_users("/lib/torch/nn/modules/conv.py"), is_users(__file__)
        (True, False, False)
    """
    file = file.replace("\\", "/")
    return "/torch/" not in file and (not file.startswith(f"{_OURS}/") or file.startswith(_NETWORKS))


def users_frame() -> FrameType | None:
    """The innermost frame of the user's code that runs now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return frame
