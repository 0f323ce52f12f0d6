"""Notices a run in which no prompt can succeed: a wrong key, model, parameter or path, in whatever words. Pure.

The scheduler asks it so, in its own thread::

    run.observe(index, error)              for every attempt that failed, and with None for every answer
    if run.should_hold():                  send nothing but probes and their retries
        run.choose_probes(lengths)         once; returns which of the prompts that are left to send now
    error = run.verdict()                  if not None, end the map with it

An answer, or a probe that ends in another way, lets the run go on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from chatpool._protocol.dialects import BAD_REQUEST, SERVER, code_meaning
from chatpool._protocol.judgement import is_outage_sign, is_refusal, is_transient
from chatpool.errors import APIConnectionError, CallError, InvalidResponseError, NotSentError, ParseError

_FEWEST = 20  # prompts that have to end in the same way
_PROBES = 4
_MOST_WORDS = 12
# Verdicts on one prompt's content: the model was reached, and key, model and parameters are right.
_CONTENT_CODES = frozenset({"refusal", "content_filter"})
# Bad answers that come again for the same request. Others, a blank one for instance, may be chance: they count only
# when a prompt has used up its tries.
_LASTING_CODES = frozenset({"no_json", "no_object", "no_choices", "no_text", "error_in_200"})
_CHANGING = re.compile(r"\S*\d\S*|\"[^\"]*\"|'[^']*'|`[^`]*`")  # what differs from prompt to prompt

Signature = tuple[object, ...]


def signature(error: CallError) -> Signature:
    """Return what two errors have in common if they have the same cause: status and code, or words without numbers.

    A code that stands for many mistakes, such as ``invalid_request_error``, says less than the words beside it.
    """
    found = code_meaning([error.code]) if error.code else None
    if error.code and (found is None or found[0] not in (BAD_REQUEST, SERVER)):
        return type(error).__name__, error.status_code, error.code
    words = _CHANGING.sub("", str(error)).split()
    return type(error).__name__, error.status_code, *words[:_MOST_WORDS]


class HopelessRun:
    """Watches how the prompts of one run end, until one of them is answered.

    ``max_workers``: how many calls may be in flight at once. When twice as many prompts, but 20 at least, have ended in
    the same way one after the other, a few of those that are left are tried before anything more is sent.
    """

    def __init__(self, max_workers: int) -> None:
        self._wanted = max(_FEWEST, 2 * max_workers)
        self._is_answered = False
        self._cause: CallError | None = None  # the latest error of the row
        self._prompts: set[int] = set()  # that ended in the same way in a row
        self._probes: set[int] | None = None  # under way; None: not chosen yet

    def observe(self, index: int, error: CallError | None, *, is_final: bool = True) -> None:
        """Note how an attempt ended; ``error``: None for an answer; ``is_final``: whether it was the prompt's last."""
        if error is None or _shows_contact(error):
            self._is_answered = True
        elif _counts(error, is_final=is_final):
            self._count(index, error)
        elif is_final and self._probes and index in self._probes:
            self._let_go()

    def should_hold(self) -> bool:
        """Whether nothing but probes may be sent for now."""
        return not self._is_answered and len(self._prompts) >= self._wanted

    def choose_probes(self, lengths: Mapping[int, int]) -> list[int]:
        """Return the indexes of the prompts to try; none if they were chosen before.

        ``lengths``: of the prompts that are left, by index. Those chosen come from different places, with the shortest
        among them: prompts that are too long at the head of a list say nothing of its rest.
        """
        if self._probes is not None or not lengths:
            return []
        left, last = sorted(lengths), len(lengths) - 1
        spread = [left[last * step // (_PROBES - 1)] for step in range(_PROBES)]
        self._probes = {min(left, key=lengths.__getitem__), *spread}
        return sorted(self._probes)

    def verdict(self) -> NotSentError | None:
        """Return the error that ends the run; None as long as there is hope."""
        if not self.should_hold() or self._probes is None or self._probes or self._cause is None:
            return None
        error = NotSentError(
            f"not sent, because {len(self._prompts)} prompts from different places ended in the same way, and none "
            f"was answered: {self._cause}; {advice(self._cause)}",
            code=self._cause.code,
        )
        error.__cause__ = self._cause
        return error

    def _count(self, index: int, error: CallError) -> None:
        if self._cause is not None and signature(error) != signature(self._cause):
            self._let_go()
        self._cause = error
        self._prompts.add(index)
        if self._probes is not None:
            self._probes.discard(index)

    def _let_go(self) -> None:
        """There is another way to end. After probes that showed it, the next look comes after twice as many prompts."""
        if self._probes is not None:
            self._wanted *= 2
        self._prompts.clear()
        self._probes = self._cause = None


def advice(error: CallError) -> str:
    """Return what to look at for an error that every prompt meets."""
    status, text = error.status_code, str(error)
    if status in (401, 403):
        return "check the key (api_key=) and what it may do"
    if re.search(r"\bmodel\b", text, re.IGNORECASE) and status in (400, 404, 422):
        return "check model= and whether the key may use it"
    if status in (400, 422):
        return "check the parameter that it names (params=, model=)"
    if status == 402:
        return "check the account's balance"
    if error.code == "length":
        return "raise max_tokens"
    return "check base_url="


def _shows_contact(error: CallError) -> bool:
    """Whether the model was reached with this key and these parameters, though its answer was refused."""
    return isinstance(error, ParseError) or error.code in _CONTENT_CODES


def _counts(error: CallError, *, is_final: bool) -> bool:
    """Whether an attempt shows how its prompt will end. Refusals, failures and cut connections are others' business."""
    if isinstance(error, (APIConnectionError, NotSentError)) or is_refusal(error) or is_outage_sign(error):
        return False
    is_lasting = isinstance(error, InvalidResponseError) and error.code in _LASTING_CODES
    return is_final or is_lasting or not is_transient(error)
