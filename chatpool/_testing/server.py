"""The fake server: one thread per connection, on a loopback port."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import unquote

from .dialects import dialect
from .endpoints import embeddings_problem, model, model_list
from .limits import Limit
from .replies import AnyReply, Handler, Raw, Reply, Request
from .streams import Stream
from .wire import End, Step

_BACKLOG = 1024
_LAST_BYTES = (b"}", b"0\r\n\r\n")  # of a JSON document, and of a reply in chunks
_PATHS = ("/chat/completions", "/completions", "/embeddings", "/responses")


class FakeChatServer:
    """A fake chat API. Start it with ``with`` or ``start()``, and pass its ``url`` as ``base_url``.

    By default it answers every prompt with the prompt. ``latency``: seconds before each reply, or a function that
    returns them. ``rate_limit``: requests above it get a 429. ``key``: requests with another key get a 401.
    ``reply``: a function from ``Request`` to ``Reply``, for prompts without a script. ``port``: default: a free one.
    ``tls``: an ``ssl.SSLContext`` for https. ``most_recorded``: requests that are kept, the latest ones; default: all.
    ``stream``: a ``Stream`` for replies that have none of their own; False: the server ignores a request's ``stream``.
    ``stream_options=False``: a request that has them gets a 400, as from servers that do not know them. ``models``: the
    names that ``/models`` lists; a request may name any other.

    Its records: ``requests``, every Request so far, in order of arrival; ``connections``, ``open_connections``: their
    number so far, and now; ``most_in_flight``: the largest number of requests at once; ``refusals``: requests that
    the rate limit rejected.
    """

    def __init__(
        self,
        *,
        latency: float | Callable[[], float] = 0.0,
        rate_limit: Limit | None = None,
        key: str | None = None,
        reply: Handler | None = None,
        port: int = 0,
        tls: Any = None,
        most_recorded: int | None = None,
        stream: Stream | bool = True,
        stream_options: bool = True,
        models: Sequence[str] = ("fake",),
    ) -> None:
        self._latency = latency
        self._limit = copy.deepcopy(rate_limit)  # it keeps counts
        self._key = key
        self._reply = reply or (lambda request: Reply())
        self._tls = tls
        self._stream = stream
        self._stream_options = stream_options
        self._models = tuple(models)
        self._lock = threading.Lock()  # guards the limit, and the fields from here to _taken
        self._scripts: dict[str, deque[AnyReply]] = {}
        self._requests: deque[Request] = deque(maxlen=most_recorded)
        self._numbers = itertools.count()  # of the requests
        self._sockets: set[socket.socket] = set()
        self.connections = self.most_in_flight = self.refusals = 0
        self._in_flight: set[str] = set()  # ids
        self._taken: set[str] = set()  # ids of the requests in flight that the limit has let through
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        self._thread: threading.Thread | None = None

    # Set-up.

    def start(self) -> FakeChatServer:
        """Start serving."""
        self._thread = threading.Thread(target=self._accept, name="fake-chat-server", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop serving, and close every connection. Idempotent."""
        self._closed.set()
        _shut(self._listener)
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            _shut(sock)
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> FakeChatServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def script(self, prompt: str, *replies: AnyReply) -> None:
        """Answer this prompt with these replies, one after another; the last one is repeated."""
        if not replies or not all(isinstance(reply, (Reply, Raw)) for reply in replies):
            raise TypeError('script needs one or more replies, such as Reply("text") or Reply(status=503)')
        with self._lock:
            self._scripts[prompt] = deque(replies)

    # Records.

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{'https' if self._tls else 'http'}://{'localhost' if self._tls else '127.0.0.1'}:{self.port}/v1"

    @property
    def requests(self) -> list[Request]:
        """Every request so far, in order of arrival."""
        with self._lock:
            return list(self._requests)

    @property
    def open_connections(self) -> int:
        """The number of connections that are open now."""
        return len(self._sockets)

    def count(self, prompt: str) -> int:
        """Return the number of requests for this prompt."""
        return sum(request.prompt == prompt for request in self.requests)

    # Serving.

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                break
            with self._lock:
                number = self.connections
                self.connections += 1
                self._sockets.add(sock)
            if self._closed.is_set():  # after close() looked for sockets
                _shut(sock)
            threading.Thread(target=self._serve, args=(sock, number), name="fake-chat-server", daemon=True).start()
        self._listener.close()

    def _serve(self, sock: socket.socket, number: int) -> None:
        plain = sock
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._swap(plain, sock)
            with sock.makefile("rb") as reader:
                while (request := self._receive(reader, number)) is not None:
                    if not self._answer(sock, request):
                        break
        except (OSError, ValueError):
            pass  # the client disconnected, or the server was closed
        finally:
            with self._lock:
                self._sockets.discard(sock)
            sock.close()

    def _swap(self, old: socket.socket, new: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(old)
            self._sockets.add(new)
        if self._closed.is_set():
            _shut(new)

    def _receive(self, reader: Any, number: int) -> Request | None:
        line = reader.readline()
        if not line:
            return None
        headers: dict[str, str] = {}
        while (field_line := reader.readline().strip()) != b"":
            name, _, value = field_line.partition(b":")
            headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        body = reader.read(int(headers.get("content-length", "0")))
        try:
            document = json.loads(body) if body else {}
        except ValueError:
            document = {}
        with self._lock:
            request = Request(
                f"req_{next(self._numbers)}",
                line.split()[1].decode("latin-1"),
                headers,
                document if isinstance(document, dict) else {},
                number,
                time.monotonic(),
                line.split()[0].decode("latin-1"),
            )
            self._requests.append(request)
            self._in_flight.add(request.id)
            self.most_in_flight = max(self.most_in_flight, len(self._in_flight))
        return request

    def _answer(self, sock: socket.socket, request: Request) -> bool:
        """Play the reply; return whether to keep the connection open."""
        try:
            return self._play(sock, request)
        except OSError:
            request.cancelled = not self._closed.is_set()
            raise
        finally:
            self._count_done(request)

    def _play(self, sock: socket.socket, request: Request) -> bool:
        for step in self._steps(request):
            if isinstance(step, bytes):
                if step.endswith(_LAST_BYTES):
                    self._count_done(request)  # before the last byte: the next request may arrive at once
                sock.sendall(step)
            elif isinstance(step, End):
                return self._end(sock, step)
            elif step > 0:
                self._pause(sock, step)
        return False

    def _count_done(self, request: Request) -> None:
        with self._lock:
            self._taken.discard(request.id)
            self._in_flight.discard(request.id)

    def _end(self, sock: socket.socket, end: End) -> bool:
        if end is End.RESET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        elif end is End.STALL:
            self._pause(sock, None)
        return end is End.KEEP

    def _pause(self, sock: socket.socket, seconds: float | None) -> None:
        """Wait. Raise ConnectionError as soon as the client disconnects or the server is closed.

        A TLS socket cannot peek, so this peeks below it. Data there, in the middle of a reply, is the alert with which
        the client closes.
        """
        sock.settimeout(seconds)
        try:
            data = socket.socket.recv(sock, 1, socket.MSG_PEEK)
        except socket.timeout:
            return
        finally:
            sock.settimeout(None)
        if not data or self._tls:
            raise ConnectionError("the client disconnected")
        self._closed.wait(seconds)  # the next request is here already

    def _steps(self, request: Request) -> Iterable[Step]:
        reply = self._choose(request)
        if request.body.get("stream") and isinstance(reply, Reply) and reply.stream is None:
            stream = bool(self._stream) if reply.fault else self._stream  # a fault breaks off by itself
            reply = dataclasses.replace(reply, stream=stream)
        return reply.steps(request)

    def _choose(self, request: Request) -> AnyReply:
        if self._key is not None and request.headers.get("authorization") != f"Bearer {self._key}":
            return Reply(status=401, code="invalid_api_key")
        invalid = self._refuse(request)
        if invalid is not None:
            return invalid
        rejection, announced = self._apply_rate_limit(request)
        if rejection is not None:
            return rejection
        with self._lock:
            script = self._scripts.get(request.prompt)
            reply = (script.popleft() if len(script) > 1 else script[0]) if script else None
        reply = reply or self._handle(request)
        if announced and isinstance(reply, Reply):
            reply = dataclasses.replace(reply, headers={**announced, **reply.headers})
        latency = self._latency() if callable(self._latency) else self._latency
        if latency and isinstance(reply, Reply):
            return dataclasses.replace(reply, delay=latency + reply.delay)
        return Raw([latency, *reply.steps(request)]) if latency else reply

    def _refuse(self, request: Request) -> Reply | None:
        """Return the reply to a request that no script answers: for a list of models, or one that is invalid."""
        path = request.path.partition("?")[0]
        if request.method == "GET" and "/models" in path:
            return self._describe_models(unquote(path.rpartition("/models")[2].strip("/")))
        if not path.endswith(_PATHS):
            paths = ", ".join(("/models", *_PATHS))
            message = f"fake server: no such path: {path}; the base URL is {self.url}, and its paths are {paths}"
            return _error(404, message, "unknown_path")
        if request.endpoint == "/embeddings" and (problem := embeddings_problem(request.body)):
            return _error(400, problem, "invalid_value")
        if not self._stream_options and "stream_options" in request.body:
            return dialect("azure_no_stream_options")
        return None

    def _describe_models(self, name: str) -> Reply:
        if not name:
            return Reply(body=model_list(self._models))
        if name in self._models:
            return Reply(body=model(name))
        return _error(404, f"The model '{name}' does not exist", "model_not_found")

    def _handle(self, request: Request) -> AnyReply:
        """Call the test's own handler. If it raises, return the exception in a reply that no client retries."""
        try:
            reply = self._reply(request)
        except Exception as bug:  # noqa: BLE001 - the test needs to see any exception
            return _bug(f"the test's reply function raised {bug!r}")
        if isinstance(reply, (Reply, Raw)):
            return reply
        return _bug(f'the test\'s reply function must return a Reply, such as Reply("text"), not {reply!r}')

    def _apply_rate_limit(self, request: Request) -> tuple[Reply | None, Mapping[str, str]]:
        """Return the refusal of a request, and the headers that announce the limit."""
        if self._limit is None:
            return None, {}
        with self._lock:
            now = time.monotonic()
            rejection = self._limit.check(request, now, len(self._taken))
            if rejection is not None:
                self.refusals += 1
                return rejection, {}
            self._taken.add(request.id)
            return None, self._limit.headers(now)


def _bug(message: str) -> Reply:
    return _error(501, message, "bug_in_test", {"x-should-retry": "false"})


def _error(status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status=status, body={"error": {"message": message, "code": code}}, headers=headers or {})


def _shut(sock: socket.socket) -> None:
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        sock.close()
