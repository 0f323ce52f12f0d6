"""Send many prompts to an OpenAI-compatible chat API from plain threaded code.

>>> from chatpool import ChatPool
>>> answers = ChatPool(max_workers=20).map(prompts)  # doctest: +SKIP
"""

import logging

from ._protocol.answers import Answers
from ._protocol.prices import Price
from ._protocol.results import ChatResult, Estimate, Retry, Usage
from ._protocol.settings import DEFAULT_MODEL
from ._tables import table
from ._version import __version__
from .errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    CallError,
    ChatPoolError,
    ConfigurationError,
    ConflictError,
    DeadlineError,
    InternalServerError,
    InvalidResponseError,
    JournalError,
    NotFoundError,
    NotSentError,
    ParseError,
    PermissionDeniedError,
    PoolClosedError,
    QuotaExceededError,
    RateLimitError,
    SpendLimitError,
)
from .pool import ChatPool

__all__ = [
    "DEFAULT_MODEL",
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "Answers",
    "AuthenticationError",
    "BadRequestError",
    "CallError",
    "ChatPool",
    "ChatPoolError",
    "ChatResult",
    "ConfigurationError",
    "ConflictError",
    "DeadlineError",
    "Estimate",
    "InternalServerError",
    "InvalidResponseError",
    "JournalError",
    "NotFoundError",
    "NotSentError",
    "ParseError",
    "PermissionDeniedError",
    "PoolClosedError",
    "Price",
    "QuotaExceededError",
    "RateLimitError",
    "Retry",
    "SpendLimitError",
    "Usage",
    "__version__",
    "table",
]

logging.getLogger("chatpool").addHandler(logging.NullHandler())
