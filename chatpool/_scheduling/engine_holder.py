"""A pool's engine in this process: made at its first use, and another one in each forked child."""

from __future__ import annotations

import os
import threading
from concurrent.futures import wait

from chatpool._http.session import Session
from chatpool._protocol.settings import Settings
from chatpool.errors import PoolClosedError

from .engine import Core, Engine
from .registry import engine_for


class EngineHolder:
    """``is_shared``: the pool was unpickled, and shares its engine with others of this process."""

    def __init__(
        self,
        settings: Settings,
        session: Session | None,
        user_agent: str,
        *,
        is_shared: bool = False,
        is_closed: bool = False,
    ) -> None:
        self._settings, self._session, self._user_agent = settings, session, user_agent
        self._is_shared, self.is_closed = is_shared, is_closed
        self.pool_id = object()  # by which an engine distinguishes the jobs of several pools
        # One engine for each process that uses the pool; a parent's stays here, unused, after a fork.
        self._engines: dict[int, Engine] = {}
        self._making: dict[int, threading.Lock] = {}

    def get(self) -> Engine:
        """Return this process's engine. If several threads need it first, one makes it. Raises PoolClosedError."""
        if self.is_closed:
            raise PoolClosedError("this pool is closed; make a new one")
        pid = os.getpid()
        engine = self._engines.get(pid)
        if engine is None:
            # A lock for each process: in a forked child, the parent's might be held for ever.
            with self._making.setdefault(pid, threading.Lock()):
                engine = self._engines.get(pid)
                if engine is None:
                    self._engines[pid] = engine = self._make()
        return engine

    def wait(self) -> None:
        """Wait for the pool's Futures."""
        engine = self._engines.get(os.getpid())
        if engine is not None:
            wait(engine.futures_of(self.pool_id))

    def close(self) -> None:
        """Close the engine; cancel only the pool's own jobs if others use it."""
        self.is_closed = True
        engine = self._engines.pop(os.getpid(), None)
        if engine is None:
            return
        if self._is_shared:
            engine.cancel_pool(self.pool_id)
        else:
            engine.close()

    def _make(self) -> Engine:
        if not self._is_shared:
            return Engine(self._settings, Core(self._settings, self._session, self._user_agent))
        import pickle  # noqa: PLC0415 - the pool was unpickled, so that this finds it loaded

        key = b"" if self._session is None else pickle.dumps(self._session)
        return engine_for(self._settings, self._session, key, self._user_agent)
