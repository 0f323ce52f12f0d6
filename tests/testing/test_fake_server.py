"""The fake server, which users' tests rely on too, tested with plain sockets and requests."""

from __future__ import annotations

import dataclasses
import enum
import json
import random
import socket
import threading
import time
import typing

import pytest
import requests

from chatpool import ChatPool
from chatpool._protocol.schemas import ResponseFormat
from chatpool._testing.samples import answer_of_its_type, sample
from chatpool.testing import End, FakeChatServer, RateLimit, Raw, Reply, chaos


def post(server, prompt="ping", session=requests, **options):
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    return session.post(f"{server.url}/chat/completions", json=body, timeout=options.pop("timeout", 5), **options)


def test_echoes_by_default_and_records(server):
    reply = post(server, headers={"X-Mine": "yes"})
    document = reply.json()
    assert document["choices"][0]["message"]["content"] == "ping"
    assert document["usage"] == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    (request,) = server.requests
    assert (request.prompt, request.path, request.headers["x-mine"]) == ("ping", "/v1/chat/completions", "yes")
    assert reply.headers["x-request-id"] == request.id == "req_0"


def test_script_is_played_in_order_and_its_last_reply_repeated(server):
    server.script("ping", Reply(status=503, code="busy", headers={"retry-after": "1"}), Reply("pong"))
    first = post(server)
    assert (first.status_code, first.json()["error"]["code"], first.headers["retry-after"]) == (503, "busy", "1")
    assert [post(server).json()["choices"][0]["message"]["content"] for _ in range(2)] == ["pong", "pong"]
    assert server.count("ping") == 3


def test_connections_are_kept_open(server):
    with requests.Session() as session:
        for _ in range(5):
            post(server, session=session)
    assert server.connections == 1


def test_serves_hundreds_of_connections():
    """Three hundred clients at once, each answered."""
    arrived = threading.Barrier(300)

    def reply(request):
        arrived.wait(10)
        return Reply()

    codes = []
    with FakeChatServer(reply=reply) as server:
        threads = [
            threading.Thread(target=lambda: codes.append(post(server, timeout=20).status_code)) for _ in range(300)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.most_in_flight == 300
    assert codes == [200] * 300


def test_rate_limit_rejects_with_a_retry_after():
    with FakeChatServer(rate_limit=RateLimit(per_second=0.001, burst=2, retry_after=0.3)) as server:
        replies = [post(server) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        assert (replies[2].headers["retry-after-ms"], replies[2].headers["retry-after"]) == ("300", "1")
        assert server.refusals == 1


def test_key_is_checked():
    with FakeChatServer(key="sk-1") as server:
        assert post(server).status_code == 401
        assert post(server, headers={"Authorization": "Bearer sk-1"}).status_code == 200


def test_latency_may_vary():
    with FakeChatServer(latency=lambda: 0.05) as server:
        began = time.monotonic()
        post(server)
        assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("close", requests.ConnectionError),
        ("reset", requests.ConnectionError),
        ("reset_midway", (requests.exceptions.ChunkedEncodingError, requests.ConnectionError)),
        ("stall", requests.Timeout),
        ("stall_midway", requests.ConnectionError),
    ],
)
def test_faults(server, fault, kind):
    server.script("ping", Reply(fault=fault))
    with pytest.raises(kind):
        post(server, timeout=1)  # on a busy machine, the headers may take a while


def test_truncated_body_is_shorter_than_declared(server):
    """Tested with a plain socket, because urllib3 1.26 does not notice."""
    server.script("ping", Reply(body=b"x" * 50, fault="truncate"))
    with ask_plainly(server) as sock, sock.makefile("rb") as reader:
        head, body = reader.read().split(b"\r\n\r\n")
    assert b"Content-Length: 50" in head
    assert body == b"x" * 25


def ask_plainly(server):
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    body = b'{"messages": [{"content": "ping"}]}'
    sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    return sock


@pytest.mark.parametrize("fault", ["drip", "drip_headers"])
def test_drip_sends_byte_by_byte(server, fault):
    """So a socket's read timeout never expires."""
    server.script("ping", Reply(body=b"x" * 50, fault=fault))
    sock = ask_plainly(server)
    pieces = [sock.recv(65536) for _ in range(3)]
    sock.close()
    assert len(pieces[-1]) == 1


def test_raw_plays_any_bytes(server):
    server.script("ping", Raw([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", 0.01, b"{}", End.KEEP]))
    assert post(server).json() == {}


def test_chaos_is_the_same_for_the_same_seed():
    def outcomes():
        with FakeChatServer(reply=chaos(0.5, seed=3)) as server:
            return [post(server).status_code for _ in range(20)]

    first = outcomes()
    assert first == outcomes()
    assert {200, 500} == set(first)


def test_close_ends_stalled_replies():
    """So the end of a test does not wait for a reply that never comes."""
    server = FakeChatServer().start()
    server.script("ping", Reply(fault="stall"))

    def ask():
        with pytest.raises(requests.ConnectionError):
            post(server, timeout=30)

    thread = threading.Thread(target=ask)
    thread.start()
    while not server.requests:
        time.sleep(0.005)
    server.close()
    server.close()
    thread.join(5)
    assert not thread.is_alive()


def test_fixture_comes_with_the_package(fake_chat_server):
    """Through an entry point: nothing here imports it."""
    assert isinstance(fake_chat_server, FakeChatServer)
    assert post(fake_chat_server).status_code == 200


def test_a_reply_function_that_returns_no_reply_is_explained():
    with FakeChatServer(reply=lambda request: "x") as server:
        reply = post(server)
    assert reply.status_code == 501
    assert "must return a Reply, such as Reply(\"text\"), not 'x'" in reply.json()["error"]["message"]


def test_models_are_listed(server):
    assert requests.get(f"{server.url}/models", timeout=5).json()["data"][0]["id"] == "fake"


def test_only_the_latest_requests_are_kept_if_so_many_are_enough():
    with FakeChatServer(most_recorded=2) as server:
        for prompt in "abc":
            post(server, prompt)
        assert [(request.id, request.prompt) for request in server.requests] == [("req_1", "b"), ("req_2", "c")]


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


@dataclasses.dataclass
class Review:
    mood: Mood
    tags: list[str]
    is_long: bool
    score: float
    count: int


@pytest.mark.parametrize(
    "kind",
    [Mood, Review, typing.Literal["a", "b"], list[int], {"type": "object", "properties": {"n": {"minimum": 7}}}],
    ids=str,
)
def test_samples_fit_the_schemas_of_types(kind):
    """``chatpool fake-server`` answers with them."""
    wanted = ResponseFormat(kind)
    values = [wanted(json.dumps(sample(wanted.schema, random.Random(seed)))) for seed in range(20)]
    if kind is Mood:
        assert set(values) == set(Mood)


def test_an_answer_of_its_type_is_an_echo_without_a_schema():
    with FakeChatServer(reply=answer_of_its_type) as server:
        assert post(server).json()["choices"][0]["message"]["content"] == "ping"
        pool = ChatPool(base_url=server.url)
        assert pool.ask("ping", response_format=Mood) in Mood
        pool.close()
