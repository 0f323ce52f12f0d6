"""The streaming views of the Flask and the Django example, under gunicorn, with clients that read piece by piece."""

from __future__ import annotations

import contextlib
import http.client
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest

from chatpool.testing import End, FakeChatServer, Raw, Reply
from tests.conftest import wait_until
from tests.streaming import CHUNKED, LAST, ROLE, coded, delta, named
from tests.web.programs import PATIENCE
from tests.web.test_gunicorn import pytestmark as pytestmark
from tests.web.test_gunicorn import start as start

CASES = [(example, kind) for example in ("flask_view", "django_view") for kind in ("sync", "gthread", "gevent")]


class Writer:
    """A server of answers with ten words, which goes on after the third one only when it is allowed to."""

    def __init__(self):
        self.go_on = threading.Event()

    def reply(self, request):
        words = [delta(f"{request.prompt}.{number} ") for number in range(10)]
        parts = [coded(named(part, request.id)) for part in (ROLE, *words, *LAST)]
        if "fails" in request.prompt:
            return Raw([CHUNKED, *parts[:4], End.CLOSE])
        if "endless" in request.prompt:
            return Raw([CHUNKED, *parts[:4], *[parts[4], 0.05] * 5000])
        if "waits" in request.prompt:
            return _Waiting(self.go_on, parts)
        return Raw([CHUNKED, *parts, b"0\r\n\r\n", End.KEEP]) if request.body.get("stream") else Reply()


class _Waiting(Raw):
    """Sends three words, and the rest when it is allowed to."""

    def __init__(self, go_on, parts):
        super().__init__(parts)
        object.__setattr__(self, "go_on", go_on)

    def steps(self, request):
        yield from (CHUNKED, *self.script[:4])
        self.go_on.wait(PATIENCE)
        yield from (*self.script[4:], b"0\r\n\r\n", End.KEEP)


@pytest.fixture
def writer():
    return Writer()


@pytest.fixture
def api(writer):
    with FakeChatServer(reply=writer.reply) as server:
        yield server
        writer.go_on.set()


def open_stream(site, prompt):
    """Request a stream; return the connection and the response."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=PATIENCE)
    connection.request("GET", "/stream?" + urlencode({"q": prompt}))
    response = connection.getresponse()
    assert response.status == 200
    assert response.getheader("content-type") == "text/plain; charset=utf-8"
    return connection, response


def read_all(site, prompt):
    connection, response = open_stream(site, prompt)
    with contextlib.closing(connection):
        return response.read().decode()


def text_of(prompt):
    return "".join(f"{prompt}.{number} " for number in range(10))


@pytest.mark.parametrize(("example", "kind"), CASES)
def test_pieces_reach_the_client_as_they_are_written(start, writer, example, kind):
    """The first ones are read before the server sends the rest."""
    site = start(example, kind)
    connection, response = open_stream(site, "waits")
    text = ""
    while len(text) < len("waits.0 " * 3):
        text += response.read1(100).decode()
    assert text == "waits.0 waits.1 waits.2 "
    writer.go_on.set()
    assert text + response.read().decode() == text_of("waits")
    connection.close()
    assert "Traceback" not in site.output


@pytest.mark.parametrize(("example", "kind"), CASES)
def test_each_client_gets_its_own_answer(start, example, kind):
    """Sixty of them, 20 at a time."""
    site = start(example, kind)
    prompts = [f"prompt {number}" for number in range(60)]
    with ThreadPoolExecutor(20) as threads:
        assert list(threads.map(lambda prompt: read_all(site, prompt), prompts)) == [text_of(p) for p in prompts]
    assert "Traceback" not in site.output


@pytest.mark.parametrize(("example", "kind"), CASES)
def test_client_that_leaves_cancels_its_call(start, api, example, kind):
    """The connection to the API is cut, and the site serves the next client."""
    site = start(example, kind)
    before = api.open_connections
    connections = [open_stream(site, f"endless {number}") for number in range(1 if kind == "sync" else 5)]
    for _, response in connections:
        assert response.read1(5) == b"endle"
    assert api.open_connections > before
    for connection, response in connections:
        response.close()
        connection.close()
    assert wait_until(lambda: api.open_connections <= before, PATIENCE)
    assert read_all(site, "next") == text_of("next")
    assert "Traceback" not in site.output


@pytest.mark.parametrize(("example", "kind"), CASES)
def test_error_in_the_middle_is_part_of_the_text(start, example, kind):
    site = start(example, kind)
    text = read_all(site, "fails")
    assert text.startswith("fails.0 fails.1 fails.2  [The answer ends here: the connection closed in mid-answer")
    assert "Traceback" not in site.output
