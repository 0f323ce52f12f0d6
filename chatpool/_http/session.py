"""One pooled requests Session: set up once, and one request after another sent through it."""

from __future__ import annotations

import math
import os
import threading
import warnings
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from http.client import HTTPException
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests import Session as Session  # for the annotations of other modules
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from chatpool._protocol.replies import Reply
from chatpool._protocol.requests import CHAT_PATH
from chatpool._protocol.settings import Settings
from chatpool._protocol.streams import StreamedAnswer, is_event_stream
from chatpool.errors import APIConnectionError, APITimeoutError, CallError, ConfigurationError, InvalidResponseError

from .cancel import CancelScope, current
from .environment import find_route, resolve_environment
from .failures import causes, forget_frames, is_of_the_wire, judge_failure, proxy_refusal
from .fast_path import FastResponse, copy_headers, lower_names
from .framing import MAX_BODY, BodyTooLarge
from .keys import KeySource
from .pools import PoolAdapter, use_our_pools
from .reading import read_body, read_events
from .redaction import Redactor, redact_urllib3_log, secrets_in, secrets_of_query
from .repeats import RepeatedReply
from .resolver import Resolver

_MAX_ERROR_BODY = 64 * 2**10  # bytes read of an error's body

# Objects inherited through fork() are kept alive and never closed: their locks may be held by threads that do not exist
# here.
inherited_from_parent: list[object] = []

# The process in which each user's adapter was first used. One from another process may hold connections that are still
# used there.
_adapter_pids: weakref.WeakKeyDictionary[HTTPAdapter, int] = weakref.WeakKeyDictionary()
_IMPORT_PID = os.getpid()  # nothing was inherited there
# The transports that send through a Session of the user's, each with its process and address.
_users_of_session: weakref.WeakKeyDictionary[requests.Session, set[tuple[int, str, int]]] = weakref.WeakKeyDictionary()


