"""aimock: scripted replies, random faults, a journal of requests, chunked replies."""

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
    """Send a request to aimock; return the reply's JSON and its headers."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
        headers = {"Authorization": "Bearer sk-test", "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        reply = connection.getresponse()
        return json.loads(reply.read()), reply.headers


@pytest.fixture
def server(aimock):
    """aimock with an empty journal; it stops its faults after the test."""
    control(aimock, "POST", "/__aimock/reset/journal")
    yield aimock
    control(aimock, "DELETE", "/__aimock/chaos")


@pytest.fixture
def pool(server):
    with ChatPool(25, base_url=server.api, api_key="sk-test", max_tries=4, max_wait=2, timeout=10) as pool:
        yield pool


def count_requests(server):
    """Return the number of requests for each question, from the server's journal."""
    entries, _ = control(server, "GET", "/__aimock/journal?path=/v1/chat/completions")
    return Counter(entry["body"]["messages"][-1]["content"] for entry in entries)


def test_every_question_has_its_own_answer(pool, server):
    """25 workers: 500 answers in order, one request each."""
    assert pool.map(QUESTIONS) == ANSWERS
    assert count_requests(server) == Counter(QUESTIONS)


def test_answers_are_chunked_and_in_several_scripts(pool, server):
    """The body has no Content-Length, and its chunks may split a character."""
    body = {"model": "m", "messages": [{"role": "user", "content": "many scripts"}]}
    _, headers = control(server, "POST", "/v1/chat/completions", body)
    assert headers["Transfer-Encoding"] == "chunked"
    assert pool.map(["many scripts"] * 50) == ["café 你好 😀"] * 50


def test_wrong_key_ends_the_map(server):
    """A few calls fail; the others are not sent."""
    with ChatPool(25, base_url=server.api, api_key="sk-wrong") as pool:
        answers = pool.map(QUESTIONS)
    assert {type(result.error) for result in answers.results} == {AuthenticationError, NotSentError}
    assert "invalid_api_key" in answers.summary()
    assert sum(result.attempts for result in answers.results) <= 25


def test_rate_limit_and_overload_are_retried(pool):
    """A 429 with a Retry-After of one second, then a 503, then the answer."""
    (result,) = pool.map(["refused, then overloaded"]).results
    assert (result.text, result.attempts) == ("at last", 3)
    assert result.elapsed >= 1


def test_exhausted_quota_ends_the_map(pool, server):
    """It is a 429 with Retry-After too, but waiting does not help."""
    answers = pool.map(["no money"] * 200)
    assert {type(result.error) for result in answers.results} == {QuotaExceededError, NotSentError}
    assert count_requests(server)["no money"] <= 25


@pytest.mark.parametrize(
    ("prompt", "kind", "code", "attempts"),
    [
        ("too long", BadRequestError, "context_length_exceeded", 1),
        ("dropped", InternalServerError, "chaos_drop", 4),
        ("malformed", InvalidResponseError, "no_json", 4),
        ("disconnected", APIConnectionError, None, 4),
    ],
)
def test_failing_prompt_has_an_error_and_the_others_are_answered(pool, server, prompt, kind, code, attempts):
    """A transient error is retried up to the limit, a permanent one is not."""
    answers = pool.map([prompt, *QUESTIONS[:100]])
    assert answers[1:] == ANSWERS[:100]
    error = answers.results[0].error
    assert type(error) is kind
    assert code in (None, error.code)
    stale = 1 if prompt == "disconnected" else 0  # a kept connection that is closed at once costs no try
    assert attempts <= count_requests(server)[prompt] <= attempts + stale


def test_random_faults_lose_no_call(server):
    """10% of 500, of invalid JSON and of lost connections: every prompt gets its own answer."""
    control(server, "POST", "/__aimock/chaos", {"dropRate": 0.1, "malformedRate": 0.1, "disconnectRate": 0.1})
    with ChatPool(25, base_url=server.api, api_key="sk-test", max_tries=20, max_wait=0.2) as pool:
        answers = pool.map(QUESTIONS)
    assert answers == ANSWERS
    assert sum(result.attempts for result in answers.results) > 550


def test_random_rate_limits_lose_no_call(server):
    """One reply of fifty is a 429 with a Retry-After of one second, at any rate: the pool waits each time."""
    control(server, "POST", "/__aimock/chaos", {"rateLimitRate": 0.02})
    with ChatPool(25, base_url=server.api, api_key="sk-test") as pool:
        answers = pool.map(QUESTIONS[:100])
    assert answers == ANSWERS[:100]


def run(folder, server, *options):
    options = ["-o", "answers.jsonl", "--base-url", server.api, *options]
    return chatpool(folder, "run", "prompts.txt", *options, OPENAI_API_KEY="sk-test")


def test_command_resumes_an_incomplete_run(server, tmp_path):
    """The first run may send 200 requests, the second one sends the rest: one request for each question."""
    (tmp_path / "prompts.txt").write_text("\n".join(QUESTIONS))
    first = run(tmp_path, server, "--request-budget", "200")
    assert first.returncode == 1, first.stderr
    assert sum(count_requests(server).values()) == 200
    second = run(tmp_path, server)
    assert second.returncode == 0, second.stderr
    assert count_requests(server) == Counter(QUESTIONS)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    texts = [line["response"]["body"]["choices"][0]["message"]["content"] for line in lines if line["response"]]
    assert sorted(texts) == ANSWERS


def test_killed_run_pays_for_no_answer_twice(server, tmp_path):
    """kill -9 in the middle: prompts with an answer in the journal are not sent again."""
    control(server, "POST", "/__aimock/chaos", {"latencyMs": 50})
    journal = tmp_path / "answers.jsonl"
    script = "import sys; from chatpool import ChatPool; ChatPool(5).map(sys.argv[2:], journal=sys.argv[1])"
    environment = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": server.api}
    with subprocess.Popen([sys.executable, "-c", script, str(journal), *QUESTIONS], env=environment) as process:
        assert wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 50, 60)
        process.kill()
    control(server, "DELETE", "/__aimock/chaos")
    cached = journal.read_bytes().count(b"\n")
    control(server, "POST", "/__aimock/reset/journal")
    with ChatPool(25, base_url=server.api, api_key="sk-test") as pool:
        answers = pool.map(QUESTIONS, journal=journal)
    assert answers == ANSWERS
    assert len(answers.resumed) == cached < 500
    assert sum(count_requests(server).values()) == 500 - cached
