"""One live engine for equal settings, for all pools of this process that came out of a pickle.

A cluster's thousands of small tasks each bring a pool of their own, and so share threads, connections, cool-down and
budgets. Between two tasks the threads go; the core, which is connections and limits, stays for the next.
"""

from __future__ import annotations

import os
import threading

from chatpool._http.session import Session
from chatpool._protocol.settings import Settings

from .engine import Core, Engine

_MOST = 8  # cores kept for those to come

_kept: list[tuple[Settings, bytes, Core]] = []  # the one used last is the last
_locks: dict[int, threading.Lock] = {}  # by process: in a forked child, the parent's might be held for ever


def engine_for(settings: Settings, session: Session | None, session_key: bytes, user_agent: str) -> Engine:
    """Return this process's engine for these settings; ``session_key``: equal for Sessions that are."""
    with _locks.setdefault(os.getpid(), threading.Lock()):
        core = _core_for(settings, session, session_key, user_agent)
        return core.engine() or Engine(settings, core)


def _core_for(settings: Settings, session: Session | None, session_key: bytes, user_agent: str) -> Core:
    for entry in _kept:
        if entry[:2] == (settings, session_key) and entry[2].pid == os.getpid():
            _kept.remove(entry)
            break
    else:
        entry = settings, session_key, Core(settings, session, user_agent)
    _kept.append(entry)
    del _kept[:-_MOST]
    return entry[2]
