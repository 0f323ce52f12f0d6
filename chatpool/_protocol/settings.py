"""Validates a pool's settings. Every error names the setting and the remedy, and none shows a key."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, Callable, TypeVar, Union
from urllib.parse import SplitResult, urlsplit, urlunsplit

from chatpool.errors import ConfigurationError

from .prices import Price, Prices, check_prices
from .requests import CHAT_PATH, encode

# Small, current, and without an announced shutdown; OpenAI's own replacement for gpt-4o-mini, which ends on 2027-01-14
# (developers.openai.com/api/docs/deprecations, read in November 2026).
DEFAULT_MODEL = "gpt-6-luna"
DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_MAX_WORKERS = 20
DEFAULT_TIMEOUT = (5.0, 600.0)  # seconds: connect, read
DEFAULT_MAX_TRIES = 6
DEFAULT_MAX_WAIT = 60.0  # seconds

_CREDENTIAL_HEADERS = frozenset({"authorization", "api-key", "x-api-key"})
_CHAT = "/chat/completions"
_ONE_SERVER = "; a pool has one server: make a pool for each, or put a load balancer before them"
_OR_CALLABLE = {"api_key": " or a function that returns one"}

_N = TypeVar("_N", int, float)
Timeout = Union[float, tuple[float, float]]
ApiKey = Union[str, Callable[[], str]]


@dataclass(frozen=True)
class Settings:
    """The validated settings of a pool."""

    max_workers: int
    model: str
    api_key: str | None = field(repr=False)
    ask_key: Callable[[], str] | None = field(repr=False)  # a callable in place of a key
    key_is_from_environment: bool
    has_own_auth: bool  # the user's Session or headers contain credentials
    base_url: str = field(repr=False)
    system: str | None = field(repr=False)
    params: Mapping[str, Any] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    connect_timeout: float
    read_timeout: float
    idle_timeout: float | None
    max_tries: int
    max_time: float | None
    max_wait: float
    requests_per_minute: float | None
    tokens_per_minute: float | None
    prices: Mapping[str, Price] = field(repr=False)

    @property
    def chat_url(self) -> str:
        """The URL that chat prompts are posted to; it keeps the base URL's query string."""
        return self.url_for(CHAT_PATH)

    def url_for(self, path: str) -> str:
        """Return the URL of an endpoint; ``path``: ``/v1/…``, as in a Batch file."""
        parts = urlsplit(self.base_url)
        base = parts.path.rstrip("/")
        if base.endswith(_CHAT):
            base = base[: -len(_CHAT)]
        return urlunsplit(parts._replace(path=base + (path[3:] if path.startswith("/v1/") else path)))

    @property
    def shown_url(self) -> str:
        """The base URL without its query, which may hold secrets."""
        return urlunsplit(urlsplit(self.base_url)._replace(query="", fragment=""))

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    @property
    def secrets(self) -> list[str]:
        """The keys that must never be shown."""
        keys = [value for name, value in self.headers.items() if name.lower() in _CREDENTIAL_HEADERS]
        return [key for key in [self.api_key, *keys] if key]


def make_settings(
    *,
    max_workers: int,
    model: str | None,
    api_key: ApiKey | None,
    base_url: str | None,
    system: str | None,
    params: Mapping[str, Any] | None,
    headers: Mapping[str, str] | None,
    timeout: Timeout,
    idle_timeout: float | None,
    max_tries: int,
    max_time: float | None,
    max_wait: float,
    requests_per_minute: float | None,
    tokens_per_minute: float | None,
    prices: Prices | None,
    has_own_auth: bool,
) -> Settings:
    """Validate every setting and read the environment; raise ConfigurationError for an invalid setting.

    ``has_own_auth``: the user's Session has credentials, so no key is needed.
    """
    headers = _check_headers(headers)
    url = _check_base_url(base_url if base_url is not None else os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL)
    has_own_auth = has_own_auth or has_credentials(headers)
    connect, read = _check_timeout(timeout)
    settings = Settings(
        max_workers=check_count("max_workers", max_workers),
        model=_check_text("model", _find_model(model)),
        api_key=None if api_key is None or callable(api_key) else check_key("api_key", api_key),
        ask_key=api_key if callable(api_key) else None,
        key_is_from_environment=api_key is None and not has_own_auth,
        has_own_auth=has_own_auth,
        base_url=url,
        system=None if system is None else _check_text("system", system),
        params=check_params(params),
        headers=headers,
        connect_timeout=connect,
        read_timeout=read,
        idle_timeout=_check_seconds("idle_timeout", idle_timeout, optional=True),
        max_tries=check_count("max_tries", max_tries),
        max_time=_check_seconds("max_time", max_time, optional=True),
        max_wait=_check_seconds("max_wait", max_wait, zero=True) or 0.0,
        requests_per_minute=_check_seconds("requests_per_minute", requests_per_minute, optional=True, unit=""),
        tokens_per_minute=_check_seconds("tokens_per_minute", tokens_per_minute, optional=True, unit=""),
        prices=check_prices(prices),
    )
    return find_key(settings)


