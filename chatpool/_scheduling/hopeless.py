"""Detects a run in which no prompt can succeed: a wrong key, model, parameter or path, in any words. Pure.

The scheduler uses it in its own thread::

    run.observe(index, error)              for every attempt that failed, and with None for every answer
    if run.should_hold():                  send nothing but what run.awaits(index)
        run.choose_probes(lengths)         once; returns which of the prompts that are left to send now
    error = run.verdict()                  if not None, end the map with it

After an answer, or a probe that ends in another way, the run continues.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from chatpool._protocol.dialects import BAD_REQUEST, SERVER, code_meaning
from chatpool._protocol.judgement import is_outage_sign, is_refusal, is_transient
from chatpool.errors import APIConnectionError, CallError, InvalidResponseError, NotSentError, ParseError

_FEWEST = 20  # attempts with the same error
_FEWEST_PROMPTS = 4  # that these were for
_PROBES = 4
_MOST_WORDS = 12
# Errors about the content of one prompt: the key, the model and the parameters are right.
_CONTENT_CODES = frozenset({"refusal", "content_filter"})
# Bad answers that a retry does not change. Others, such as a blank one, may be chance: they count if they are final.
_LASTING_CODES = frozenset({"no_json", "no_object", "no_choices", "no_text", "error_in_200"})
_CHANGING = r"\S*\d\S*|\"[^\"]*\"|'[^']*'|`[^`]*`"  # numbers and quotations, which differ between prompts

Signature = tuple[object, ...]


def signature(error: CallError) -> Signature:
    """Return a value that is equal for errors with the same cause: status and code, or the words without numbers.

    The words count also if the code is a general one, such as ``invalid_request_error``.
    """
    found = code_meaning([error.code]) if error.code else None
    if error.code and (found is None or found[0] not in (BAD_REQUEST, SERVER)):
        return type(error).__name__, error.status_code, error.code
    words = re.sub(_CHANGING, "", str(error)).split()
    return type(error).__name__, error.status_code, *words[:_MOST_WORDS]


class HopelessRun:
    """Observes the attempts of one run until a prompt is answered.

    After 2 × ``max_workers`` attempts in a row with the same error, but at least 20, a few of the other prompts are
    sent as probes before anything else. If they have the same error, the run is hopeless. Attempts count, because
    retries may come before other prompts.
    """

    def __init__(self, max_workers: int) -> None:
        self._wanted = max(_FEWEST, 2 * max_workers)
        self._is_answered = False
        self._cause: CallError | None = None  # the latest error
        self._attempts = 0  # with the same error, in a row
        self._prompts: set[int] = set()  # that these were for
        self._probes: set[int] | None = None  # in flight; None: not chosen yet

    def observe(self, index: int, error: CallError | None, *, is_final: bool = True) -> None:
        """Note the result of an attempt. ``error``: None for an answer. ``is_final``: whether it was the last one."""
        if error is None or _shows_contact(error):
            self._is_answered = True
        elif _counts(error, is_final=is_final):
            self._count(index, error)
        elif is_final and self.awaits(index):
            self._let_go()

    def should_hold(self) -> bool:
        """Whether only what the run ``awaits`` may be sent."""
        return not self._is_answered and self._attempts >= self._wanted and len(self._prompts) >= _FEWEST_PROMPTS

    @property
    def needs_probes(self) -> bool:
        """Whether the next step is to choose probes."""
        return self.should_hold() and self._probes is None

    def choose_probes(self, lengths: Mapping[int, int]) -> list[int]:
        """Return the indexes of the prompts to send as probes; none if they were chosen before.

        ``lengths``: of the prompts that are left, by index. The probes are spread over them, and include the shortest:
        if a list begins with prompts that are too long, the others may be fine.
        """
        if self._probes is not None or not lengths:
            return []
        left, last = sorted(lengths), len(lengths) - 1
        spread = [left[last * step // (_PROBES - 1)] for step in range(_PROBES)]
        self._probes = {min(left, key=lengths.__getitem__), *spread}
        return sorted(self._probes)

    def awaits(self, index: int) -> bool:
        """Whether a prompt is a probe that has not had the same error yet. One that has is held until the verdict."""
        return self._probes is not None and index in self._probes

    def verdict(self) -> NotSentError | None:
        """Return the error that ends the run, if it is hopeless."""
        if not self.should_hold() or self._probes is None or self._probes or self._cause is None:
            return None
        error = NotSentError(
            f"not sent, because {len(self._prompts)} prompts from all parts of the run failed in the same way, and "
            f"none was answered: {self._cause}; {advice(self._cause)}",
            code=self._cause.code,
        )
        error.__cause__ = self._cause
        return error

    def _count(self, index: int, error: CallError) -> None:
        if self._cause is not None and signature(error) != signature(self._cause):
            self._let_go()
        self._cause = error
        self._attempts += 1
        self._prompts.add(index)
        if self._probes is not None:
            self._probes.discard(index)

    def _let_go(self) -> None:
        """Start again. If a probe ended in another way, wait for twice as many prompts before the next probes."""
        if self._probes is not None:
            self._wanted *= 2
        self._attempts = 0
        self._prompts.clear()
        self._probes = self._cause = None


def advice(error: CallError) -> str:
    """Return the settings to check for an error that every prompt has."""
    status, text = error.status_code, str(error)
    if status in (401, 403):
        return "check the key (api_key=) and its permissions"
    if re.search(r"\bmodel\b", text, re.IGNORECASE) and status in (400, 404, 422):
        return "check model= and whether the key may use it"
    if status in (400, 422):
        return "check the parameter in this message (params=, model=)"
    if status == 402:
        return "check the account's balance"
    if error.code == "length":
        return "raise max_tokens"
    return "check base_url="


def _shows_contact(error: CallError) -> bool:
    """Whether the model returned an answer, although it was rejected."""
    return isinstance(error, ParseError) or error.code in _CONTENT_CODES


def _counts(error: CallError, *, is_final: bool) -> bool:
    """Whether an error counts. Rate limits, outages and connection failures are handled elsewhere."""
    if isinstance(error, (APIConnectionError, NotSentError)) or is_refusal(error) or is_outage_sign(error):
        return False
    is_lasting = isinstance(error, InvalidResponseError) and error.code in _LASTING_CODES
    return is_final or is_lasting or not is_transient(error)