class _Bearer(AuthBase):
    """Sends the key. As an auth object rather than a header, because .netrc replaces the header."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def __repr__(self) -> str:
        return "<the API key>"


class Transport:
    """Sends one request after another, from any number of threads, through one Session.

    The Session is set up once and only read afterwards, which is what makes sharing it sound.
    """

    def __init__(
        self, settings: Settings, session: requests.Session | None, user_agent: str, resolver: Resolver
    ) -> None:
        self._settings, self._resolver, self._shown_url = settings, resolver, settings.shown_url
        self._is_own = session is None
        self.session = _new_session() if session is None else session
        self._mount(settings)
        self._user_agent = user_agent
        self._keys = None if settings.ask_key is None else KeySource(settings.ask_key)
        self._thread = threading.local()  # .authorization: of this thread's latest request, by the session's auth
        self._has_key = bool(settings.api_key or settings.ask_key)
        in_query = secrets_of_query(settings.base_url)
        self.redact = Redactor(settings.secrets + in_query)
        self._templates = {CHAT_PATH: self._prepare_template(CHAT_PATH)}
        self.redact = Redactor(settings.secrets + in_query + secrets_in(self._templates[CHAT_PATH].headers))
        if in_query:
            redact_urllib3_log(self.redact)
        self._options = {
            **resolve_environment(self.session, settings.chat_url, is_loopback=settings.is_loopback),
            "stream": True,
            "allow_redirects": False,
            "timeout": (settings.connect_timeout, settings.read_timeout),
        }
        self._route = find_route(settings.chat_url, settings.shown_url, self._options["proxies"])
        self._auth_each_time = None if self._has_key or self._is_own else self.session.auth
        _warn_of_plain_http(settings)

    def close(self) -> None:
        """Close the connections; a Session of the user's stays open."""
        if self._is_own:
            self.session.close()
            return
        # Of two pools on one Session the later's adapter serves both; the last to leave closes it.
        users, me = _users_of_session.setdefault(self.session, set()), self._as_user
        users.discard(me)
        mounted = self.session.get_adapter(self._settings.chat_url)
        is_last = all(user[:2] != me[:2] for user in list(users))
        for adapter in (self._adapter, mounted):
            if isinstance(adapter, PoolAdapter) and (is_last or adapter is not mounted):
                adapter.close()

    def send(self, path: str, payload: bytes, scope: CancelScope, answer: StreamedAnswer | None = None) -> Reply:
        """Send a request and read the whole reply; raise the CallError that says why there is none.

        ``answer``: takes the reply in as it arrives, if it is a stream. Once that can be judged, it counts,
        whatever happens to the connection afterwards.
        """
        scope.set_timeout("connect", self._settings.connect_timeout + self._settings.read_timeout)
        request = self._request(path, payload)
        failure: CallError | None = None
        if self._keys is not None:
            self._sign(request, self._keys.key(scope))
            scope.set_timeout("connect", self._settings.connect_timeout + self._settings.read_timeout)
        outer = vars(current).copy()  # empty, unless a Session's hook uses another pool in the middle of a request
        current.scope, current.settings, current.resolver = scope, self._settings, self._resolver
        current.asked, current.is_repeated = zlib.crc32(payload), False
        try:
            response = self.session.send(request, **self._options)
            if answer is None and path == CHAT_PATH and _is_event_stream(response):
                answer = StreamedAnswer()  # the prompt asked for it with a field of its own, or nobody did
            reply = self._read(response, scope, answer)
            if current.is_repeated:
                scope.is_stale = True  # the next attempt opens its own connection, where nothing is left over
                raise RepeatedReply("the server sent the previous reply again")
        except CallError as error:
            failure = error
        except (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
            if not is_of_the_wire(error):
                _close_response()
                raise
            failure = self._translate(error, scope)
            forget_frames(error)
        except BaseException:  # a hook's, or Ctrl-C
            _close_response()
            raise
        finally:
            vars(current).clear()
            vars(current).update(outer)
            is_cut = scope.end()
        # Raised outside the except block: requests' errors carry the request, and the request the key.
        is_whole = failure is None and scope.error is None and answer is not None and answer.can_be_judged
        if is_cut and not is_whole:
            raise scope.error or scope.timeout_error()
        if failure is not None:
            raise failure
        if self._keys is not None and reply.is_success:
            self._keys.accepted()
        return reply

    def renew_key(self, scope: CancelScope, *, is_first: bool) -> bool:
        """Return whether there is another key than the one that the server has just rejected in this thread.

        ``is_first``: whether its call met no 401 before. A session's ``auth``, which may make a token for each request,
        is believed once.
        """
        if self._keys is not None:
            return self._keys.renew(scope)
        if self._auth_each_time is None or not is_first:
            return False
        rejected = self._thread.authorization
        self._request(CHAT_PATH, b"{}")
        return bool(self._thread.authorization != rejected)

    def _mount(self, settings: Settings) -> None:
        """Replace requests' own adapter by ours; the user's own kind of adapter stays."""
        url = settings.chat_url
        self._adapter = PoolAdapter(settings.max_workers)
        found = self.session.get_adapter(url)
        if type(found) in (HTTPAdapter, PoolAdapter):
            prefix = url.split("://")[0] + "://" if self._is_own else self._shown_url
            _mount_at_once(self.session, prefix, self._adapter)
        elif isinstance(found, HTTPAdapter):
            if _adapter_pids.get(found) != os.getpid() and (len(found.poolmanager.pools) or found.proxy_manager):
                if os.getpid() != _IMPORT_PID:
                    inherited_from_parent.append((found.poolmanager, found.proxy_manager))
                vars(HTTPAdapter)["__setstate__"](found, vars(HTTPAdapter)["__getstate__"](found))
            _adapter_pids[found] = os.getpid()
            use_our_pools(found.poolmanager)
        if not self._is_own:
            self._as_user = (os.getpid(), self._shown_url, id(self))
            _users_of_session.setdefault(self.session, set()).add(self._as_user)

    def _prepare_template(self, path: str) -> requests.PreparedRequest:
        settings = self._settings
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Content-Type": "application/json"}
        if self._is_own:
            headers["User-Agent"] = self._user_agent
        auth = None if self.session.auth and not self._has_key else _Bearer(settings.api_key)
        request = requests.Request("POST", settings.url_for(path), headers={**headers, **settings.headers}, auth=auth)
        try:
            prepared = self.session.prepare_request(request)
            prepared.headers.setdefault("Host", urlsplit(prepared.url or "").netloc.rpartition("@")[2])
            return prepared
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise ConfigurationError(f"base_url or headers cannot be used: {self.redact(str(error))}") from None

    def _request(self, path: str, payload: bytes) -> requests.PreparedRequest:
        template = self._templates.get(path)
        if template is None:
            template = self._templates[path] = self._prepare_template(path)
        request = requests.PreparedRequest()  # its own copy() would copy a cookie jar, too
        request.method, request.url, request.hooks = template.method, template.url, template.hooks
        request.headers = copy_headers(template.headers)
        request.body = payload
        request.headers["Content-Length"] = str(len(payload))
        if self._auth_each_time is not None:  # it may sign the body
            request.prepare_auth(self._auth_each_time, request.url or "")
            self._thread.authorization = request.headers.get("Authorization")
        return request

    def _sign(self, request: requests.PreparedRequest, key: str) -> None:
        """Put a key that the callable returned into a request, and redact it from now on."""
        request.headers["Authorization"] = f"Bearer {key}"
        self.redact.add(key)

    def _read(self, response: requests.Response, scope: CancelScope, answer: StreamedAnswer | None) -> Reply:
        """Read the reply: all of an answer, of an error's body as much as can be had."""
        status, ok = response.status_code, 200 <= response.status_code < 300
        if status == 407 and self._route.proxy is not None:
            response.close()
            raise APIConnectionError(proxy_refusal(self._route), code="proxy_authentication")
        body, failure = b"", None
        is_stream = answer is not None and ok and _is_event_stream(response)
        if answer is not None and is_stream:
            scope.set_idle_timeout(self._settings.idle_timeout or math.inf)
            failure = read_events(response, answer)
            failure = None if answer.can_be_judged else failure
        elif isinstance(response.raw, FastResponse):
            body = response.content
        else:
            body, failure = read_body(response, MAX_BODY if ok else _MAX_ERROR_BODY)
        if ok and failure is not None:
            if any(isinstance(cause, BodyTooLarge) for cause in causes(failure)):
                message = f"the answer is larger than {MAX_BODY // 2**20} MiB"
                raise InvalidResponseError(message, status_code=status, code="too_large")
            raise failure
        if answer is not None and (is_stream or answer.takes(body)):
            return answer.reply(status, lower_names(response.headers), self.redact, self._shown_url)
        return Reply(status, lower_names(response.headers), body, self.redact, self._shown_url)

    def _translate(self, error: BaseException, scope: CancelScope) -> CallError:
        kind, code, message = judge_failure(error, self._route)
        if kind is APITimeoutError:
            return scope.timeout_error()
        if scope.is_stale and kind is APIConnectionError and code != "stale_connection":
            code, message = "stale_connection", "the server had closed the kept connection"
        return kind(self.redact(message), code=code)


def _mount_at_once(session: requests.Session, prefix: str, adapter: HTTPAdapter) -> None:
    """Mount an adapter as Session.mount does, but in a new dict: another pool's threads may iterate the present one."""
    adapters = {**session.adapters, prefix: adapter}
    session.adapters = OrderedDict((known, adapters[known]) for known in sorted(adapters, key=len, reverse=True))


def _is_event_stream(response: requests.Response) -> bool:
    return not isinstance(response.raw, FastResponse) and is_event_stream(response.headers)


def _close_response() -> None:
    """Close the response that this thread was about to read."""
    response = vars(current).get("response")
    if response is not None:
        response.close()


class _OwnSession(requests.Session):
    """Looks for no redirect in each reply, because none is followed."""

    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        return iter(())


def _new_session() -> requests.Session:
    session = _OwnSession()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # a jar that fills up slows every call
    return session


def _warn_of_plain_http(settings: Settings) -> None:
    if (settings.secrets or settings.ask_key) and settings.base_url.startswith("http://") and not settings.is_loopback:
        warnings.warn(
            f"the API key goes over plain http to {settings.shown_url}; anyone on the way can read it: use https",
            stacklevel=2,
        )
