"""Imports that are put off until a pool is used, made so that a fork cannot break them.

A thread that imports a module holds that module's lock. If another thread forks meanwhile, the child inherits the lock,
held for ever by a thread that does not exist there, and hangs at its own first use. So a fork waits for these imports.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

from .retry import load_backoff

_lock = threading.RLock()  # reentrant: the thread that imports may fork itself, in an import hook of somebody else's


@contextlib.contextmanager
def forks_wait() -> Iterator[None]:
    """Import something late within this."""
    with _lock:
        yield


def preload() -> None:
    """Import what the first call would import, while there are file descriptors to do it with."""
    with forks_wait():
        load_backoff()
        "localhost".encode("idna")  # socket.getaddrinfo does so, which imports stringprep


def _release() -> None:
    _lock.release()


def _start_afresh() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lambda: _lock.acquire(), after_in_parent=_release, after_in_child=_start_afresh)
