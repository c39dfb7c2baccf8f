"""Files are written whole or not at all: one writer, for every file that appears at once.

The new content stands under another name in the same folder until it is complete and on the disk; one rename then
puts it in its place. A target that is a link stays one: the file that it points to is replaced, as if it had been
opened. A file that is replaced keeps its permissions.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(
    path: str | os.PathLike[str], suffix: str = "", before: str | os.PathLike[str] | None = None
) -> Iterator[Path]:
    """Inside, a path of its own to write a file to; after it, the file is at ``path``.

    Whatever goes wrong, Ctrl-C included, ``path`` holds its old content or all of the new, and nothing else
    is left.

    Args:
        path: where to; the folder must exist.
        suffix: of the temporary path, for writers that look at it.
        before: where the old file goes, in the same folder. Both are renamed at the end, the old one first: at
            every moment one of the two names has a whole file, on file systems without links too.

    Raises:
        OSError: the file could not be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     [p.name for p in Path(folder).iterdir()]
        ['a.txt']
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:32]}.{secrets.token_hex(8)}.tmp{suffix}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())  # otherwise a crash may leave the new name on an empty file
        if target.is_file():
            os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        if before is not None and target.exists():
            os.replace(target, before)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(
    path: str | os.PathLike[str], content: bytes | memoryview, before: str | os.PathLike[str] | None = None
) -> None:
    """Put ``content`` at ``path``, whole or not at all. What is no file (``/dev/stdout``, a pipe) is written to.

    ``before`` is where an older file goes; see `replacing`.

    Raises:
        OSError: the file could not be written; an older one is as it was.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(content)
        return
    with replacing(path, before=before) as temporary, open(temporary, "xb") as file:
        file.write(content)


def write_json(path: str | os.PathLike[str], data: Any, indent: int | None = 2) -> None:
    """Write ``data`` as JSON, all or nothing. NaN and infinity are refused: they are not JSON.

    Raises:
        OSError: the file could not be written; an older file at ``path`` is as it was.
        ValueError: a number is not finite.
    """
    write_atomically(path, (json.dumps(data, indent=indent, allow_nan=False) + "\n").encode())
