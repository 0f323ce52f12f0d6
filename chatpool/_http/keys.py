"""Asks a callable for the API key: once for all threads, when there is none or a 401 shows that it has expired."""

from __future__ import annotations

import threading
import time
from typing import Callable

from chatpool._protocol.settings import check_key
from chatpool.errors import AuthenticationError, ConfigurationError

from .cancel import CancelScope

_LONGEST = 30.0  # seconds that the callable may take
_TICK = 0.05  # seconds between two looks at whether the call that waits was cancelled
_PAUSE = 1.0  # seconds without a 401, after which a key that was rejected when it was fresh is asked for again


class _Question:
    """One run of the callable, in a thread of its own: it may hang, and the calls that wait for it can be cancelled."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.is_over = threading.Event()
        self.key: str | None = None
        self.error: BaseException | None = None


class KeySource:
    """Belongs to one process. The lock guards all fields, and is held for arithmetic only."""

    def __init__(self, ask: Callable[[], str]) -> None:
        self._ask = ask
        self._name = f"api_key={getattr(ask, '__qualname__', None) or type(ask).__name__}"
        self._lock = threading.Lock()
        self._question: _Question | None = None  # the one that is not answered yet
        self._rejected_at = 0.0  # when a fresh key was rejected last
        self._key: str | None = None
        self._keys_asked = 0  # how many keys the callable has returned
        self._is_renewal = self._was_accepted = self._is_dead = False  # of this key
        self._thread = threading.local()  # .key: the one that this thread's latest request has

    def key(self, scope: CancelScope) -> str:
        """Return the key for a request of this thread. Raises AuthenticationError if there is none."""
        with self._lock:
            key, seen = self._key, self._keys_asked
            if self._is_dead and time.monotonic() - self._rejected_at > _PAUSE:
                key = None
        self._thread.key = self._renewed(seen, scope) if key is None else key
        return str(self._thread.key)

    def accepted(self) -> None:
        """Note that the server accepted this thread's latest request."""
        if not self._was_accepted and self._thread.key == self._key:
            self._was_accepted = True

    def renew(self, scope: CancelScope) -> bool:
        """Return whether there is another key than the one of this thread's latest request, which met a 401.

        A key that was asked for because of a 401, and meets one itself before it was ever accepted, is not renewed.
        """
        used: str | None = self._thread.key
        with self._lock:
            seen = self._keys_asked
            if used == self._key:
                self._is_dead = self._is_renewal and not self._was_accepted
            if self._is_dead:
                self._rejected_at = time.monotonic()
                return False
            if used != self._key:
                return True  # another thread has renewed it
        return self._renewed(seen, scope) != used

    def _renewed(self, seen: int, scope: CancelScope) -> str:
        """Return the key that came, or comes, after so many; it may be the same again."""
        with self._lock:
            if self._keys_asked != seen:
                return str(self._key)
            question = self._question
            if question is None:
                question = _Question()
                # First: Ctrl-C, or a lack of threads, must not leave a question that nobody answers.
                threading.Thread(target=self._answer, args=(question,), name="chatpool-key", daemon=True).start()
                self._question = question
        self._wait(question, scope)
        if question.error is not None:
            raise self._failure(f"raised {type(question.error).__name__}: {question.error}") from question.error
        return str(question.key)

    def _answer(self, question: _Question) -> None:
        try:
            question.key = self._checked(self._ask())
        except BaseException as error:  # noqa: BLE001 - every thread that waits raises it
            question.error = error
        with self._lock:
            self._question = None
            if question.key is not None:
                self._is_renewal, self._is_dead = self._key is not None, False
                self._was_accepted = self._was_accepted and question.key == self._key
                self._key = question.key
                self._keys_asked += 1
        question.is_over.set()

    def _wait(self, question: _Question, scope: CancelScope) -> None:
        while not question.is_over.wait(_TICK):
            if scope.is_cut:
                raise scope.error or scope.timeout_error()
            if time.monotonic() - question.began > _LONGEST:
                raise self._failure(f"did not return within {_LONGEST:g} s")

    def _checked(self, key: str) -> str:
        checked = check_key("its key", key)
        if checked is None:
            raise ConfigurationError("its key is empty")
        return checked

    def _failure(self, what: str) -> AuthenticationError:
        return AuthenticationError(f"no API key: {self._name} {what}", code="api_key_failed")
