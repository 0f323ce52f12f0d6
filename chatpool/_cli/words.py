"""Messages in the words of the command: options in place of the settings of Python."""

from __future__ import annotations

import re

_OPTIONS = {
    "max_workers": "--workers",
    "requests_per_minute": "--rpm",
    "tokens_per_minute": "--tpm",
    "max_tries": "--max-tries",
    "max_wait": "--max-wait",
    "idle_timeout": "--idle-timeout",
    "base_url": "--base-url",
    "request_budget": "--request-budget",
    "token_budget": "--token-budget",
    "cost_budget": "--cost-budget",
}
_WORD = re.compile(rf"(?<![\w.'\"-])({'|'.join(_OPTIONS)})(?![\w'\"])")
# Whole phrases, in which more than the name changes. They are at the start of a message, or after a semicolon.
_PHRASES = [
    (r"\bor pass api_key=…", "or pass --header 'NAME: VALUE'"),
    (r"\bpass base_url=… or set", "pass --base-url URL or set"),
    (r"check the key \(api_key=\)", "check the key (OPENAI_API_KEY)"),
    (r"pass prices=\{'([^']*)': \([^)]*\)\} to the pool", r"pass --price \1=IN,OUT (dollars for a million tokens)"),
    (r"\bparams=\{\"(\w+)\": …\}", r"--param \1=…"),
    (r"^(model|timeout|deadline|headers|params)(?=:| must )", r"--\1"),
    (r"^--headers\b", "--header"),
    (r"^--params\b", "--param"),
]


def in_command_words(message: str) -> str:
    """Return a message with the command's options in place of Python's settings; prompts are counted from 1."""
    for pattern, words in _PHRASES:
        message = re.sub(pattern, words, message)
    message = re.sub(
        r"^prompt (\d+)(?=:)", lambda found: f"prompt {int(found[1]) + 1}", message
    )  # as lines are counted
    return _WORD.sub(lambda found: _OPTIONS[found[1]], message)