def find_key(settings: Settings) -> Settings:
    """Fill in the key from the environment, unless another is given; raise ConfigurationError if OpenAI needs one.

    With other credentials the environment's key is not sent: it is probably for another server.
    """
    key = settings.api_key
    if settings.key_is_from_environment:
        key = check_key("OPENAI_API_KEY", os.environ.get("OPENAI_API_KEY", ""))
    elif settings.has_own_auth or settings.ask_key is not None:
        return settings
    if key is None and urlsplit(settings.base_url).hostname == urlsplit(DEFAULT_BASE_URL).hostname:
        raise ConfigurationError(
            "no API key: set the environment variable OPENAI_API_KEY or pass api_key=…; "
            "for a local server that needs no key, pass base_url=… or set OPENAI_BASE_URL"
        )
    return replace(settings, api_key=key)


def has_credentials(headers: Iterable[str]) -> bool:
    """Whether one of these headers contains a key."""
    return any(name.lower() in _CREDENTIAL_HEADERS for name in headers)


def session_has_auth(session: Any) -> bool:
    """Whether a Session of the user's brings credentials; raise ConfigurationError for anything but a Session."""
    if session is None:
        return False
    if not hasattr(session, "prepare_request"):
        raise ConfigurationError(f"session must be a requests.Session, not {type(session).__name__}")
    return bool(session.auth) or has_credentials(session.headers)


