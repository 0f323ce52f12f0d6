"""ChatPool: many prompts to an OpenAI-compatible chat API, from threads."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from ._call import unsent
from ._engine import Engine
from ._limits import PLACES
from ._messages import Prompt, build_body, check_prompt, check_prompts
from ._progress import Progress
from ._runs import FutureRun, Indexed, Run
from ._settings import (
    DEFAULT_MAX_TRIES,
    DEFAULT_MAX_WAIT,
    DEFAULT_MAX_WORKERS,
    DEFAULT_MODEL,
    DEFAULT_TIMEOUT,
    Timeout,
    check_deadline,
    check_params,
    check_parse,
    find_key,
    has_credentials,
    make_settings,
)
from ._version import __version__
from .errors import ConfigurationError, NotSentError, PoolClosedError
from .journal import Journal, Ledger, PathLike
from .results import LOST_PARSE, Answers, ChatResult

if TYPE_CHECKING:
    from requests import Session

_READ_AHEAD = 4  # prompts that imap takes in ahead of its consumer, for each worker
_TICK = 0.1  # seconds between two looks at the bar
_NOTABLE = 0.1  # share of the workers' time spent waiting, from which on a limit is named
_LONG_TICK = 0.5  # seconds; on Windows an untimed wait could not be interrupted

_Parse = Callable[[str], Any]
_Params = Mapping[str, Any]
_R = TypeVar("_R", bound=Run)


class ChatPool:
    """Sends prompts to a chat API, ``max_workers`` at a time, and brings back every answer, or why there is none.

    One pool can be shared by any number of threads. It starts nothing until its first use, and its threads go when
    it is closed or collected. In a forked child, or unpickled elsewhere, it opens connections of its own.

    All times are in seconds. Everything but ``max_workers`` is keyword-only:

    ``max_workers``: calls in flight at most, over all uses of this pool. Default 20.
    ``model``: the model's name. Default ``DEFAULT_MODEL``.
    ``api_key``: default: the environment variable ``OPENAI_API_KEY``. A server other than OpenAI's may need none.
    ``base_url``: default: ``OPENAI_BASE_URL``, else OpenAI's. May carry a query string, such as Azure's api-version.
    ``system``: a system message put before every prompt that is a str.
    ``params``: body parameters of every call, such as ``{"temperature": 0, "max_tokens": 200}``.
    ``headers``: extra request headers. With credentials among them (Authorization, api-key, x-api-key), no key is
    taken from the environment.
    ``timeout``: (connect, read), or one number for both. read bounds the whole answer of one try. Default (5, 120).
    ``max_tries``: tries for one prompt. Default 6. A refusal for rate (429) costs one only if nothing else of this
    pool was answered since the last try; no prompt is sent more than 5 × ``max_tries`` times.
    ``max_time``: for one prompt, its tries and waits together, from its first try. Default: no bound.
    ``max_wait``: the longest wait between two tries; a server that asks for longer fails the call. Default 60.
    ``requests_per_minute``, ``tokens_per_minute``: budgets to keep to; sends are spread evenly, with at most one
    second's share at once.
    ``session``: a requests.Session of your own; its proxies, CA bundle, auth, hooks and adapters are kept, but for
    adapters of requests' own make, which the pool's replaces for its address. It is not closed with the pool.
    ``progress``: True shows a bar on stderr, False none; None, the default, where stderr is a terminal or a notebook.

    Raises ConfigurationError, which is also a ValueError, for a setting that cannot work.
    """

    def __init__(
        self,
        max_workers: int = DEFAULT_MAX_WORKERS,
        *,
        model: str = DEFAULT_MODEL,
        api_key: str | None = None,
        base_url: str | None = None,
        system: str | None = None,
        params: _Params | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
        max_tries: int = DEFAULT_MAX_TRIES,
        max_time: float | None = None,
        max_wait: float = DEFAULT_MAX_WAIT,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        session: Session | None = None,
        progress: bool | None = None,
    ) -> None:
        self._settings = make_settings(
            max_workers=max_workers,
            model=model,
            api_key=api_key,
            base_url=base_url,
            system=system,
            params=params,
            headers=headers,
            timeout=timeout,
            max_tries=max_tries,
            max_time=max_time,
            max_wait=max_wait,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            has_own_auth=_has_auth(session),
        )
        self._session = session
        self._progress = progress
        self._closed = False
        # One engine for each process that uses this pool; a parent's stays here, unused, after a fork.
        self._engines: dict[int, Engine] = {}
        self._making: dict[int, threading.Lock] = {}

    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        params: _Params | None = None,
        parse: _Parse | None = None,
        deadline: float | None = None,
        progress: bool | None = None,
        journal: PathLike | None = None,
    ) -> Answers:
        """Send every prompt and return the answers in the order of the prompts, None where a call failed.

        A prompt is a str, a list of message dicts, or a dict of body fields, which overrides ``params``, which
        overrides the pool's. ``parse`` is called with each answer's text, in a worker thread, and its value takes
        the text's place; a ValueError from it counts as a bad answer and the call is tried again, any other
        exception is raised here, with the prompt's index as ``.prompt_index``. ``deadline``: seconds from now; what
        is not done by then is None, with DeadlineError. ``journal``: a file that each finished call is written to at
        once, in the format of the Batch API's output; with the same file again, only what has no good answer in it is
        asked. Prompts are known again by their request's body, in whatever order they come; so those with another
        model or other parameters are asked anew.

        Raises TypeError or ValueError for a prompt that cannot be sent, with its index, before anything is sent.
        Raises JournalError for a journal that is another kind of file, in use by another run, or cannot be written.
        Whatever is raised on the way, KeyboardInterrupt for one, carries what was done as ``.answers``.
        """
        check_prompts(prompts)
        items = list(enumerate(prompts))
        for index, prompt in items:
            check_prompt(prompt, index)
        return self._map(items, self._make_run(Run, params, parse, deadline), progress, journal)

    def imap(
        self,
        prompts: Iterable[Prompt],
        *,
        params: _Params | None = None,
        parse: _Parse | None = None,
        deadline: float | None = None,
        progress: bool | None = None,
        journal: PathLike | None = None,
    ) -> Iterator[ChatResult]:
        """Yield the results in the order of the prompts, while later ones are under way.

        Takes any iterable, an endless one too: it is read in this thread, at most 4 × ``max_workers`` prompts ahead.
        A prompt that cannot be sent raises when its turn comes, after all before it. Dropping the iterator gives up
        what is under way. See ``map`` for the rest.
        """
        check_prompts(prompts)
        return self._stream(prompts, self._make_run(Run, params, parse, deadline), progress, journal, in_order=True)

    def imap_unordered(
        self,
        prompts: Iterable[Prompt],
        *,
        params: _Params | None = None,
        parse: _Parse | None = None,
        deadline: float | None = None,
        progress: bool | None = None,
        journal: PathLike | None = None,
    ) -> Iterator[ChatResult]:
        """Yield the results as they come in; ``ChatResult.index`` tells whose each is. Otherwise like ``imap``."""
        check_prompts(prompts)
        return self._stream(prompts, self._make_run(Run, params, parse, deadline), progress, journal, in_order=False)

    def submit(
        self, prompt: Prompt, *, params: _Params | None = None, parse: _Parse | None = None
    ) -> Future[ChatResult]:
        """Send one prompt in the background. The Future's ``result()`` is a ChatResult also if the call failed."""
        check_prompt(prompt, 0)
        engine, run = self._make_run(FutureRun, params, parse, None)
        engine.start(run, run.add([(0, prompt)]))
        return run.future

    def ask(self, prompt: Prompt, *, params: _Params | None = None, parse: _Parse | None = None) -> Any:
        """Send one prompt, in this thread, and return its answer; raise its CallError if it failed."""
        check_prompt(prompt, 0)
        engine, run = self._make_run(Run, params, parse, None)
        try:
            run.add([(0, prompt)])
            engine.start(run, 1, inline=True)
            (result,) = run.gather(1, math.inf)
        finally:
            run.end()
        if result.error is not None:
            raise result.error
        return result.value

    def retry(self, answers: Answers) -> Answers:
        """Send only the failed prompts of ``answers`` again; return answers with their new results in place."""
        if not isinstance(answers, Answers):
            raise TypeError(f"retry takes what map returned, an Answers, not {type(answers).__name__}")
        if answers.parse == LOST_PARSE:
            raise ConfigurationError("these answers were pickled without their parse; set answers.parse, then retry")
        items = [(result.index, result.prompt) for result in answers.results]
        engine, run = self._make_run(Run, answers.params, answers.parse, None)
        run.results.update((result.index, result) for result in answers.results if result.ok)
        again = self._map(items, (engine, run), None, answers.journal)
        again.wall += answers.wall
        again.waits = dict(Counter(answers.waits) + Counter(again.waits))
        return again

    def close(self) -> None:
        """Give up what is under way, end the threads and close the connections. Closing again does nothing."""
        self._closed = True
        engine = self._engines.pop(os.getpid(), None)
        if engine is not None:
            engine.close()

    def __enter__(self) -> ChatPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pool; first wait for what was submitted, unless an exception is on its way."""
        engine = self._engines.get(os.getpid())
        try:
            if kind is None and engine is not None:
                wait(engine.futures())
        finally:
            self.close()

    def __repr__(self) -> str:
        settings = self._settings
        shown = f"max_workers={settings.max_workers}, model={settings.model!r}, base_url={settings.shown_url!r}"
        return f"ChatPool({shown})"

    def __getstate__(self) -> dict[str, Any]:
        """A pool travels as its settings; a key taken from the environment stays behind."""
        settings = self._settings
        if settings.key_is_from_environment:
            settings = replace(settings, api_key=None)
        return {**self.__dict__, "_settings": settings, "_engines": {}, "_making": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._settings = find_key(self._settings)

    def _engine(self) -> Engine:
        """Return this process's engine; of many threads that want it first, one makes it for all."""
        if self._closed:
            raise PoolClosedError("this pool is closed; make a new one")
        pid = os.getpid()
        engine = self._engines.get(pid)
        if engine is None:
            # A lock for each process: in a forked child, the parent's might be held for ever.
            with self._making.setdefault(pid, threading.Lock()):
                engine = self._engines.get(pid)
                if engine is None:
                    engine = Engine(self._settings, self._session, f"chatpool/{__version__}")
                    self._engines[pid] = engine
        return engine

    def _make_run(
        self, kind: type[_R], params: _Params | None, parse: _Parse | None, deadline: float | None
    ) -> tuple[Engine, _R]:
        check_parse(parse)
        engine = self._engine()
        return engine, kind(
            engine,
            params={**self._settings.params, **check_params(params)},
            parse=parse,
            deadline=check_deadline(deadline),
            max_time=self._settings.max_time,
        )

    def _map(
        self,
        items: list[Indexed],
        engine_and_run: tuple[Engine, Run],
        progress: bool | None,
        journal: PathLike | None,
    ) -> Answers:
        engine, run = engine_and_run
        bar = self._bar(len(items), progress)
        try:
            with self._open_ledger(run, journal) as ledger:
                todo = _not_done(run, items, ledger)
                bar.update(list(run.results.values()))
                engine.start(run, run.add(todo))
                while len(run.results) < len(items):
                    fresh = run.gather(len(items) - len(run.results), _TICK if bar.is_shown else _LONG_TICK)
                    bar.update(fresh)
                    if not fresh:
                        engine.help(run)
        except BaseException as error:
            run.stop(_interrupted, cut=True)
            error.answers = self._answers(run, items, journal)  # type: ignore[attr-defined]
            raise
        finally:
            run.end()
            bar.close()
        return self._answers(run, items, journal)

    def _stream(
        self,
        prompts: Iterable[Prompt],
        engine_and_run: tuple[Engine, Run],
        progress: bool | None,
        journal: PathLike | None,
        *,
        in_order: bool,
        retries_failed: bool = True,
    ) -> Iterator[ChatResult]:
        engine, run = engine_and_run
        source = _Reader(prompts)
        window = _READ_AHEAD * self._settings.max_workers
        ready = run.results
        given = 0
        bar = self._bar(source.total, progress)
        try:
            with self._open_ledger(run, journal, retries_failed=retries_failed) as ledger:
                while given < source.taken or not source.is_over:
                    if not source.is_over and source.taken - given < window:
                        bar.update(_feed(engine, run, source, ledger))
                    must_wait = source.is_over or source.taken - given >= window
                    outstanding = source.taken - given - len(ready)
                    run.owner = threading.current_thread()
                    fresh = run.gather(1 if must_wait and outstanding else 0, _LONG_TICK)
                    bar.update(fresh)
                    if must_wait and not fresh:
                        engine.help(run)
                    while ready and (not in_order or given in ready):
                        index = given if in_order else next(iter(ready))
                        yield ready[index]
                        del ready[index]  # only now: an answer that Ctrl-C kept from the caller stays here
                        given += 1
            source.raise_error()
        except GeneratorExit:
            run.drop()
            raise
        except BaseException as error:
            run.stop(_interrupted, cut=True)
            error.answers = self._answers(run, (), journal)  # type: ignore[attr-defined]
            raise
        finally:
            run.end()
            if not run.is_inherited:
                bar.close()

    @contextmanager
    def _open_ledger(
        self, run: Run, journal: PathLike | None, *, retries_failed: bool = True
    ) -> Iterator[Ledger | None]:
        """Have a run's finished calls written to its journal, if it has one."""
        if journal is None:
            yield None
            return
        settings = self._settings
        body_of = partial(build_body, model=settings.model, system=settings.system, params=run.params)
        with Journal(journal) as file:
            ledger = Ledger(file, body_of, run.parse, retries_failed=retries_failed)
            run.record = ledger.record
            yield ledger

    def _bar(self, total: int | None, progress: bool | None) -> Progress:
        return Progress(total, self._progress if progress is None else progress)

    def _answers(self, run: Run, items: Iterable[Indexed], journal: PathLike | None) -> Answers:
        """Put together what a run has brought; of ``items``, what is missing was given up."""
        run.take_done()
        wall = time.monotonic() - run.began
        results = run.results
        for index, prompt in items:
            if index not in results:
                results[index] = unsent(index, prompt, _interrupted())
        return Answers(
            (results[index] for index in sorted(results)),
            wall=wall,
            limited_by=self._limit(run, sum(result.attempts > 0 for result in results.values()), wall),
            waits=run.waits,
            params=run.params,
            parse=run.parse,
            journal=journal,
            resumed=run.resumed,
        )

    def _limit(self, run: Run, calls: int, wall: float) -> str:
        """Name what held a run back: its longest wait, or the number of workers if they were busy all the time."""
        workers = self._settings.max_workers
        waited = sum(run.waits.values())
        if calls > workers and waited < _NOTABLE * workers * wall:
            return f"{PLACES}={workers}"
        if waited > _NOTABLE * min(calls, workers) * wall:
            return max(run.waits, key=lambda cause: run.waits[cause])
        return "nothing"


