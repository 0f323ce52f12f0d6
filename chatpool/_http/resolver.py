"""Name look-ups. Nothing can abort one that hangs, so each runs in a daemon thread that need not be waited for.

An answer serves all connections of the next ten seconds, as with aiohttp's resolver. They begin with its addresses in
turn, so that each server gets its share of them.
"""

from __future__ import annotations

import copy
import itertools
import math
import socket
import threading
import time
from concurrent.futures import Future, wait
from ipaddress import ip_address
from typing import Any

from .cancel import CancelScope

_TICK = 0.05  # seconds between two checks whether a waiting attempt was aborted
_FRESH = 10.0  # seconds for which an answer is used


class _LookUp(Future["list[Any]"]):
    """A look-up that is under way or was answered."""

    def __init__(self) -> None:
        super().__init__()
        self.stale_at = math.inf


class Resolver:
    """Looks names up; one look-up serves all calls that need the same name meanwhile and soon after."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._look_ups: dict[tuple[Any, ...], _LookUp] = {}
        self._turn = 0

    def look_up(self, scope: CancelScope, *asked: Any) -> list[Any]:
        """Return what ``socket.getaddrinfo`` returns; raise its errors, or TimeoutError if the attempt is aborted."""
        if _is_address(asked[0]):
            return socket.getaddrinfo(*asked)
        with self._lock:
            found = self._look_ups.get(asked)
            if found is None or time.monotonic() >= found.stale_at:
                found = self._start(asked)
        while not scope.is_cut and not found.done():
            wait([found], _TICK)
        if not found.done():
            raise TimeoutError("the look-up of the name was aborted")
        failure = found.exception()
        if failure is not None:
            raise copy.copy(failure)
        with self._lock:
            turn, self._turn = self._turn, self._turn + 1
        return _begin_with(turn, found.result())

    def forget(self, *asked: Any) -> None:
        """Look a name up again next time: none of its addresses could be reached."""
        with self._lock:
            found = self._look_ups.get(asked)
            if found is not None and found.done():
                del self._look_ups[asked]

    def _start(self, asked: tuple[Any, ...]) -> _LookUp:
        look_up = _LookUp()
        try:
            threading.Thread(target=self._run, args=(asked, look_up), name="chatpool-lookup", daemon=True).start()
            self._look_ups[asked] = look_up  # last: Ctrl-C must not leave a look-up that nobody makes
        except RuntimeError as failure:  # no thread can be started
            look_up.set_exception(OSError(f"the name cannot be looked up: {failure}"))
        return look_up

    def _run(self, asked: tuple[Any, ...], look_up: _LookUp) -> None:
        try:
            found = socket.getaddrinfo(*asked)
        except Exception as failure:  # noqa: BLE001 - raised again in the thread that asked
            with self._lock:
                self._look_ups.pop(asked, None)
            look_up.set_exception(failure)
        else:
            look_up.stale_at = time.monotonic() + _FRESH
            look_up.set_result(found)


def _begin_with(turn: int, found: list[Any]) -> list[Any]:
    """Return addresses with another one first in each turn: of those alike, as systems put broken kinds last."""
    alike = sum(1 for _ in itertools.takewhile(lambda address: address[0] == found[0][0], found)) or 1
    first = turn % alike
    return found[first:alike] + found[:first] + found[alike:]


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
