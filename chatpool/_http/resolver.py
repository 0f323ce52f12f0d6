"""Name look-ups. Nothing can abort one that hangs, so each runs in a daemon thread that need not be waited for."""

from __future__ import annotations

import copy
import socket
import threading
from concurrent.futures import Future, wait
from ipaddress import ip_address
from typing import Any

from .cancel import CancelScope

_TICK = 0.05  # seconds between two checks whether a waiting attempt was aborted


class Resolver:
    """Looks names up; one look-up serves all calls that need the same name meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[tuple[Any, ...], Future[list[Any]]] = {}

    def look_up(self, scope: CancelScope, host: str, *details: Any) -> list[Any]:
        """Return what ``socket.getaddrinfo`` returns; raise its errors, or TimeoutError if the attempt is aborted."""
        if _is_address(host):
            return socket.getaddrinfo(host, *details)
        with self._lock:
            found = self._under_way.get((host, *details)) or self._start(host, *details)
        while not scope.is_cut and not found.done():
            wait([found], _TICK)
        if not found.done():
            raise TimeoutError("the look-up of the name was aborted")
        failure = found.exception()
        if failure is not None:
            raise copy.copy(failure)
        return found.result()

    def _start(self, *asked: Any) -> Future[list[Any]]:
        future: Future[list[Any]] = Future()
        try:
            threading.Thread(target=self._run, args=(asked, future), name="chatpool-lookup", daemon=True).start()
            self._under_way[asked] = future  # last: Ctrl-C must not leave a look-up that nobody makes
        except RuntimeError as failure:  # no thread can be started
            future.set_exception(OSError(f"the name cannot be looked up: {failure}"))
        return future

    def _run(self, asked: tuple[Any, ...], future: Future[list[Any]]) -> None:
        try:
            found: list[Any] | Exception = socket.getaddrinfo(*asked)
        except Exception as failure:  # noqa: BLE001 - raised again in the thread that asked
            found = failure
        with self._lock:
            self._under_way.pop(asked, None)
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found)


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
