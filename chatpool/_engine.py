"""What one process needs to make calls: Session, limits, threads; and one call, step by step."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Callable

from ._call import Call, Try
from ._limits import BACK_OFF, Governor
from ._messages import BYTES_A_TOKEN, CHAT_PATH, build_body, encode, estimate_tokens, path_of
from ._replies import Reply, check_answer, read_completion, read_document
from ._retry import TryAgain, delay_before_retry, is_fatal_for_all, is_transient, load, persist
from ._runs import FutureRun, Run
from ._settings import Settings
from ._threads import Resolver, Watch, Workers, in_worker
from ._transport import Transport, abandoned
from ._turns import Turns, away
from .errors import (
    APIConnectionError,
    CallError,
    InternalServerError,
    NotSentError,
    ParseError,
    PoolClosedError,
    RateLimitError,
    SpendLimitError,
)
from .results import ChatResult, Retry

if TYPE_CHECKING:
    from requests import Session

_logger = logging.getLogger("chatpool")

_MOST_SENDS = 5  # times max_tries: so often a prompt is sent at most, refusals for rate included

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class Core:
    """What may outlive an engine: the limits, with what they have learned, and the Session. Has no threads."""

    def __init__(self, settings: Settings, session: Session | None, user_agent: str) -> None:
        load()  # while there are file descriptors to import with
        self.pid = os.getpid()
        self.governor = Governor(
            settings.max_workers,
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            longest_wait=settings.max_wait,
        )
        self.transport = Transport(settings, session, user_agent, Resolver().look_up)
        self.engine: Callable[[], Engine | None] = lambda: None  # the one that lives, if any
        self._finalizer = weakref.finalize(self, _release, self.pid, self.transport)
        self._finalizer.atexit = False


class Engine:
    """Everything of a pool that must not cross a fork. Made in each process at the first use, starts nothing itself."""

    def __init__(self, settings: Settings, core: Core) -> None:
        self.pid = core.pid
        self._settings, self._core = settings, core
        self._governor, self._transport = core.governor, core.transport
        core.engine = weakref.ref(self)
        self._workers = Workers(settings.max_workers)
        self._watch = Watch()
        self._runs: set[Run] = set()
        self._closed = False
        self._finalizer = weakref.finalize(self, _rest, self.pid, self._watch, self._workers.turns)
        self._finalizer.atexit = False
        _engines.add(self)

    @property
    def places(self) -> int:
        """How many calls may be in flight at once."""
        return self._settings.max_workers

    def share_budgets(self, part: float) -> None:
        """Keep to this part of the budgets from now on, because other processes have the rest."""
        self._governor.share_budgets(part)

    def start(self, run: Run, jobs: int, *, inline: bool = False) -> None:
        """Let the workers take so many jobs of a run; ``inline``: make them here and now, in this thread.

        A worker that waits for a run makes its calls itself: if it waited for other workers, it might wait for ever.
        """
        self._runs.add(run)
        if self._closed:  # looked at after the run is on the list: close() looks the other way round
            self.end(run)
            raise PoolClosedError("this pool is closed; make a new one")
        run.is_inline = inline = inline or (in_worker() and not isinstance(run, FutureRun))
        if not inline or jobs > 1:
            self._workers.offer(run, jobs)
        if inline or not self._workers.alive:  # no thread could be started
            while (job := run.next_job(may_wait=True)) is not None:
                job()

    def offer(self, run: Run) -> None:
        """Remember that a run has calls to take up again. The worker that brought one back looks for work next."""
        self._workers.offer(run, 0, due=run.next_due)

    def busy_elsewhere(self) -> AbstractContextManager[None]:
        """Count this thread, while it runs ``parse`` or a callback, as one that may wait for others."""
        return self._workers.busy_elsewhere()

    def end(self, run: Run) -> None:
        """Forget a run."""
        self._runs.discard(run)

    def runs_of(self, tenant: object) -> list[Run]:
        """Return one pool's runs that are not done."""
        return [run for run in list(self._runs) if run.tenant is tenant]

    def futures_of(self, tenant: object) -> list[Future[ChatResult]]:
        """Return what was submitted through one pool and is not done."""
        return [run.future for run in self.runs_of(tenant) if isinstance(run, FutureRun)]

    def close(self) -> None:
        """Give up what is under way, end the threads, close the connections."""
        self._closed = True
        self.give_up(list(self._runs), "the pool was closed")
        self._watch.close()
        self._workers.close()
        self._watch.join()
        self._transport.close()

    def give_up(self, runs: list[Run], why: str) -> None:
        """Stop runs at once, cutting what is on the wire."""
        for run in runs:
            run.stop(lambda: NotSentError(f"given up: {why}"), cut=True)

    def give_up_at_exit(self) -> None:
        """Stop the runs that nobody waits for any more, now that the main thread is through."""
        runs = [run for run in list(self._runs) if not _is_awaited(run)]
        lost = sum(isinstance(run, FutureRun) for run in runs)
        if lost and getattr(sys, "last_value", None) is None:  # not when an exception ends the program
            told = f"{lost} submitted prompts were given up at exit; wait for their futures, or use 'with ChatPool()'"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
        self.give_up(runs, "the interpreter is exiting")
        if len(runs) == len(self._runs) or not self._runs:
            self._workers.let_go()

    def complete(self, run: Run, call: Call) -> ChatResult | None:
        """Carry a call through its tries to its outcome.

        None: it is to be taken up again when it is due, because meanwhile its thread is needed for others.
        """
        error: CallError | None = None
        try:
            if not call.payload:
                self._prepare(run, call)
            if not call.is_parked or self._back_off(run, call):
                persist(lambda: self._attempt(run, call))
            else:
                error = call.stopped or call.last_error
        except TryAgain as last:
            error = call.stopped or last.error
        except CallError as final:
            error = final
        except _Foreign as raised:
            raise raised.error from None
        except BaseException:  # Ctrl-C in ask may have come when just this was about to be done
            self._let_go(call)
            raise
        if call.is_parked:
            return None
        if error is None:
            self._governor.answered()
        elif is_fatal_for_all(error) or call.gave_up:
            run.stop(functools.partial(not_sent, error), cut=False)
        elif isinstance(error, SpendLimitError):
            run.stop(functools.partial(SpendLimitError, str(error), code=error.code), cut=False)
        if error is not None:
            _logger.warning("prompt %d failed: %s", call.index, _name(error))
        return call.result(error)

    def _prepare(self, run: Run, call: Call) -> None:
        settings = self._settings
        call.path = path_of(call.prompt)
        body = build_body(call.prompt, model=settings.model, system=settings.system, params=run.params)
        call.payload = encode(body, f"prompt {call.index}")
        if settings.tokens_per_minute:
            call.tokens = estimate_tokens(call.payload, body)

    def _attempt(self, run: Run, call: Call) -> None:
        """Make one try. Sets the call's value, or raises TryAgain or the final error."""
        error: CallError | None = None
        try:
            self._judge(run, call, self._exchange(run, call))
        except CallError as failure:
            error = failure
        if error is None:
            error = self._parse(call)
        if error is not None:  # outside the except block, so that nothing hangs on the error as its context
            raise self._verdict(run, call, error)

    def _exchange(self, run: Run, call: Call) -> Reply:
        """Send the request and read the reply, holding a place in flight for just so long."""
        try:
            self._governor.enter(call)
            if run.allowance is not None:
                run.allowance.claim(call.last_error)
            call.begin_try(self._governor.answers)
            self._watch.add(call)
            return self._transport.send(call)
        except APIConnectionError as failure:
            if is_transient(failure) and failure.code != "stale_connection":
                self._governor.failed(call, failure)
            raise
        finally:
            self._let_go(call)

    def _let_go(self, call: Call) -> None:
        """Give back whatever a call holds; may be done twice."""
        self._watch.discard(call)
        self._governor.leave(call)

    def _judge(self, run: Run, call: Call, reply: Reply) -> None:
        """Take the answer out of a reply, and tell the governor what the reply says of the limits."""
        call.request_id = reply.request_id
        try:
            is_chat = call.path == CHAT_PATH
            call.completion = completion = read_completion(reply) if is_chat else read_document(reply)
        except RateLimitError as refusal:
            if is_transient(refusal) and (refusal.retry_after or 0) <= self._settings.max_wait:
                self._governor.refused(call, refusal.retry_after)
            raise
        except InternalServerError as failure:
            self._governor.failed(call, failure)
            raise
        except CallError:
            self._governor.taken(call, None)
            raise
        usage = completion.usage
        if usage is not None:
            call.usage = usage if call.usage is None else call.usage + usage
        self._governor.taken(call, usage.total_tokens if usage else None)
        if run.allowance is not None:
            guess = (len(call.payload) + len(completion.text or "")) // BYTES_A_TOKEN
            run.allowance.use(usage.total_tokens if usage else guess)
        if is_chat:
            check_answer(reply, completion)

    def _parse(self, call: Call) -> ParseError | None:
        """Set the call's value; return the error if ``parse`` refuses the text."""
        assert call.completion is not None
        text = call.completion.text
        try:
            if call.parse is None:
                call.value = text
            else:
                with self.busy_elsewhere(), away():
                    call.value = call.parse(text)
        except ValueError as refusal:
            name = type(refusal).__name__
            return ParseError(f"parse refused the answer: {name}: {self._transport.redact(str(refusal))}", code=name)
        except (CallError, TryAgain) as foreign:  # of another call, made within parse: not this one's failure
            raise _Foreign(foreign) from None
        return None

    def _verdict(self, run: Run, call: Call, error: CallError) -> Exception:
        """Return TryAgain with the wait for it if another try is due, else the error that ends the call."""
        settings = self._settings
        call.last_error, error.__traceback__ = error, None
        refused = isinstance(error, RateLimitError)
        if len(call.timeline) < call.attempts:  # it may have failed before it was sent
            name, now = type(error).__name__, time.monotonic()
            call.timeline.append(Try(call.sent_at - call.started, now - call.started, name))
        # A refusal for rate costs nothing as long as the pool gets on; it shows only that we are many.
        call.tries += not (refused and self._governor.answers > call.answers_seen)
        if call.stopped is not None or not is_transient(error):
            return error
        if call.tries >= settings.max_tries or call.attempts >= _MOST_SENDS * settings.max_tries:
            return error
        delay = delay_before_retry(error, call.tries, settings.max_wait)
        if delay > settings.max_wait:
            return error
        wait = delay
        if refused:
            delay = 0.0  # the governor holds the whole pool back for that long
        if time.monotonic() + delay >= call.ends:
            return call.past_deadline() if call.ends == call.deadline else error
        _logger.info("prompt %d: try %d failed (%s), next in %.2f s", call.index, call.attempts, _name(error), delay)
        call.due = time.monotonic() + delay
        if run.notice is not None:
            run.notice(Retry(call.index, call.prompt, call.attempts, error, wait))
        return TryAgain(error, lambda: self._back_off(run, call))

    def _back_off(self, run: Run, call: Call) -> bool:
        """Wait until the call is due; False: there will be no try now."""
        goes_on = self._workers.wait(call, BACK_OFF, must_stay=run.is_inline)
        call.is_parked = not goes_on and call.stopped is None and time.monotonic() < call.ends
        return goes_on


