"""The fake server itself: a thread for each connection, on a loopback port."""

from __future__ import annotations

import json
import math
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from .replies import AnyReply, End, Handler, Raw, Reply, Request, Step

_STEP_OF_STALL = 0.05  # seconds between two looks whether a stalled client is still there
_BACKLOG = 1024
_PATHS = ("/chat/completions", "/completions", "/embeddings", "/responses")


@dataclass(frozen=True)
class RateLimit:
    """A token bucket: ``per_second`` requests, ``burst`` at once; a refusal asks for ``retry_after`` seconds."""

    per_second: float
    burst: float = 1
    retry_after: float | None = None


class FakeChatServer:
    """The server. Start it with ``with`` or ``start()``; ``url`` is the ``base_url`` to use.

    Every prompt is answered with itself, unless ``script`` or ``reply`` say otherwise. ``latency``: seconds before
    each reply, or a function that returns them. ``rate_limit``: refuses with 429 what comes too fast. ``key``: any
    other one is refused with 401. ``reply``: a function from ``Request`` to ``Reply``, for what no script is for.
    ``port``: default: a free one. ``tls``: an ``ssl.SSLContext`` for https.
    """

    def __init__(
        self,
        *,
        latency: float | Callable[[], float] = 0.0,
        rate_limit: RateLimit | None = None,
        key: str | None = None,
        reply: Handler | None = None,
        port: int = 0,
        tls: Any = None,
    ) -> None:
        self._latency = latency
        self._limit = rate_limit
        self._key = key
        self._reply = reply or (lambda request: Reply())
        self._tls = tls
        self._lock = threading.Lock()  # guards all that follows
        self._scripts: dict[str, deque[AnyReply]] = {}
        self._requests: list[Request] = []
        self._sockets: set[socket.socket] = set()
        self._connections = 0
        self._in_flight = self._most_in_flight = 0
        self._refusals = 0
        self._level, self._filled_at = (rate_limit.burst if rate_limit else 0.0), time.monotonic()
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        self._thread: threading.Thread | None = None

    # Setting up.

    def start(self) -> FakeChatServer:
        """Begin to serve."""
        self._thread = threading.Thread(target=self._accept, name="fake-chat-server", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop serving and drop every connection. Closing again does nothing."""
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
        """Answer this prompt with these replies, one after the other; the last one stays."""
        if not replies or not all(isinstance(reply, (Reply, Raw)) for reply in replies):
            raise TypeError('script takes the replies to play, such as Reply("text") or Reply(status=503)')
        with self._lock:
            self._scripts[prompt] = deque(replies)

    # What it saw.

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{'https' if self._tls else 'http'}://{'localhost' if self._tls else '127.0.0.1'}:{self.port}/v1"

    @property
    def requests(self) -> list[Request]:
        """Every request so far, in the order they came."""
        with self._lock:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """How many connections were opened."""
        with self._lock:
            return self._connections

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        with self._lock:
            return len(self._sockets)

    @property
    def most_in_flight(self) -> int:
        """How many requests were under way at once, at most."""
        with self._lock:
            return self._most_in_flight

    @property
    def refusals(self) -> int:
        """How many requests the rate limit refused."""
        with self._lock:
            return self._refusals

    def count(self, prompt: str) -> int:
        """How many requests came for this prompt."""
        return sum(request.prompt == prompt for request in self.requests)

    # Serving.

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                break
            with self._lock:
                number = self._connections
                self._connections += 1
                self._sockets.add(sock)
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
            pass  # the client left, or the server was closed
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
                f"req_{len(self._requests)}",
                line.split()[1].decode("latin-1"),
                headers,
                document if isinstance(document, dict) else {},
                number,
                time.monotonic(),
            )
            self._requests.append(request)
            self._in_flight += 1
            self._most_in_flight = max(self._most_in_flight, self._in_flight)
        return request

    def _answer(self, sock: socket.socket, request: Request) -> bool:
        """Play the reply; return whether the connection is kept."""
        last: Step = End.CLOSE
        left = threading.Event()
        try:
            for last in self._choose(request).steps(request):
                if isinstance(last, bytes):
                    if last.endswith(b"}"):
                        self._leave(left)  # before the last byte is out: the client may be quick
                    sock.sendall(last)
                elif not isinstance(last, End) and self._closed.wait(last):
                    return False
        finally:
            if last is not End.STALL:
                self._leave(left)
        try:
            return self._end(sock, last if isinstance(last, End) else End.CLOSE)
        finally:
            self._leave(left)

    def _leave(self, left: threading.Event) -> None:
        with self._lock:
            if not left.is_set():
                left.set()
                self._in_flight -= 1

    def _end(self, sock: socket.socket, end: End) -> bool:
        if end is End.RESET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        elif end is End.STALL:
            _wait_for_leaving(sock, self._closed)
        return end is End.KEEP

    def _choose(self, request: Request) -> AnyReply:
        if self._key is not None and request.headers.get("authorization") != f"Bearer {self._key}":
            return Reply(status=401, code="invalid_api_key")
        if not request.path.split("?")[0].endswith(_PATHS):
            told = {"error": {"message": f"fake server: no such path: {request.path}", "code": "unknown_path"}}
            return Reply(status=404, body=told)
        refusal = self._refusal()
        if refusal is not None:
            return refusal
        with self._lock:
            script = self._scripts.get(request.prompt)
            reply = (script.popleft() if len(script) > 1 else script[0]) if script else None
        reply = reply or self._handle(request)
        latency = self._latency() if callable(self._latency) else self._latency
        if latency:
            return Raw([latency, *reply.steps(request)])
        return reply

    def _handle(self, request: Request) -> AnyReply:
        """Ask the test's own handler; a bug in it is told in a reply that no client tries again."""
        try:
            return self._reply(request)
        except Exception as bug:  # noqa: BLE001 - whatever it is, the test shall see it
            told = {"error": {"message": f"the test's reply function raised {bug!r}", "code": "bug_in_test"}}
            return Reply(status=501, body=told, headers={"x-should-retry": "false"})

    def _refusal(self) -> Reply | None:
        limit = self._limit
        if limit is None:
            return None
        now = time.monotonic()
        with self._lock:
            self._level = min(limit.burst, self._level + (now - self._filled_at) * limit.per_second)
            self._filled_at = now
            if self._level >= 1:
                self._level -= 1
                return None
            self._refusals += 1
        headers = {}
        if limit.retry_after is not None:
            headers = {
                "retry-after": str(math.ceil(limit.retry_after)),
                "retry-after-ms": str(math.ceil(limit.retry_after * 1000)),
            }
        return Reply(status=429, code="rate_limit_exceeded", headers=headers)


def _wait_for_leaving(sock: socket.socket, closed: threading.Event) -> None:
    sock.settimeout(_STEP_OF_STALL)
    while not closed.is_set():
        try:
            if not sock.recv(1):
                return
        except TimeoutError:
            continue
        except OSError as error:  # before Python 3.10 socket.timeout is no TimeoutError
            if not isinstance(error, socket.timeout):
                return


def _shut(sock: socket.socket) -> None:
    try:
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        sock.close()
