"""A run's state on disk: one file, read without running code from it, and the one before it.

`write` puts the new file in place whole or not at all, and keeps the last one as `checkpoint-before.pt`: a
disk that is full, or a file that is cut off later, costs some minutes of training and not the run. Files are
renamed, not linked: not every file system has links.
"""

from __future__ import annotations

import errno
import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from chipnet._util.files import write_atomically
from chipnet._util.text import shell_command
from chipnet.errors import ChipNetError, LoadError

CHECKPOINT, BEFORE = "checkpoint.pt", "checkpoint-before.pt"
FORMAT = 3


def write(out: Path, state: dict[str, Any]) -> None:
    """Put `state` (tensors and plain values) at OUT/checkpoint.pt.

    Raises:
        ChipNetError: the file could not be written; the checkpoint before is as it was.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    path = out / CHECKPOINT
    try:
        write_atomically(path, buffer.getbuffer(), before=out / BEFORE)
    except OSError as error:
        mend = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        raise ChipNetError(
            f"cannot write the checkpoint {path} ({error.strerror or error}). The last one is intact: {mend}, "
            f"then continue with: {shell_command('prune', '--resume', out)}"
        ) from error


def there(out: Path) -> bool:
    """Is there a checkpoint, be it the one before?"""
    return any((out / name).exists() for name in (CHECKPOINT, BEFORE))


def read(out: Path) -> dict[str, Any] | None:
    """The newest state that can be read; None where none was written yet.

    Raises:
        LoadError: neither checkpoint can be read, with what is wrong with each.
    """
    problems = []
    for path in (out / CHECKPOINT, out / BEFORE):
        if not path.exists():
            continue
        try:
            with zipfile.ZipFile(path) as parts:  # PyTorch reads tensors without looking at their checksums
                if (wrong := parts.testzip()) is not None:
                    raise ValueError(f"{wrong} does not have its checksum")
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # bytes that are no pickle can fail in any way
            why = (str(error) or type(error).__name__).splitlines()[0][:100]
            problems.append(f"{path} is truncated or damaged ({why})")
            continue
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            problems.append(f"{path} was not written by this version of chipnet")
            continue
        return state
    if problems:
        raise LoadError(
            "; ".join(problems)
            + f". Start again with: {shell_command('prune', '--config', out / 'config.yaml')}"
        )
    return None


def set_aside(out: Path) -> None:
    """Give checkpoints that cannot be read another name: nothing is lost, and the run starts again."""
    for name in (CHECKPOINT, BEFORE):
        if (out / name).exists():
            (out / name).replace(out / f"unreadable-{name}")


def remove(out: Path) -> None:
    """Delete the checkpoints."""
    for name in (CHECKPOINT, BEFORE):
        (out / name).unlink(missing_ok=True)
