"""One process at a time: a lock on a folder, held while a block lasts and gone with its process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chipnet.errors import ConfigError

GRID, RUN = ".lock", ".writing"
"""Names of lock files: processes of one grid lock the first to share out its runs, and whoever writes a run locks
the second."""


@contextmanager
def claimed(folder: Path, name: str = GRID) -> Iterator[bool]:
    """Whether ``folder`` is this process's while the block lasts; False: another's."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    except (NotImplementedError, OSError) as error:  # a file system that has no locks
        logging.getLogger("chipnet").warning(
            "%s cannot be locked (%s): let one run write to it", folder, error
        )
        yield True
        return
    try:
        yield True
    finally:
        if name == RUN:  # a run folder holds results only; whoever waits for the old file looks again
            (folder / name).unlink(missing_ok=True)
        lock.release()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """While the block lasts, no other process writes a run into ``folder``.

    Raises:
        ConfigError: one does.
    """
    with claimed(folder, RUN) as mine:
        if not mine:
            raise ConfigError(
                f"another process writes a run into {folder} now. Wait for its end, or give another --out."
            )
        yield