def _not_done(run: Run, items: list[Indexed], ledger: Ledger | None) -> list[Indexed]:
    """Put what the journal holds into a run's results; return what is to be asked."""
    todo = []
    for index, prompt in items:
        found = ledger.find(index, prompt) if ledger else None  # also for what is known: equal prompts are counted
        if index not in run.results and found is not None:
            run.results[index] = found
            run.resumed.add(index)
        elif index not in run.results:
            todo.append((index, prompt))
    return todo


def _feed(engine: Engine, run: Run, source: _Reader, ledger: Ledger | None) -> list[ChatResult]:
    """Take one prompt in; return its result if the journal holds it.

    If the pool was closed meanwhile, what is under way comes first, and then the error.
    """
    items = source.take()
    found = [result for item in items if ledger and (result := ledger.find(*item)) is not None]
    run.results.update((result.index, result) for result in found)
    try:
        engine.start(run, run.add([] if found else items))
    except PoolClosedError as error:
        run.stop(_interrupted, cut=True)
        source.end(error)
    return found


class _Reader:
    """Reads the prompts of an imap one by one, and keeps an error of theirs until all before it is answered."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self.total = len(prompts) if isinstance(prompts, Sized) else None
        self.taken = 0
        self.is_over = False
        self._prompts = iter(prompts)
        self._error: Exception | None = None

    def take(self) -> list[Indexed]:
        """Return the next prompt with its index; nothing if there is none."""
        try:
            prompt = next(self._prompts)
            check_prompt(prompt, self.taken)
        except StopIteration:
            self.is_over = True
            return []
        except Exception as error:  # noqa: BLE001 - the caller's iterable may raise anything; it gets it back
            self.is_over, self._error = True, error
            return []
        self.taken += 1
        return [(self.taken - 1, prompt)]

    def end(self, error: Exception) -> None:
        """Read no more; ``raise_error`` will raise this."""
        self.is_over, self._error = True, error

    def raise_error(self) -> None:
        """Raise what ended the input, if that was an error."""
        if self._error is not None:
            raise self._error


def _interrupted() -> NotSentError:
    return NotSentError("given up: the run was interrupted")


def _has_auth(session: Session | None) -> bool:
    """Whether a Session of the user's brings credentials."""
    if session is None:
        return False
    if not hasattr(session, "prepare_request"):
        raise ConfigurationError(f"session must be a requests.Session, not {type(session).__name__}")
    return bool(session.auth) or has_credentials(session.headers)
