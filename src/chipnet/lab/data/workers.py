"""Workers of data loaders, and who ends them: the process that started them, nobody else.

Ctrl-C, `timeout`, systemd and SLURM signal every process of a run. A run finishes its step and saves, and needs its
workers for that.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader


def steady(worker: int, then: Callable[[int], Any] | None = None) -> None:
    """A worker's first act (`worker_init_fn`): Ctrl-C and SIGTERM are not for it, unless its parent sent them.

    Args:
        worker: its number.
        then: another `worker_init_fn`, called after that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere nobody says who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in threads to come, too
        threading.Thread(target=_wait_for, args=(os.getppid(),), daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if then is not None:
        then(worker)


def _wait_for(parent: int) -> None:
    """End this process once its parent says so, or is gone."""
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent or os.getppid() != parent:
            os._exit(0)


@contextmanager
def held_back() -> Iterator[None]:
    """Signals wait while steady workers are started: a worker begins with those blocked that its parent has
    blocked, so that none reaches it before its first act."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def steadied(loader: Any) -> Iterator[None]:
    """Inside, workers that a user's loader starts are steady, where it is or holds a `DataLoader`; after it, the
    loader is as it was."""
    found = [v for v in (loader, *getattr(loader, "__dict__", {}).values()) if isinstance(v, DataLoader)]
    before = [(one, one.worker_init_fn) for one in found]
    for one, then in before:
        one.worker_init_fn = functools.partial(steady, then=then)
    try:
        with held_back() if found else contextlib.nullcontext():
            yield
    finally:
        for one, then in before:
            one.worker_init_fn = then
