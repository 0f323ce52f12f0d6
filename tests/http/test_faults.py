"""The catalogue of faults, on real sockets: what a server may do, how the prompt ends, and how many requests it takes.

Each row: how the server misbehaves; the outcome; the requests that it took, with ``max_tries=2``. After every row a
well prompt is asked through the same pool, with one worker, and must get its own answer: no fault may hand one prompt
another's, or spoil a connection for the next. Replies that differ only in content are in test_replies.

The names F01 to F77 are those of the catalogue that the project was designed with. Where each is shown:

A, connecting: F01 F02 F03 F06 here; F04 (look-up that hangs) cannot be aborted: the map returns at its
deadline all the same; F05 F08 F09 here; F07 (a close that is seen) test_map, stale connections; F10 (pool too small)
test_map, connections are reused; F11 (proxy for loopback) test_security; F12 (SOCKS without its package) is
requests' InvalidSchema, "cannot_connect", final.
B, time: F13 to F17 here, over TLS in test_never_stuck; F18 (NAT) keep-alive options, test_wire_options below; F19 (clock
jumps) all times are time.monotonic(), but for Retry-After dates, test_replies.
C, framing: F20 to F31 here. F21's second reply is recognised by its ids, see test_hostile; what is there already is
thrown away with the connection. F26's missing trailer passes if the JSON is whole.
D, content: F32 to F37 and F40 here and in test_replies; F38 (NaN) is accepted, some servers send it in logprobs; F39
(lone surrogate) test_replies.
E, limits: F41 F42 F43 test_replies, test_limits and test_neighbour; F44 (slow_down) is a 503 like others; F45 here; F46
(local servers that queue) a read limit of the user's, no load shedding of ours; F47 test_neighbour; F48 test_map, max_tries.
F, threads and processes: F49 F51 F52 test_processes; F50 test_map; F53 (subinterpreters) not tested; F54 (gevent) not
tested yet; F55 test_map; F56 test_protocol, cookies; F57 test_security, environment read once; F58 test_progress; F59
(free-threaded builds) none at hand.
G, security: F60 F61 F64 F65 test_settings; F62 F63 F66 test_security and test_never_stuck; F67 no cassettes are kept.
H, data loss: F68 to F74 belong to the journal, which is not built yet.
I, input: F75 F77 test_settings, test_messages, test_map; F76 test_iterators.
"""

from __future__ import annotations

import functools
import gzip
import json
import socket
import subprocess
import sys
import zlib

import pytest

import chatpool._http.connections
from chatpool import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    BadRequestError,
    ChatPool,
    InternalServerError,
    InvalidResponseError,
    PermissionDeniedError,
    RateLimitError,
)
from chatpool.testing import End, FakeChatServer, Raw, Reply, Request
from tests.http.conftest import black_hole

ANSWER = {"choices": [{"message": {"role": "assistant", "content": "well"}, "finish_reason": "stop"}]}
BODY = json.dumps(ANSWER).encode()
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def sized(body, declared=None, extra=b""):
    return OK + extra + b"Content-Length: %d\r\n\r\n" % (len(body) if declared is None else declared) + body


def chunked(*chunks, end=b"0\r\n\r\n"):
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks) + end


def zipped(body):
    return sized(body, extra=b"Content-Encoding: gzip\r\n")


def bomb(megabytes):
    """So many megabytes of blanks, compressed a thousandfold."""
    press = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(press.compress(b" " * 2**20) for _ in range(megabytes)) + press.flush()


class Lazy:
    """Makes a big reply when it is first asked for, and keeps it."""

    def __init__(self, make):
        self.made = functools.lru_cache(maxsize=1)(make)

    def steps(self, request):
        return self.made()


