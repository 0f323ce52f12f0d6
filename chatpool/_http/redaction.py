"""Keeps secrets out of messages, and out of urllib3's own log."""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus, urlsplit

_CREDENTIAL_NAME = "(?i)auth|key|token|secret|password|cookie|sig"
_SHORTEST_SECRET = 8  # characters; a shorter key is a word, such as "ollama" for a local server
_LONGEST_WORD = 16  # characters; a secret that is shorter is replaced only as a whole word
_MOST_SECRETS = 20  # of keys that are renewed, the latest


class Redactor:
    """Replaces secrets in texts, but leaves alone what may as well be a word."""

    def __init__(self, secrets: list[str]) -> None:
        self._secrets = [secret for secret in secrets if len(secret) >= _SHORTEST_SECRET]

    def add(self, secret: str) -> None:
        """Replace one more secret; a list that other threads iterate is replaced, not changed."""
        if secret not in self._secrets and len(secret) >= _SHORTEST_SECRET:
            self._secrets = [*self._secrets, secret][-_MOST_SECRETS:]

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            if secret in text:
                text = _replace(text, secret)
        return text

    def __repr__(self) -> str:
        return f"<redacts {len(self._secrets)} secrets>"


def _replace(text: str, secret: str) -> str:
    if len(secret) >= _LONGEST_WORD:
        return text.replace(secret, "[redacted]")
    return re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "[redacted]", text)


def secrets_in(headers: Mapping[str, str]) -> list[str]:
    """Return the values of headers that hold credentials by their names, and what follows a scheme in them."""
    values = [str(value) for name, value in headers.items() if re.search(_CREDENTIAL_NAME, name)]
    return [
        secret for value in values for secret in (value, value.partition(" ")[2]) if len(secret) >= _SHORTEST_SECRET
    ]


def secrets_of_query(url: str) -> list[str]:
    """Return the values of a query's fields that hold credentials by their names, as they stand there and decoded."""
    fields = [field.partition("=") for field in urlsplit(url).query.split("&")]
    values = [value for name, _, value in fields if re.search(_CREDENTIAL_NAME, name)]
    return [secret for value in values for secret in (value, unquote_plus(value)) if len(secret) >= _SHORTEST_SECRET]


class _LogFilter(logging.Filter):
    """Redacts the paths that urllib3 logs at DEBUG, query and all."""

    def __init__(self) -> None:
        super().__init__()
        self.redactors: tuple[weakref.ref[Redactor], ...] = ()

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(self._redact(value) if isinstance(value, str) else value for value in record.args)
        return True

    def _redact(self, text: str) -> str:
        for reference in self.redactors:
            redactor: Any = reference()
            text = text if redactor is None else redactor(text)
        return text


_log_filter = _LogFilter()


def redact_urllib3_log(redactor: Redactor) -> None:
    """Redact what urllib3 logs, for as long as the redactor lives."""
    alive = tuple(reference for reference in _log_filter.redactors if reference() is not None)
    _log_filter.redactors = (*alive, weakref.ref(redactor))
    logging.getLogger("urllib3.connectionpool").addFilter(_log_filter)  # adding it again does nothing
