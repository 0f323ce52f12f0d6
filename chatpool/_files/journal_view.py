"""One run's view of a journal: which prompts have an answer in it, and where the new results go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Callable

from chatpool._protocol.request_builder import Request
from chatpool._protocol.requests import BatchRequest
from chatpool._protocol.results import REJECTIONS, Attempt, ChatResult, Parse
from chatpool.errors import DeadlineError, NotSentError

from .batch_format import Key, copy_of, hash64, is_answer, key_of, line_of, result_of
from .journal import Journal
from .runs import RunLog


class JournalView:
    """One run's view of a journal: which prompts have a good answer in it, and where the new results go.

    A prompt without a custom_id gets the hash of its request for one; the second of two equal prompts gets a number
    after it. Counting them takes about 80 bytes each, unless ``repeats`` says which ones are repeated, by ``hash64``
    of their hash. ``retries_failed``: whether prompts that failed before are sent again. ``waits``: returns what held
    calls back since the run began.
    """

    def __init__(
        self,
        journal: Journal | None,
        digest_of: Callable[[Request], str],
        parse: Parse | None,
        *,
        retries_failed: bool = True,
        repeats: Container[int] | None = None,
        waits: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._run = RunLog(waits)
        self._journal, self._digest_of, self._parse = journal, digest_of, parse
        self._retries_failed, self._repeats = retries_failed, repeats
        self._keys: dict[int, Key] = {}  # of the prompts without a result, by index
        self._counts: Counter[int] = Counter()  # of the prompts without a custom_id, by hash64

    def find(self, request: Request) -> ChatResult | None:
        """Return the journal's result for the next prompt, None if it has to be sent. Call once a prompt, in order."""
        key = self._keys[request.index] = self.key(request)
        if self._journal is not None:
            self._journal.note_request(key)
        result = self.read(request, key)
        if result is None or (self._retries_failed and not result.ok):
            return None
        result = self.parsed(result)
        if result is not None:
            del self._keys[request.index]
        return result

    def read(self, request: Request, key: Key) -> ChatResult | None:
        """Return the result of a request that the journal holds, good or not; None without any."""
        for document, is_own in self._candidates(request, key):
            result = result_of(document, request.index, request.prompt)
            if is_own or (result is not None and result.ok):
                return result
        return None

    def _candidates(self, request: Request, key: Key) -> Iterator[tuple[Mapping[str, Any], bool]]:
        """Yield the lines that may hold a request's result, and whether they are under its own key."""
        if self._journal is None:
            return
        for known in (key, *_other_keys(request.prompt, key)):
            document = self._journal.find(known)
            if document is not None and key_of(document) == known:
                yield document, known == key
        document = self._journal.find_body(key.digest)
        if document is not None and key_of(document).digest == key.digest:
            yield document, False

    def record(self, result: ChatResult, timeline: Sequence[Attempt] = (), error_body: str | None = None) -> None:
        """Write a finished call's line, see ``line_of``. A call that was cancelled is not finished."""
        key = self._keys.pop(result.index)
        if self._journal and not is_cancelled(result):
            self._journal.note_line(key)
            self._journal.append(line_of(result, key, timeline, error_body, self._run.fields()))

    def note_cancelled(self, results: Iterable[ChatResult]) -> None:
        """Count what cancelled calls took, for the end of the run."""
        for result in results:
            if result.attempts and is_cancelled(result):
                self._run.add_unlisted(result)

    def end_run(self, how: str) -> None:
        """Write how the run ended; nothing if it sent nothing."""
        end = self._run.end(how)
        if self._journal and end is not None:
            self._journal.end_run(end)

    def copy_equal(self, request: Request) -> None:
        """Give the next prompt the line of an equal one, if it has none or only a failed one. Call for each, in order.

        Needs a journal that finds requests by their bodies.
        """
        key = self.key(request)
        if self._journal is None:
            return
        self._journal.note_request(key)
        own, equal = self._journal.find(key), self._journal.find_body(key.digest)
        if equal is not None and (own is None or (is_answer(equal) and not is_answer(own))):
            self._journal.note_line(key)
            self._journal.append(copy_of(equal, key))

    def key(self, request: Request) -> Key:
        """Return the key of the next prompt. Call once a prompt, in order."""
        digest, prompt = self._digest_of(request), request.prompt
        if isinstance(prompt, BatchRequest) and prompt.custom_id is not None:
            return Key(prompt.custom_id, digest)
        number, count = hash64(digest), 1
        if self._repeats is None or number in self._repeats:
            self._counts[number] += 1
            count = self._counts[number]
        return Key(digest if count == 1 else f"{digest}-{count}", digest)

    def parsed(self, result: ChatResult) -> ChatResult | None:
        """Return a result with the value of ``parse``; None if ``parse`` now rejects its text."""
        if self._parse is None or not result.ok:
            return result
        try:
            return replace(result, value=self._parse(result.text or ""))
        except REJECTIONS:
            return None
        except Exception as error:
            error.prompt_index = result.index  # type: ignore[attr-defined]
            raise


def is_cancelled(result: ChatResult) -> bool:
    """Whether a call was cancelled, so that it has no line: it did not fail by itself."""
    return isinstance(result.error, (NotSentError, DeadlineError))


def _other_keys(prompt: Any, key: Key) -> list[Key]:
    """Return the keys that a request had if its input was read another way: with or without a name for each row."""
    alias = getattr(prompt, "alias", None)
    if alias is None:
        return []
    return [Key(key.digest if prompt.custom_id is not None else alias, key.digest)]
