"""A failure over HTTP is in the journal with the reply's whole body, and costs no memory for it."""

from __future__ import annotations

import json
import pickle

import pytest

from chatpool import ChatPool
from chatpool.testing import Reply

LIMIT = 2**16  # bytes of a body


@pytest.fixture
def responses(server, tmp_path):
    """Map prompts that are replied to with these bodies; return the responses in the journal, and the results."""

    def responses_of(*replies):
        path = tmp_path / "journal.jsonl"
        prompts = [f"p{number}" for number in range(len(replies))]
        for prompt, reply in zip(prompts, replies):
            server.script(prompt, reply)
        with ChatPool(2, base_url=server.url, api_key="sk-secret-key-123456", max_tries=1) as pool:
            results = pool.map(prompts, journal=path).results
        lines = {line["chatpool"].get("message"): line for line in map(json.loads, path.read_bytes().splitlines())}
        return [lines[str(result.error)] for result in results if not result.ok], results

    return responses_of


def test_body_is_whole(responses):
    """Longer than the excerpt on the error, with every field."""
    body = {"error": {"message": "too long: " + "x" * 5000, "param": "messages", "inner": [{"n": 1.5}]}, "é": "\u2028"}
    (line,), (result,) = responses(Reply(status=400, body=body, headers={"x-request-id": "req_7"}))
    assert line["response"] == {"status_code": 400, "request_id": "req_7", "body": body}
    assert line["error"] is None
    assert len(result.error.body) <= 500


def test_body_over_the_limit_is_cut(responses):
    """And quoted, as it is no longer JSON."""
    (line,), _ = responses(Reply(status=400, body={"error": {"message": "y" * 2 * LIMIT}}))
    message = line["response"]["body"]["error"]["message"]
    assert message.startswith('{"error": {"message": "yyy')
    assert len(message) == LIMIT


def test_key_in_a_body_is_redacted(responses):
    (line,), _ = responses(Reply(status=400, body={"error": {"message": "z" * 600 + " sk-secret-key-123456"}}))
    assert line["response"]["body"]["error"]["message"].startswith("zzz")
    assert "sk-secret-key-123456" not in json.dumps(line)


def test_error_inside_a_success_keeps_its_body(responses):
    """The line has an ``error`` too, as the status alone would be taken for an answer."""
    body = {"error": {"message": "no model for this", "code": "odd"}}
    (line,), _ = responses(Reply(status=200, body=body))
    assert (line["response"]["status_code"], line["response"]["body"]) == (200, body)
    assert line["error"]["code"] == "odd"


def test_body_is_always_an_object(responses):
    """A list of one object, as from Gemini, is that object; text is quoted in an error of OpenAI's format."""
    lines, _ = responses(
        Reply(status=400, body=[{"error": {"message": "bad field"}}]),
        Reply(status=404, body="no such route"),
        Reply(status=422, body='"one string"'),
        Reply(status=413, body=""),
    )
    bodies = [line["response"]["body"] for line in lines]
    assert bodies[0] == {"error": {"message": "bad field"}}
    assert bodies[1]["error"]["message"] == "no such route"
    assert bodies[2]["error"]["message"] == '"one string"'
    assert "the reply is empty" in bodies[3]["error"]["message"]


def test_response_is_that_of_the_last_attempt(server, tmp_path):
    """A call that ends without a reply has none."""
    server.script("a", Reply(status=500, body={"error": {"message": "first"}}), *[Reply(fault="reset")] * 2)
    path = tmp_path / "journal.jsonl"
    with ChatPool(1, base_url=server.url, max_tries=2, max_wait=0.01) as pool:
        pool.map(["a"], journal=path)
    (line,) = map(json.loads, path.read_bytes().splitlines())
    assert line["response"] is None
    assert line["error"]["code"]


def test_failures_keep_no_bodies_in_memory(responses):
    """A hundred failures of 60 kB each: an excerpt of 500 characters is left of each body."""
    replies = [Reply(status=400, body={"error": {"message": f"{number} " + "x" * 60_000}}) for number in range(100)]
    lines, results = responses(Reply("one answer, so that the run goes on"), *replies)
    assert all(len(line["response"]["body"]["error"]["message"]) > 60_000 for line in lines)
    assert len(pickle.dumps(results)) < 100 * 4000
