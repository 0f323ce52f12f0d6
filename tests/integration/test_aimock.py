"""aimock: a server of others' making that plays scripts and chaos, keeps a journal, and answers in chunks."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
from collections import Counter

import pytest

from chatpool import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    ChatPool,
    InternalServerError,
    InvalidResponseError,
    NotSentError,
    QuotaExceededError,
)
from tests.conftest import wait_until

from .servers import chatpool, require

require("aimock")

QUESTIONS = [f"question {number:03}" for number in range(500)]
ANSWERS = [f"answer {number:03}" for number in range(500)]


def control(server, method, path, body=None):
    """Ask aimock itself; return what it says and in which headers."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
        headers = {"Authorization": "Bearer sk-test", "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        reply = connection.getresponse()
        return json.loads(reply.read()), reply.headers


@pytest.fixture
def server(aimock):
    """The server with an empty journal, and with no chaos afterwards."""
    control(aimock, "POST", "/__aimock/reset/journal")
    yield aimock
    control(aimock, "DELETE", "/__aimock/chaos")


@pytest.fixture
def pool(server):
    with ChatPool(25, base_url=server.api, api_key="sk-test", max_tries=4, max_wait=2, timeout=10) as pool:
        yield pool


def questions_asked(server):
    """How often the server was asked each question, by its own journal."""
    entries, _ = control(server, "GET", "/__aimock/journal?path=/v1/chat/completions")
    return Counter(entry["body"]["messages"][-1]["content"] for entry in entries)


def test_every_question_has_its_own_answer(pool, server):
    """25 workers: 500 answers in order, each asked once."""
    assert pool.map(QUESTIONS) == ANSWERS
    assert questions_asked(server) == Counter(QUESTIONS)


def test_answers_come_in_chunks_and_in_many_scripts(pool, server):
    """The body has no length beforehand, and is put together byte for byte."""
    body = {"model": "m", "messages": [{"role": "user", "content": "many scripts"}]}
    _, headers = control(server, "POST", "/v1/chat/completions", body)
    assert headers["Transfer-Encoding"] == "chunked"
    assert pool.map(["many scripts"] * 50) == ["café 你好 😀"] * 50


def test_a_wrong_key_is_named_and_ends_the_map(server):
    """A few calls learn of it; the others are not sent."""
    with ChatPool(25, base_url=server.api, api_key="sk-wrong") as pool:
        answers = pool.map(QUESTIONS)
    assert {type(result.error) for result in answers.results} == {AuthenticationError, NotSentError}
    assert "invalid_api_key" in answers.summary()
    assert sum(result.attempts for result in answers.results) <= 25


def test_a_rate_refusal_and_an_overload_are_sat_out(pool):
    """A 429 that asks for a second, then a 503, then the answer."""
    (result,) = pool.map(["refused, then overloaded"]).results
    assert (result.text, result.attempts) == ("at last", 3)
    assert result.elapsed >= 1


def test_an_exhausted_quota_ends_the_map(pool, server):
    """It is a 429 with Retry-After, too, but no waiting cures it."""
    answers = pool.map(["no money"] * 200)
    assert {type(result.error) for result in answers.results} == {QuotaExceededError, NotSentError}
    assert questions_asked(server)["no money"] <= 25


@pytest.mark.parametrize(
    ("prompt", "kind", "code", "tries"),
    [
        ("too long", BadRequestError, "context_length_exceeded", 1),
        ("dropped", InternalServerError, "chaos_drop", 4),
        ("malformed", InvalidResponseError, "no_json", 4),
        ("disconnected", APIConnectionError, None, 4),
    ],
)
def test_what_never_works_is_named_and_the_rest_is_answered(pool, server, prompt, kind, code, tries):
    """What may pass is tried as often as allowed, what cannot once; no neighbour suffers."""
    answers = pool.map([prompt, *QUESTIONS[:100]])
    assert answers[1:] == ANSWERS[:100]
    error = answers.results[0].error
    assert type(error) is kind
    assert code in (None, error.code)
    assert questions_asked(server)[prompt] == tries


def test_no_call_is_lost_to_chaos(server):
    """Every tenth reply a 500, every tenth broken JSON, every tenth a lost connection: all is answered, and right."""
    control(server, "POST", "/__aimock/chaos", {"dropRate": 0.1, "malformedRate": 0.1, "disconnectRate": 0.1})
    with ChatPool(25, base_url=server.api, api_key="sk-test", max_tries=20, max_wait=0.2) as pool:
        answers = pool.map(QUESTIONS)
    assert answers == ANSWERS
    assert sum(result.attempts for result in answers.results) > 550


def test_no_call_is_lost_to_refusals_at_random(server):
    """One reply of fifty refuses for a second, whatever the rate: the pool waits each of them out."""
    control(server, "POST", "/__aimock/chaos", {"rateLimitRate": 0.02})
    with ChatPool(25, base_url=server.api, api_key="sk-test") as pool:
        answers = pool.map(QUESTIONS[:100])
    assert answers == ANSWERS[:100]


def run(folder, server, *options):
    options = ["-o", "answers.jsonl", "--base-url", server.api, *options]
    return chatpool(folder, "run", "prompts.txt", *options, OPENAI_API_KEY="sk-test")


def test_the_command_goes_on_from_where_it_was_stopped(server, tmp_path):
    """The first run may send 200 requests, the second sends the rest: in all, each question was asked once."""
    (tmp_path / "prompts.txt").write_text("\n".join(QUESTIONS))
    first = run(tmp_path, server, "--max-requests", "200")
    assert first.returncode == 1, first.stderr
    assert sum(questions_asked(server).values()) == 200
    second = run(tmp_path, server)
    assert second.returncode == 0, second.stderr
    assert questions_asked(server) == Counter(QUESTIONS)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    texts = [line["response"]["body"]["choices"][0]["message"]["content"] for line in lines if line["response"]]
    assert sorted(texts) == ANSWERS


def test_a_killed_run_pays_for_nothing_twice(server, tmp_path):
    """kill -9 in the middle: what the journal holds is not asked again."""
    control(server, "POST", "/__aimock/chaos", {"latencyMs": 50})
    journal = tmp_path / "answers.jsonl"
    script = "import sys; from chatpool import ChatPool; ChatPool(5).map(sys.argv[2:], journal=sys.argv[1])"
    environment = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": server.api}
    with subprocess.Popen([sys.executable, "-c", script, str(journal), *QUESTIONS], env=environment) as process:
        assert wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 50, 60)
        process.kill()
    control(server, "DELETE", "/__aimock/chaos")
    known = journal.read_bytes().count(b"\n")
    control(server, "POST", "/__aimock/reset/journal")
    with ChatPool(25, base_url=server.api, api_key="sk-test") as pool:
        answers = pool.map(QUESTIONS, journal=journal)
    assert answers == ANSWERS
    assert len(answers.resumed) == known < 500
    assert sum(questions_asked(server).values()) == 500 - known
