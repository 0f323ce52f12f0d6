"""``chatpool run --dry-run``: what a run would send and cost, and what its journal was charged so far."""

from __future__ import annotations

import os
from contextlib import closing, nullcontext

from chatpool._files.history import read_history
from chatpool._files.journal import Journal
from chatpool._files.journal_view import JournalView
from chatpool._protocol.prices import show_cost
from chatpool._protocol.request_builder import Request, RequestBuilder
from chatpool._protocol.requests import estimate, longest_answer
from chatpool._protocol.summary import plural

from .run import RunOptions, digest_function, print_notes
from .selection import Selection


class _Estimate:
    """Adds up what requests may take. An answer without a limit, or a model without a price, is counted apart."""

    def __init__(self, builder: RequestBuilder) -> None:
        self._builder = builder
        self.requests = self.prompt_tokens = self.answer_tokens = self.unlimited = self.unpriced = 0
        self.cost = 0.0

    def add(self, request: Request) -> None:
        """Add a request."""
        payload, body = self._builder.payload(request), self._builder.body(request.prompt)
        tokens, price = estimate(payload, body), self._builder.price(request)
        self.requests += 1
        self.prompt_tokens += tokens.text + tokens.media
        self.answer_tokens += tokens.answer
        self.unlimited += "messages" in body and longest_answer(body) is None
        self.unpriced += price is None
        self.cost += price.most(tokens.text + tokens.media, tokens.answer) if price is not None else 0.0

    def lines(self) -> list[str]:
        """Return the sentences about it."""
        tokens = f"about {self.prompt_tokens:,} tokens of prompts"
        if self.unlimited:
            tokens += f"; {plural(self.unlimited, 'answer has', 'answers have')} no limit, and no estimate: "
            return [tokens + "set one with --param max_tokens=N", *self._cost_lines("for the prompts alone")]
        if self.answer_tokens:
            tokens += f", and at most {self.answer_tokens:,} of answers"
        return [tokens, *self._cost_lines("at most")]

    def _cost_lines(self, how: str) -> list[str]:
        if self.unpriced == self.requests:
            return []
        unpriced = f"; {plural(self.unpriced, 'request has', 'requests have')} no --price" if self.unpriced else ""
        return [f"about {show_cost(self.cost)} {how}{unpriced}"]


def dry_run(options: RunOptions) -> int:
    """Print to stdout what a run would take; sends and writes nothing."""
    done, to_send = 0, _Estimate(options.builder)
    path = options.journal if options.journal and os.path.exists(options.journal) else None
    with closing(options.open_input()) as prompts:
        repeats = prompts.check(options.digest, is_deduped=options.dedupe)
        print_notes(options, prompts)
        selection = Selection(prompts, repeats, options.digest, limit=options.limit, is_deduped=options.dedupe)
        digest = digest_function(options)
        with Journal(path, is_read_only=True, by_body=options.dedupe) if path else nullcontext() as journal:
            view = JournalView(journal, digest, options.schema, retries_failed=options.retry_failed, repeats=repeats)
            for index, prompt in enumerate(selection):
                request = options.builder.request(index, prompt)
                if view.find(request) is None:
                    to_send.add(request)
                else:
                    done += 1
    print(f"{plural(to_send.requests + done, 'prompt')}: {done:,} already done, {to_send.requests:,} to send")
    for line in [*(to_send.lines() if to_send.requests else []), *(_spent_lines(path) if path else [])]:
        print(line)
    return 0


def _spent_lines(journal: str) -> list[str]:
    """Return what a journal says that its runs were charged for."""
    spent = read_history(journal).spent
    if not spent.attempts:
        return []
    cost = "" if spent.cost is None else f", {show_cost(spent.cost)}"
    return [f"so far: {plural(spent.attempts, 'request')}, {spent.usage.total_tokens:,} tokens{cost}"]