class _Foreign(Exception):
    """Carries an exception of the caller's past the handlers of our own."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _name(error: CallError) -> str:
    """What may be logged of an error: not its message, which can quote the prompt."""
    words = (type(error).__name__, error.status_code, error.code, error.request_id)
    return " ".join(str(word) for word in words if word is not None)


def _is_awaited(run: Run) -> bool:
    owner = run.owner
    return owner is not None and owner.is_alive() and not owner.daemon and owner is not threading.main_thread()


def not_sent(cause: CallError) -> NotSentError:
    """Return the error of a call that was not made, because another one showed that none can succeed."""
    if isinstance(cause, NotSentError) and isinstance(cause.__cause__, CallError):
        cause = cause.__cause__
    error = NotSentError(f"not sent, because no call can succeed: {cause}", code=cause.code)
    error.__cause__ = cause
    return error


def _rest(pid: int, watch: Watch, turns: Turns) -> None:
    """End what a collected engine started, in the process that made it."""
    if os.getpid() == pid:
        watch.close()
        turns.close()


def _release(pid: int, transport: Transport) -> None:
    """Close what a collected core held, in the process that made it."""
    if os.getpid() == pid:
        transport.close()
    else:
        abandoned.append(transport)


def _give_up_at_exit() -> None:
    for engine in _all_engines():
        if engine.pid == os.getpid():
            engine.give_up_at_exit()


def _all_engines() -> list[Engine]:
    while True:
        with contextlib.suppress(RuntimeError):  # another thread made one just now
            return list(_engines)


# Executors' threads are joined before atexit's functions run, and no public hook comes earlier. This one is run in
# reverse order of registration, so before the joining, which concurrent.futures registered when it was imported.
getattr(threading, "_register_atexit", atexit.register)(_give_up_at_exit)
