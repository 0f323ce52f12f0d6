"""Name look-ups. Nothing can abort one that hangs, so each runs in a daemon thread that need not be waited for.

An answer serves all connections for ten seconds, as with aiohttp's resolver. They begin with its addresses in turn, so
that each server gets its share of them; one that could not be reached comes last for ten seconds.
"""

from __future__ import annotations

import copy
import itertools
import socket
import threading
import time
from concurrent.futures import Future, wait
from ipaddress import ip_address
from typing import Any

from .cancel import CancelScope

_TICK = 0.05  # seconds between two checks whether a waiting attempt was aborted
_FRESH = 10.0  # seconds for which an answer is used, and a failed address comes last

_Asked = tuple[Any, ...]  # the arguments of socket.getaddrinfo
_Found = list[Any]  # what it returns


class Resolver:
    """Looks names up; one look-up serves all calls that need the same name meanwhile and soon after."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[_Asked, Future[_Found]] = {}
        # Not as Futures: Ctrl-C in the middle of one's method leaves its lock taken.
        self._answers: dict[_Asked, tuple[float, _Found]] = {}  # with the time until when each is used
        self._failed: dict[Any, float] = {}  # until when each address comes last
        self._turns = itertools.count()

    def look_up(self, scope: CancelScope, *asked: Any) -> _Found:
        """Return what ``socket.getaddrinfo`` returns; raise its errors, or TimeoutError if the attempt is aborted."""
        if _is_address(asked[0]):
            return socket.getaddrinfo(*asked)
        with self._lock:
            stale_at, found = self._answers.get(asked, (0.0, []))
            is_known = time.monotonic() < stale_at
            look_up = None if is_known else self._under_way.get(asked) or self._start(asked)
        if look_up is not None:
            found = _wait_for(look_up, scope)
        now = time.monotonic()
        in_turn = _begin_with(next(self._turns), found)
        return sorted(in_turn, key=lambda address: self._failed.get(address[4], 0.0) > now)

    def note_failure(self, address: Any) -> None:
        """Note that an address cannot be reached."""
        now = time.monotonic()
        with self._lock:
            self._failed = {failed: until for failed, until in self._failed.items() if until > now}
            self._failed[address] = now + _FRESH

    def forget(self, *asked: Any) -> None:
        """Look a name up again next time: none of its addresses could be reached."""
        with self._lock:
            self._answers.pop(asked, None)

    def _start(self, asked: _Asked) -> Future[_Found]:
        future: Future[_Found] = Future()
        try:
            threading.Thread(target=self._run, args=(asked, future), name="chatpool-lookup", daemon=True).start()
            self._under_way[asked] = future  # last: Ctrl-C must not leave a look-up that nobody makes
        except RuntimeError as failure:  # no thread can be started
            future.set_exception(OSError(f"the name cannot be looked up: {failure}"))
        return future

    def _run(self, asked: _Asked, future: Future[_Found]) -> None:
        try:
            found: _Found | Exception = socket.getaddrinfo(*asked)
        except Exception as failure:  # noqa: BLE001 - raised again in the thread that asked
            found = failure
        with self._lock:
            self._under_way.pop(asked, None)
            if not isinstance(found, Exception):
                self._answers[asked] = time.monotonic() + _FRESH, found
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found)


def _wait_for(look_up: Future[_Found], scope: CancelScope) -> _Found:
    while not scope.is_cut and not look_up.done():
        wait([look_up], _TICK)
    if not look_up.done():
        raise TimeoutError("the look-up of the name was aborted")
    failure = look_up.exception()
    if failure is not None:
        raise copy.copy(failure)
    return look_up.result()


def _begin_with(turn: int, found: _Found) -> _Found:
    """Return addresses, beginning with another one in each turn: one of the family that the system puts first, as there
    may be no route for the others."""
    leading = sum(1 for _ in itertools.takewhile(lambda address: address[0] == found[0][0], found)) or 1
    first = turn % leading
    return found[first:leading] + found[:first] + found[leading:]


def _is_address(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
