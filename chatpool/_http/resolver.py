"""Look-ups of names. Nothing can cut one that hangs, so each has a daemon thread, and who waits for it can go."""

from __future__ import annotations

import copy
import socket
import threading
from concurrent.futures import Future, wait
from ipaddress import ip_address
from typing import Any

from .cancel import CancelScope

_TICK = 0.05  # seconds between two looks whether a waiting call was cut


class Resolver:
    """Looks names up; one look-up serves all who ask for the same name meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[tuple[Any, ...], Future[list[Any]]] = {}

    def look_up(self, scope: CancelScope, host: str, *details: Any) -> list[Any]:
        """Return what ``socket.getaddrinfo`` returns; raise what it raises, or TimeoutError if the try is cut."""
        if _is_address(host):
            return socket.getaddrinfo(host, *details)
        with self._lock:
            found = self._under_way.get((host, *details)) or self._start(host, *details)
        while not scope.is_cut and not found.done():
            wait([found], _TICK)
        if not found.done():
            raise TimeoutError("the look-up of the name was cut")
        failure = found.exception()
        if failure is not None:
            raise copy.copy(failure)
        return found.result()

    def _start(self, *asked: Any) -> Future[list[Any]]:
        future = self._under_way[asked] = Future()
        try:
            threading.Thread(target=self._run, args=(asked, future), name="chatpool-lookup", daemon=True).start()
        except RuntimeError as failure:  # no thread to be had
            del self._under_way[asked]
            future.set_exception(OSError(f"the name cannot be looked up: {failure}"))
        return future

    def _run(self, asked: tuple[Any, ...], future: Future[list[Any]]) -> None:
        try:
            found: list[Any] | Exception = socket.getaddrinfo(*asked)
        except Exception as failure:  # noqa: BLE001 - raised again where the name was asked for
            found = failure
        with self._lock:
            del self._under_way[asked]
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