HALF = BODY[: len(BODY) // 2]
INTERIM_102 = b"HTTP/1.1 102 Processing\r\n\r\n"
INTERIM_103 = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"

# What is an answer in spite of everything: name: reply. One request each.
ANSWERED = {
    "F20 102 before the reply": Raw([INTERIM_102, sized(BODY), End.KEEP]),
    "F20 103 before the reply": Raw([INTERIM_103 + sized(BODY), End.KEEP]),
    "F20 103, a while, then the reply": Raw([INTERIM_103, 0.05, sized(BODY), End.KEEP]),
    "F20 100, 102 and 103": Raw(
        [b"HTTP/1.1 100 Continue\r\n\r\n" + INTERIM_102 + INTERIM_103, 0.01, sized(BODY), End.KEEP]
    ),
    "F17 blank lines while the model thinks": Raw([sized(b"\n\n\n" + BODY), End.KEEP]),
    "chunked": Raw([chunked(HALF, BODY[len(HALF) :]), End.KEEP]),
    "chunked, byte by byte": Raw([chunked(*[bytes([b]) for b in BODY]), End.KEEP]),
    "until the connection closes": Raw([OK + b"\r\n" + BODY, End.CLOSE]),
    "HTTP/1.0": Raw([b"HTTP/1.0 200 OK\r\n\r\n" + BODY, End.CLOSE]),
    "gzip, not asked for": Raw([zipped(gzip.compress(BODY)), End.KEEP]),
    "F35 byte order mark": Raw([sized(b"\xef\xbb\xbf" + BODY), End.KEEP]),
    "F21 leftover bytes after the reply": Raw([sized(BODY) + sized(b"{}"), End.KEEP]),
    "connection: close": Raw([sized(BODY, extra=b"Connection: close\r\n"), End.CLOSE]),
    "F45 absurd rate headers": Reply(
        "well", headers={"x-ratelimit-remaining-tokens": "-20", "x-ratelimit-reset-requests": "soon"}
    ),
    "cut at the token limit": Reply("well", finish_reason="length"),
}

# name: (reply, class of the error, its code, its status, requests)
FAILED = {
    "F05 reset, no byte": (Reply(fault="reset"), APIConnectionError, "connection_failed", None, 2),
    "F08 closed, no byte": (Reply(fault="close"), APIConnectionError, "connection_failed", None, 2),
    "reset in the headers": (Raw([OK, 0.02, End.RESET]), APIConnectionError, "connection_failed", None, 2),
    "closed in the headers": (Raw([OK, End.CLOSE]), InvalidResponseError, "no_json", 200, 2),
    "closed in the status line": (Raw([b"HTTP/1.", End.CLOSE]), APIConnectionError, "connection_failed", None, 2),
    "reset in the body": (Raw([sized(HALF, len(BODY)), 0.02, End.RESET]), APIConnectionError, "connection_failed", None, 2),
    "F22 closed in the body": (Raw([sized(HALF, len(BODY)), End.CLOSE]), APIConnectionError, "incomplete_read", None, 2),
    "F23 more body than declared": (Raw([sized(BODY, len(BODY) - 5), End.KEEP]), InvalidResponseError, "no_json", 200, 2),
    "F25 cut short, no length given": (Raw([OK + b"\r\n" + HALF, End.CLOSE]), InvalidResponseError, "no_json", 200, 2),
    "F24 cut in a chunk": (Raw([OK + b"Transfer-Encoding: chunked\r\n\r\n40\r\nabc", End.CLOSE]), APIConnectionError, "incomplete_read", None, 2),
    "F24 no last chunk": (Raw([chunked(BODY, end=b""), End.CLOSE]), APIConnectionError, "incomplete_read", None, 2),
    "F24 chunk of no length": (Raw([OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n", End.CLOSE]), APIConnectionError, "incomplete_read", None, 2),
    "bad gzip": (Raw([zipped(b"no gzip at all"), End.KEEP]), InvalidResponseError, "bad_encoding", None, 2),
    "F26 gzip cut short": (Raw([zipped(gzip.compress(BODY)[:-20]), End.KEEP]), InvalidResponseError, "no_json", 200, 2),
    "F27 gzip bomb of 400 MB": (Lazy(lambda: [zipped(bomb(400)), End.KEEP]), InvalidResponseError, "too_large", 200, 1),
    "body of 200 MB": (Lazy(lambda: [sized(b"", 200 * 2**20), *[b" " * 2**20] * 200, End.KEEP]), InvalidResponseError, "too_large", 200, 1),
    "F28 no HTTP at all": (Raw([b"SSH-2.0-OpenSSH_9.6\r\n", End.CLOSE]), APIConnectionError, "connection_failed", None, 2),
    "F28 HTML without a status line": (Raw([b"<html>hello</html>\r\n", End.CLOSE]), APIConnectionError, "connection_failed", None, 2),
    "F28 header line of 70 KB": (Raw([OK + b"X: " + b"x" * 70_000 + b"\r\n\r\n", End.CLOSE]), APIConnectionError, "connection_failed", None, 2),
    "F28 150 headers": (Raw([OK + b"X: x\r\n" * 150 + b"\r\n", End.CLOSE]), APIConnectionError, "connection_failed", None, 2),
    "interim replies without end": (Raw([INTERIM_103 * 300, End.CLOSE]), APIConnectionError, "connection_failed", None, 2),
    "F13 silence": (Reply(fault="stall"), APITimeoutError, "read_timeout", None, 2),
    "F14 silence in the body": (Reply(fault="stall_midway"), APITimeoutError, "read_timeout", None, 2),
    "F15 drip of the body": (Reply("x" * 500, fault="drip"), APITimeoutError, "read_timeout", None, 2),
    "F16 drip of the headers": (Reply("x" * 500, fault="drip_headers"), APITimeoutError, "read_timeout", None, 2),
    "F29 header without a colon": (Raw([b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", End.STALL]), APITimeoutError, "read_timeout", None, 2),
    "F30 redirect to another host": (Reply(status=302, body="", headers={"Location": "http://127.0.0.2:9/"}), APIStatusError, None, 302, 1),
    "F30 redirect that keeps the method": (Reply(status=308, body="", headers={"Location": "/v2"}), APIStatusError, None, 308, 1),
    "redirect with an endless body": (Raw([b"HTTP/1.1 307 X\r\nLocation: /x\r\n\r\n", *[b" " * 2**20] * 50, End.CLOSE]), APIStatusError, None, 307, 1),
    "F31 429 with a broken body": (Raw([b"HTTP/1.1 429 X\r\nretry-after-ms: 1\r\nContent-Length: 50\r\n\r\n{}", End.CLOSE]), RateLimitError, None, 429, 2),
    "400 with a body of 50 MB": (Raw([b"HTTP/1.1 400 X\r\n\r\n", *[b" " * 2**20] * 50, End.CLOSE]), BadRequestError, None, 400, 1),
    "101 switching protocols": (Raw([b"HTTP/1.1 101 X\r\n\r\n", End.CLOSE]), APIStatusError, None, 101, 1),
    "F32 HTML with 200": (Reply(body="<html>log in</html>"), InvalidResponseError, "no_json", 200, 2),
    "F33 empty with 200": (Reply(body=""), InvalidResponseError, "no_json", 200, 2),
    "F34 a list": (Reply(body=[1]), InvalidResponseError, "no_object", 200, 2),
    "F36 not UTF-8": (Raw([sized(b'{"a": "\xff\xfe"}'), End.KEEP]), InvalidResponseError, "no_json", 200, 2),
    "F37 nested 200,000 deep": (Reply(body=b"[" * 200_000), InvalidResponseError, "no_json", 200, 2),
    "F40 error inside a 200": (Reply(body={"error": {"code": 502}}), InternalServerError, None, 502, 2),
    "F40 refusal": (Reply(body={"choices": [{"message": {"refusal": "no"}}]}), InvalidResponseError, "refusal", 200, 1),
    "F40 no text at the token limit": (Reply("", finish_reason="length"), InvalidResponseError, "length", 200, 1),
    **{f"status {status}": (Reply(status=status), InternalServerError, "fake_error", status, 2) for status in (500, 501, 502, 503, 504, 520, 522, 524, 529, 599)},
    **{f"status {status}": (Reply(status=status), APIStatusError, "fake_error", status, 2) for status in (408, 409, 424, 425, 498, 499)},
    **{f"status {status}": (Reply(status=status), APIStatusError, "fake_error", status, 1) for status in (400, 404, 405, 406, 410, 413, 414, 415, 418, 421, 422, 431, 451)},
}  # fmt: skip


@pytest.fixture
def pool(server):
    """One worker, one connection, two attempts, and a read limit of 0.3 s."""
    with ChatPool(1, base_url=server.url, max_tries=2, max_wait=0.01, timeout=(1, 0.3)) as pool:
        yield pool


def is_well(pool):
    """Ask three prompts in turn; return whether each got its own answer."""
    return [pool.ask(name) for name in "abc"] == list("abc")


@pytest.mark.parametrize("name", ANSWERED)
def test_answered(server, pool, name):
    """In spite of everything an answer, for one request, and none of the following prompts gets it."""
    server._scripts["failing"] = [ANSWERED[name]]
    assert is_well(pool)
    result = pool.submit("failing").result(10)
    assert (result.value, result.attempts, server.count("failing")) == ("well", 1, 1), result.error
    assert is_well(pool)


@pytest.mark.parametrize("name", FAILED)
def test_failed(server, name):
    """None, with this cause, for so many requests; the pool is well before and after."""
    patience = 20 if "MB" in name else 0.3  # a reply that takes work is not measured by the clock
    with ChatPool(1, base_url=server.url, max_tries=2, max_wait=0.1, timeout=(1, patience)) as pool:
        check_failure(server, pool, name)


def check_failure(server, pool, name):
    reply, kind, code, status, requests = FAILED[name]
    reply.steps(Request("r", "", {}, {}, 0, 0.0))  # a big one is made before the clock runs
    server._scripts["failing"] = [reply]
    result = pool.submit("failing").result(20)
    error = result.error
    assert isinstance(error, kind), error
    assert (error.code, error.status_code) == (code, status), error
    assert (result.value, result.attempts, server.count("failing")) == (None, requests, requests)
    assert error.attempts == requests
    assert (error.__context__, error.__traceback__) == (None, None)
    assert is_well(pool)


@pytest.mark.parametrize("fault", ["close", "reset"])
def test_f08_kept_connection_closed_as_it_is_reused(server, fault):
    """One more request, at once, on a fresh connection; the server's second reply is the answer."""
    server.script("failing", Reply(fault=fault), Reply("well"))
    with ChatPool(1, base_url=server.url, max_wait=60) as pool:
        assert is_well(pool)
        assert server.connections == 1
        result = pool.submit("failing").result(10)
    assert (result.value, result.attempts, server.connections) == ("well", 2, 2)
    assert result.elapsed < 10


def test_f09_connection_idle_for_long_is_not_reused(server, pool, monkeypatch):
    """Servers drop idle connections; a new one costs less than a request lost."""
    assert is_well(pool)
    monkeypatch.setattr("chatpool._http.pools._MAX_IDLE", 0.0)
    assert is_well(pool)
    assert server.connections == 4


def test_f01_refused_port(pool):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with ChatPool(1, base_url=url, max_tries=2, max_wait=0.01) as refused:
            error = refused.submit("a").result(10).error
    assert (type(error), error.code, error.attempts) == (APIConnectionError, "connection_refused", 2)
    assert url in str(error)


def test_f02_black_hole_is_bounded_by_the_connect_timeout():
    """All addresses of a name share one limit."""
    with (
        black_hole() as port,
        ChatPool(1, base_url=f"http://127.0.0.1:{port}/v1", max_tries=1, timeout=(0.3, 30)) as pool,
    ):
        result = pool.submit("a").result(10)
    assert (type(result.error), result.error.code) == (APITimeoutError, "connect_timeout")
    assert 0.2 < result.elapsed < 10


def test_f03_name_that_does_not_exist(monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", fail)
    with ChatPool(1, base_url="http://nowhere.invalid/v1", max_tries=2, max_wait=0.01) as pool:
        error = pool.submit("a").result(10).error
    assert (type(error), error.code, error.attempts) == (APIConnectionError, "name_not_found", 2)


DESCRIPTORS = """
import resource, sys
from chatpool import ChatPool
pool = ChatPool(40, base_url=sys.argv[1], max_wait=0.05, max_tries=50)
resource.setrlimit(resource.RLIMIT_NOFILE, (25, 25))
answers = pool.map([str(n) for n in range(200)])
print(answers == [str(n) for n in range(200)], sum(r.attempts for r in answers.results) > 200)
"""


def test_f06_file_descriptors_exhausted():
    """Calls that find no descriptor are tried again; none is lost."""
    with FakeChatServer(latency=0.01) as server:
        done = subprocess.run(
            [sys.executable, "-c", DESCRIPTORS, server.url], capture_output=True, text=True, timeout=60
        )
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_wire_options(server, pool, monkeypatch):
    """F18: TCP keep-alive is on, from 60 s of silence on, and small packets are not held back."""
    made = []
    connect = chatpool._http.connections._connect
    monkeypatch.setattr("chatpool._http.connections._connect", lambda *args: made.append(connect(*args)) or made[-1])
    options = {}

    def look(text):
        for name in ("SO_KEEPALIVE", "TCP_NODELAY", "TCP_KEEPIDLE"):
            level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
            options[name] = made[0].getsockopt(level, getattr(socket, name))

    pool.map(["a"], parse=look)
    assert options["SO_KEEPALIVE"]
    assert options["TCP_NODELAY"]
    assert options["TCP_KEEPIDLE"] == 60


BOMB = """
import gzip, resource, sys
from chatpool import ChatPool
from chatpool.testing import FakeChatServer, Reply
piece = gzip.compress(bytes(2**20))
bomb = Reply(body=piece * 400, headers={"content-encoding": "gzip"})
flood = Reply(status=500, body=b"x" * 2**27)
with FakeChatServer(reply=lambda request: bomb if request.prompt == "bomb" else flood) as server:
    with ChatPool(1, base_url=server.url, max_tries=1, max_wait=0.01) as pool:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answers = pool.map(["bomb", "flood"])
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) / (2**20 if sys.platform == "darwin" else 2**10), [type(r.error).__name__ for r in answers.results])
"""


def test_memory_stays_small_under_a_bomb_and_a_flood():
    """400 MB unpacked and 128 MB of an error page cost less than 200 MB: 64 MiB are read, and a copy or two of it."""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", BOMB], capture_output=True, text=True, timeout=60)
    grown, names = done.stdout.split(" ", 1)
    assert names.strip() == "['InvalidResponseError', 'InternalServerError']", done.stderr
    assert float(grown) < 128 + 200  # the server in the same process builds the 128 MB once more


def test_403_about_a_keyword_stops_nothing(server, pool):
    """'keyword' and 'monkey' are no key."""
    server.script("p3", Reply(status=403, body={"error": {"message": "flagged for the keyword 'monkey'"}}))
    answers = pool.map([f"p{number}" for number in range(50)])
    assert [type(result.error) for result in answers.failures] == [PermissionDeniedError]