def check_params(params: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return a copy of the body parameters."""
    if params is None:
        return {}
    if not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params):
        raise ConfigurationError('params must be a dict of body parameters, such as {"temperature": 0}')
    if "messages" in params:
        raise ConfigurationError("params must not hold 'messages'; pass the messages as a prompt")
    if params.get("stream"):
        raise ConfigurationError(
            "params: stream=True is not supported; leave it out: idle_timeout=… streams inside, stream() yields pieces"
        )
    try:
        encode(dict(params), "params")
    except (TypeError, ValueError) as error:
        raise ConfigurationError(str(error)) from None
    return dict(params)


def check_run(journal: Any, progress: Any) -> None:
    """Raise ConfigurationError for a ``journal`` that is no path, or a ``progress`` that is neither True nor False."""
    if journal is not None and not isinstance(journal, (str, os.PathLike)):
        raise ConfigurationError(f"journal must be the path of a file, not {journal!r} ({type(journal).__name__})")
    if journal is not None and not os.fspath(journal):
        raise ConfigurationError("journal must be the path of a file; it is empty")
    if not isinstance(progress, bool) and progress is not None:
        raise ConfigurationError(f"progress must be True, False or None, not {progress!r}")


def check_deadline(deadline: float | None) -> float | None:
    """Return the deadline in seconds, or None."""
    return _check_seconds("deadline", deadline, optional=True, zero=True)


def check_parse(parse: Callable[[str], Any] | None, *, has_type: bool = False) -> None:
    """Raise ConfigurationError if ``parse`` is not callable, or the ``response_format`` is a type already."""
    if parse is not None and not callable(parse):
        raise ConfigurationError(f"parse must be a function of the answer's text, not {type(parse).__name__}")
    if parse is not None and has_type:
        raise ConfigurationError("pass parse or a type as response_format, not both: each makes the answer's value")


def check_hook(name: str, hook: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    """Raise ConfigurationError if a callback is not callable."""
    if hook is not None and not callable(hook):
        raise ConfigurationError(f"{name} must be a function, not {type(hook).__name__}")
    return hook


def _find_model(model: str | None) -> str:
    return model if model is not None else os.environ.get("OPENAI_MODEL", "").strip() or DEFAULT_MODEL


def check_key(name: str, key: str) -> str | None:
    """Return a key without white space around it, None if it is empty; raise ConfigurationError for an invalid one."""
    if not isinstance(key, str):
        raise ConfigurationError(f"{name} must be a str{_OR_CALLABLE.get(name, '')}, not {type(key).__name__}")
    key = key.strip()
    if key[:7].lower() == "bearer ":
        raise ConfigurationError(f"{name} must be the key alone, without 'Bearer ' before it")
    if key[:1] in ("'", '"'):
        raise ConfigurationError(f"{name} begins with a quotation mark; remove the quotes")
    for number, char in enumerate(key, 1):
        if not "!" <= char <= "~":
            problem = "white space or a line break" if char.isspace() else "an invalid character"
            raise ConfigurationError(f"{name}: character {number} of {len(key)} is {problem}; copy the key again")
    return key or None


def _check_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise ConfigurationError(f"headers must be a dict of str to str, not {type(headers).__name__}")
    checked = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigurationError(f"headers: {name!r} and its value must be str")
        value = value.strip()
        if not all(" " <= char <= "~" for char in name + value):
            raise ConfigurationError(f"headers: the value of {name!r} has an invalid character; use printable ASCII")
        checked[name] = value
    return checked


def _check_base_url(url: str) -> str:
    if not isinstance(url, str):
        raise ConfigurationError(f"base_url must be a str, not {type(url).__name__}{_ONE_SERVER}")
    if re.search(r",\s*(https?://|$)", url) or "," in urlsplit(url.strip().partition("?")[0]).netloc:
        raise ConfigurationError(f"base_url has several addresses, separated by commas{_ONE_SERVER}")
    parts = _split(url.strip())
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError("base_url must look like https://host/v1, with http or https and a host")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("base_url must not contain a user name or password; pass api_key or headers")
    return urlunsplit(parts._replace(fragment=""))


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is not a number
    except ValueError:
        return None
    return parts


def _check_timeout(timeout: Timeout) -> tuple[float, float]:
    pair = timeout if isinstance(timeout, (tuple, list)) else (timeout, timeout)
    if len(pair) != 2:
        raise ConfigurationError("timeout must be one number of seconds or a pair (connect, read)")
    connect, read = (_check_seconds("timeout", seconds) for seconds in pair)
    if connect is None or read is None:
        raise ConfigurationError("timeout=None would allow a call to hang forever; pass seconds, for example (5, 600)")
    return connect, read


def _check_seconds(
    name: str, seconds: Any, *, optional: bool = False, zero: bool = False, unit: str = " of seconds"
) -> float | None:
    if seconds is None and (optional or name == "timeout"):
        return None
    number = _number(float, seconds)
    if number is None or not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        bound = "0 or more" if zero else "more than 0"
        raise ConfigurationError(f"{name} must be a number{unit}, {bound}, not {seconds!r}")
    return number


def check_count(name: str, count: Any) -> int:
    """Return a whole number of 1 or more, also from numpy's integers; raise ConfigurationError for anything else."""
    number = _number(operator.index, count)
    if number is None or number < 1:
        raise ConfigurationError(f"{name} must be a whole number, 1 or more, not {count!r}")
    return number


def check_amount(name: str, amount: Any) -> float:
    """Return a number of dollars of more than 0."""
    dollars = _check_seconds(name, amount, unit=" of dollars")
    assert dollars is not None
    return dollars


def _number(convert: Callable[[Any], _N], value: Any) -> _N | None:
    """Return a number, also from numpy's scalars; None for anything else: True is no number, nor is a str."""
    try:
        return None if isinstance(value, (bool, str, bytes)) or value.__class__.__name__ == "bool" else convert(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _check_text(name: str, text: str) -> str:
    if not isinstance(text, str) or (name == "model" and not text.strip()):
        raise ConfigurationError(f"{name} must be a non-empty str, not {text!r}")
    return text
