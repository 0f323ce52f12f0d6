"""ChatPool: many prompts to an OpenAI-compatible chat API, from threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, Callable, TypeVar, overload

from ._http.session import Session
from ._protocol.answers import UNPICKLABLE_PARSE, Answers
from ._protocol.arguments import explain_unknown_arguments
from ._protocol.prices import Prices
from ._protocol.request_builder import RequestBuilder, estimate_run
from ._protocol.requests import Prompt, check_prompts
from ._protocol.results import ChatResult, Estimate, PathLike, Retry
from ._protocol.schemas import response_format_of
from ._protocol.settings import (
    DEFAULT_MAX_TRIES,
    DEFAULT_MAX_WAIT,
    DEFAULT_MAX_WORKERS,
    DEFAULT_TIMEOUT,
    ApiKey,
    Timeout,
    check_deadline,
    check_hook,
    check_params,
    check_parse,
    check_run,
    find_key,
    make_settings,
    session_has_auth,
)
from ._scheduling.answer_stream import AnswerStream, StreamJob
from ._scheduling.budgets import RunBudget
from ._scheduling.engine import Engine
from ._scheduling.engine_holder import EngineHolder
from ._scheduling.job import FutureJob, InlineJob, Job
from ._scheduling.mapper import Callbacks, JournalUse, Mapper
from ._version import __version__
from .errors import ConfigurationError

_USER_AGENT = f"chatpool/{__version__}"

_Parse = Callable[[str], Any]
_Params = Mapping[str, Any]
_J = TypeVar("_J", bound=Job)
_T = TypeVar("_T")


class ChatPool:
    """Sends prompts to a chat API, ``max_workers`` at a time, and returns every answer, or the error that explains why
    there isn't one.

    Any number of threads may share a pool. It starts nothing until its first use, and its threads end when it is closed
    or garbage-collected. In a forked child, or unpickled elsewhere, it opens connections of its own.

    All times are in seconds. Everything but ``max_workers`` is keyword-only:

    ``max_workers``: calls in flight at most, over all uses of this pool. Default 20.
    ``model``: the model's name. Default: the environment variable ``OPENAI_MODEL``, else ``DEFAULT_MODEL``.
    ``api_key``: default: the environment variable ``OPENAI_API_KEY``. A server other than OpenAI's may need none. A
    function that returns a key is called, in a thread of its own, when there is none yet, and when a 401 shows that it
    has expired: once for all calls. If it raises, or takes longer than 30 s, the calls fail with AuthenticationError.
    ``base_url``: default: ``OPENAI_BASE_URL``, else OpenAI's. May have a query string, such as Azure's api-version.
    ``system``: a system message put before every prompt that is a str.
    ``params``: body parameters of every call, such as ``{"temperature": 0, "max_tokens": 200}``.
    ``headers``: extra request headers. If they hold credentials (Authorization, api-key, x-api-key), no key is taken
    from the environment.
    ``timeout``: (connect, read), or one number for both. read limits the whole answer of one attempt. Default (5, 600).
    ``idle_timeout``: if it is set, answers are streamed, and an attempt is aborted and repeated when no byte of its
    answer has come for so long. Default: no streaming. It must be longer than the model thinks without a word.
    ``max_tries``: attempts for one prompt. Default 6. At most two of them may end at the read limit, as each may be
    charged for. A rate limit (429) counts only if no other call of this pool was answered since the last attempt; no
    prompt is sent more than 5 × ``max_tries`` times.
    ``max_time``: for one prompt, attempts and waits together, from its first attempt. Default: no limit.
    ``max_wait``: the longest wait between two attempts; if a server asks for longer, the call fails. Default 60.
    ``requests_per_minute``, ``tokens_per_minute``: budgets to keep to; requests are spread evenly, with at most one
    second's share at once.
    ``prices``: dollars for a million tokens of each model, ``{"model": (input, output)}`` or ``Price(input, output,
    cached)``, for the costs of results. A cost that the server reports itself (``usage.cost``) is used instead.
    ``session``: a requests.Session of your own. Its proxies, CA bundle, auth, hooks and adapters are kept, except for a
    plain HTTPAdapter, which is replaced for this address. It is not closed with the pool.
    ``progress``: True shows a bar on stderr, False none; None, the default, one on a terminal or in a notebook.
    ``on_retry``, ``on_result``: called with a Retry for each attempt that will be repeated, and with the ChatResult of
    each finished call, in the thread that called ``map`` or ``ask``, or that reads from ``imap``; their exceptions are
    raised there. They are not called for results from a journal or for ``submit``, and are not pickled with the pool.

    Raises ConfigurationError, which is also a ValueError, for a setting that cannot work.
    """

    @explain_unknown_arguments
    def __init__(
        self,
        max_workers: int = DEFAULT_MAX_WORKERS,
        *,
        model: str | None = None,
        api_key: ApiKey | None = None,
        base_url: str | None = None,
        system: str | None = None,
        params: _Params | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
        idle_timeout: float | None = None,
        max_tries: int = DEFAULT_MAX_TRIES,
        max_time: float | None = None,
        max_wait: float = DEFAULT_MAX_WAIT,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        prices: Prices | None = None,
        session: Session | None = None,
        progress: bool | None = None,
        on_retry: Callable[[Retry], Any] | None = None,
        on_result: Callable[[ChatResult], Any] | None = None,
    ) -> None:
        check_run(None, progress)
        self._callbacks = Callbacks(check_hook("on_retry", on_retry), check_hook("on_result", on_result))
        self._settings = make_settings(
            max_workers=max_workers, model=model, api_key=api_key, base_url=base_url, system=system, params=params,
            headers=headers, timeout=timeout, idle_timeout=idle_timeout, max_tries=max_tries, max_time=max_time,
            max_wait=max_wait, requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute,
            prices=prices, has_own_auth=session_has_auth(session),
        )  # fmt: skip
        self._session = session
        self._progress = progress
        self._engines = EngineHolder(self._settings, session, _USER_AGENT)

    @overload
    def map(
        self, prompts: Iterable[Prompt], *, response_format: type[_T], params: _Params | None = ..., parse: None = ...,
        reask: bool = ..., deadline: float | None = ..., progress: bool | None = ..., journal: PathLike | None = ...,
        request_budget: int | None = ..., token_budget: int | None = ..., cost_budget: float | None = ...,
        dedupe: bool = ...,
    ) -> Answers[_T]: ...  # fmt: skip

    @overload
    def map(
        self, prompts: Iterable[Prompt], *, response_format: Any = ..., params: _Params | None = ...,
        parse: _Parse | None = ..., reask: bool = ..., deadline: float | None = ..., progress: bool | None = ...,
        journal: PathLike | None = ..., request_budget: int | None = ..., token_budget: int | None = ...,
        cost_budget: float | None = ..., dedupe: bool = ...,
    ) -> Answers[Any]: ...  # fmt: skip

    @explain_unknown_arguments
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        params: _Params | None = None,
        response_format: Any = None,
        parse: _Parse | None = None,
        reask: bool = True,
        deadline: float | None = None,
        progress: bool | None = None,
        journal: PathLike | None = None,
        request_budget: int | None = None,
        token_budget: int | None = None,
        cost_budget: float | None = None,
        dedupe: bool = False,
    ) -> Answers[Any]:
        """Send every prompt and return the answers in the order of the prompts, None where a call failed.

        A prompt is a str, a list of message dicts, or a dict of body fields, which override ``params``, which override
        the pool's.

        ``response_format``: the type of the answers' values: a pydantic model, a dataclass, a TypedDict, a Literal, an
        Enum, or a JSON schema as a dict. It is sent as OpenAI's strict ``json_schema``; a server that rejects this gets
        ``json_object`` and the schema in a system message. Any other dict is a field of the body, and sent as it is.
        ``parse``: called with each answer's text, in a thread of the pool; its value takes the text's place. A
        ValueError, LookupError, TypeError or AttributeError from it counts as a bad answer, and the call is retried;
        any other exception is raised here, with the prompt's index as ``.prompt_index``. ``reask``: whether a retry
        shows the model its bad answer, and why it was rejected. ``deadline``: seconds from now; prompts not answered by
        then are None, with DeadlineError. ``journal``: a file to which each finished call is written at once, in the
        format of the Batch API's output; with the same file again, only prompts without a good answer in it are sent.
        Prompts are matched by their first request's body, in any order, so those with another model or other parameters
        are sent again. ``dedupe``: equal prompts are sent once; the copies cost no tokens, and share one ``value``.

        ``request_budget``, ``token_budget``: once so many requests were sent, or so many tokens used, nothing more is
        sent, and the rest fail with SpendLimitError (to limit each answer, use ``params={"max_tokens": …}``); answers
        in flight still come in, so the tokens of at most ``max_workers`` answers may be used beyond that.
        ``cost_budget``: dollars, by the pool's ``prices``. The most that a request may cost is reserved before it is
        sent, so the budget holds if requests limit their answers by ``max_tokens`` or ``max_completion_tokens``.

        Raises TypeError or ValueError, with its index, for a prompt that cannot be sent, before anything is sent.
        Raises JournalError for a journal that is another kind of file, in use by another run, or cannot be written.
        Any exception that ends the map, such as KeyboardInterrupt, carries the finished calls as ``.answers``.
        """
        check_prompts(prompts)
        mapper = self._mapper(
            params=params, response_format=response_format, parse=parse, reask=reask, deadline=deadline,
            progress=progress, journal=journal, request_budget=request_budget, token_budget=token_budget,
            cost_budget=cost_budget, dedupe=dedupe,
        )  # fmt: skip
        return mapper.map(enumerate(prompts))

    @explain_unknown_arguments
    def imap(
        self,
        prompts: Iterable[Prompt],
        *,
        params: _Params | None = None,
        response_format: Any = None,
        parse: _Parse | None = None,
        reask: bool = True,
        deadline: float | None = None,
        progress: bool | None = None,
        journal: PathLike | None = None,
        request_budget: int | None = None,
        token_budget: int | None = None,
        cost_budget: float | None = None,
    ) -> Iterator[ChatResult]:
        """Yield the results in the order of the prompts, while later calls are in progress.

        Takes any iterable, even an endless one: it is read in this thread, at most 4 × ``max_workers`` prompts ahead.
        A prompt that cannot be sent raises when it is reached, after the results of all before it. Dropping the
        iterator cancels the calls in progress. See ``map`` for the rest.
        """
        check_prompts(prompts)
        mapper = self._mapper(
            params=params, response_format=response_format, parse=parse, reask=reask, deadline=deadline,
            progress=progress, journal=journal, request_budget=request_budget, token_budget=token_budget,
            cost_budget=cost_budget,
        )  # fmt: skip
        return mapper.stream(prompts, in_order=True)

    @explain_unknown_arguments
    def imap_unordered(
        self,
        prompts: Iterable[Prompt],
        *,
        params: _Params | None = None,
        response_format: Any = None,
        parse: _Parse | None = None,
        reask: bool = True,
        deadline: float | None = None,
        progress: bool | None = None,
        journal: PathLike | None = None,
        request_budget: int | None = None,
        token_budget: int | None = None,
        cost_budget: float | None = None,
    ) -> Iterator[ChatResult]:
        """Yield the results as they come in; ``ChatResult.index`` is the prompt's. Otherwise like ``imap``."""
        check_prompts(prompts)
        mapper = self._mapper(
            params=params, response_format=response_format, parse=parse, reask=reask, deadline=deadline,
            progress=progress, journal=journal, request_budget=request_budget, token_budget=token_budget,
            cost_budget=cost_budget,
        )  # fmt: skip
        return mapper.stream(prompts, in_order=False)

    @explain_unknown_arguments
    def submit(
        self,
        prompt: Prompt,
        *,
        params: _Params | None = None,
        response_format: Any = None,
        parse: _Parse | None = None,
        reask: bool = True,
        deadline: float | None = None,
    ) -> Future[ChatResult]:
        """Send one prompt in the background. The Future's ``result()`` is a ChatResult, even if the call failed.

        ``deadline``: seconds from now, in which the time in the queue counts.
        """
        job = self._make_job(FutureJob, params, parse, deadline, response_format, reask)
        job.backend.start(job, [job.builder.request(0, prompt)])
        return job.future

    @overload
    def ask(
        self, prompt: Prompt, *, response_format: type[_T], params: _Params | None = ..., parse: None = ...,
        reask: bool = ..., deadline: float | None = ...,
    ) -> _T: ...  # fmt: skip

    @overload
    def ask(
        self, prompt: Prompt, *, response_format: Any = ..., params: _Params | None = ..., parse: _Parse | None = ...,
        reask: bool = ..., deadline: float | None = ...,
    ) -> Any: ...  # fmt: skip

    @explain_unknown_arguments
    def ask(
        self,
        prompt: Prompt,
        *,
        params: _Params | None = None,
        response_format: Any = None,
        parse: _Parse | None = None,
        reask: bool = True,
        deadline: float | None = None,
    ) -> Any:
        """Send one prompt, in this thread, and return its answer; raise its CallError if it failed.

        ``deadline``: seconds from now, in which the time in the queue counts; then DeadlineError is raised. It does not
        interrupt ``parse``, which runs in this thread, too.
        """
        job = self._make_job(InlineJob, params, parse, deadline, response_format, reask)
        try:
            result = job.run(prompt, self._callbacks.on_retry)
        finally:
            job.end()
        if self._callbacks.on_result is not None:
            self._callbacks.on_result(result)
        if result.error is not None:
            raise result.error
        return result.value

    @explain_unknown_arguments
    def stream(self, prompt: Prompt, *, params: _Params | None = None, deadline: float | None = None) -> AnswerStream:
        """Send one prompt and yield the pieces of its answer's text as they arrive; raise its CallError if it fails.

        It is sent when the first piece is asked for. A failure before the first piece arrives is retried; a later one
        is raised, with the text so far as the error's ``text``. Closing or dropping the iterator cancels the call, and
        its slot is free at once. A slow reader holds no slot: the answer is read at the pace of the server.
        ``deadline``: seconds from now, in which the time in the queue counts. After the last piece the iterator's
        ``result`` is the ChatResult. A server that does not stream gives one piece.
        """
        job = self._make_job(StreamJob, params, deadline=deadline)
        return AnswerStream(job, job.builder.request(0, prompt), self._callbacks)

    def retry(self, answers: Answers[_T]) -> Answers[_T]:
        """Send only the failed prompts of ``answers`` again; return answers with their new results in place."""
        if not isinstance(answers, Answers):
            raise TypeError(f"retry takes what map returned, an Answers, not {type(answers).__name__}")
        if answers.parse == UNPICKLABLE_PARSE:
            raise ConfigurationError("these answers were pickled without their parse; set answers.parse, then retry")
        items = [(result.index, result.prompt) for result in answers.results]
        known = {result.index: result for result in answers.results if result.ok}
        again = self._mapper(
            params=answers.params,
            parse=answers.parse,
            reask=answers.reask,
            journal=answers.journal,
            dedupe=answers.dedupe,
        ).map(items, known)
        again.wall += answers.wall
        again.waits = dict(Counter(answers.waits) + Counter(again.waits))
        again.resumed |= answers.resumed & known.keys()
        again.replaced = [*answers.replaced, *answers.failures]
        return again

    def estimate(self, prompts: Iterable[Prompt], *, params: _Params | None = None) -> Estimate:
        """Estimate calls and tokens of these prompts; sends nothing. Raises TypeError or ValueError as ``map`` does."""
        check_prompts(prompts)
        return estimate_run(RequestBuilder(self._settings, check_params(params)), prompts)

    def close(self) -> None:
        """Cancel the calls in progress, end the threads and close the connections. Closing again does nothing."""
        self._engines.close()

    def __enter__(self) -> ChatPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the pool; first wait for submitted calls, unless an exception is propagating."""
        try:
            if kind is None:
                self._engines.wait()
        finally:
            self.close()

    def __repr__(self) -> str:
        settings = self._settings
        shown = f"max_workers={settings.max_workers}, model={settings.model!r}, base_url={settings.shown_url!r}"
        return f"ChatPool({shown})"

    def __getstate__(self) -> dict[str, Any]:
        """A pool is pickled as its settings, without a key that was taken from the environment.

        Pools with equal settings that are unpickled in one process share threads, connections, limits and budgets.
        Closing one of them cancels its own calls; threads, connections and limits remain for the others.
        """
        settings = self._settings
        settings = replace(settings, api_key=None) if settings.key_is_from_environment else settings
        return {
            **self.__dict__,
            "_settings": settings,
            "_engines": self._engines.is_closed,
            "_callbacks": Callbacks(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._settings = find_key(self._settings)
        self._engines = EngineHolder(
            self._settings, self._session, _USER_AGENT, is_shared=True, is_closed=state["_engines"]
        )

    def _engine(self) -> Engine:
        return self._engines.get()

    def _mapper(
        self, *, progress: bool | None = None, journal: PathLike | None = None, request_budget: int | None = None,
        token_budget: int | None = None, cost_budget: float | None = None, dedupe: bool = False,
        journal_use: JournalUse | None = None, **how: Any,
    ) -> Mapper:  # fmt: skip
        """Return the mapper of a job; ``how``: the arguments of ``_make_job``."""
        check_run(journal, progress)
        budget = RunBudget(request_budget, token_budget, cost_budget)
        job = self._make_job(Job, **how)
        job.budget = budget
        shown = self._progress if progress is None else progress
        return Mapper(
            job, progress=shown, journal=journal, callbacks=self._callbacks, dedupe=dedupe,
            journal_use=journal_use,
        )  # fmt: skip

    def _make_job(
        self,
        kind: type[_J],
        params: _Params | None = None,
        parse: _Parse | None = None,
        deadline: float | None = None,
        response_format: Any = None,
        reask: bool = True,
    ) -> _J:
        fields, parse_format = response_format_of(response_format)
        check_parse(parse, has_type=parse_format is not None)
        job = kind(
            self._engine(),
            RequestBuilder(self._settings, {**check_params(params), **fields}),
            parse=parse or parse_format,
            deadline=check_deadline(deadline),
            max_time=self._settings.max_time,
        )
        job.pool_id, job.reask = self._engines.pool_id, reask
        return job
