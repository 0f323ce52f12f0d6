"""``response_format`` and ``reask`` in runs: typed values, servers that know less, and models that need the error."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import pickle
import subprocess
import sys

import pytest

from chatpool import BadRequestError, ChatPool, ConfigurationError, ParseError
from chatpool.testing import FakeChatServer, Reply
from tests.snippets import ROOT


class Label(enum.Enum):
    GOOD = "good"
    BAD = "bad"


@dataclasses.dataclass
class City:
    name: str
    population: int


LIMA = '{"name": "Lima", "population": 10}'


def corrects_itself(request):
    """A model that returns a good answer only if it is shown its bad one, and why it was rejected."""
    *_, before, last = [{}, *request.body["messages"]]
    if before.get("content") == "{}" and "lacks name, population" in last["content"]:
        return Reply(LIMA)
    return Reply("{}")


@pytest.fixture
def make_pool():
    pools = []

    def make(reply, workers=4, **settings):
        server = FakeChatServer(reply=reply).start()
        pool = ChatPool(workers, base_url=server.url, max_wait=0.01, **settings)
        pools.append((pool, server))
        return pool, server

    yield make
    for pool, server in pools:
        pool.close()
        server.close()


@pytest.mark.parametrize("way", ["map", "imap", "imap_unordered", "submit", "ask"])
def test_values_are_of_the_type(make_pool, way):
    pool, server = make_pool(lambda request: Reply(LIMA))
    if way in ("ask", "submit"):
        found = getattr(pool, way)("Peru", response_format=City)
        value = found if way == "ask" else found.result(10).value
    else:
        (first,) = getattr(pool, way)(["Peru"], response_format=City)
        value = first if way == "map" else first.value
    assert value == City("Lima", 10)
    sent = server.requests[0].body["response_format"]
    assert sent["type"] == "json_schema"
    assert sent["json_schema"]["name"] == "City"


def test_model_that_sees_its_error_takes_two_attempts(make_pool):
    pool, server = make_pool(corrects_itself)
    (result,) = pool.map(["Peru"], response_format=City).results
    assert (result.value, result.attempts) == (City("Lima", 10), 2)
    assert [message["role"] for message in server.requests[1].body["messages"]] == ["user", "assistant", "user"]
    assert {request.prompt for request in server.requests} == {"Peru"}


def test_model_that_does_not_see_its_error_fails(make_pool):
    """With reask=False each request is the same."""
    pool, server = make_pool(corrects_itself)
    answers = pool.map(["Peru"], response_format=City, reask=False)
    assert type(answers.failures[0].error) is ParseError
    assert "response_format rejected the answer: ValueError: the answer lacks name, population" in str(
        answers.failures[0].error
    )
    assert len(server.requests) == 6
    assert len({json.dumps(request.body) for request in server.requests}) == 1


@pytest.mark.parametrize("way", ["map", "ask", "submit"])
def test_parse_asks_again_too(make_pool, way):
    def reply(request):
        return Reply("7" if "invalid literal for int" in request.body["messages"][-1]["content"] else "seven")

    pool, server = make_pool(reply)
    found = getattr(pool, way)(["p"] if way == "map" else "p", parse=int)
    assert {"map": lambda: found[0], "ask": lambda: found, "submit": lambda: found.result(9).value}[way]() == 7
    assert len(server.requests) == 2


def test_only_the_latest_bad_answer_is_shown(make_pool):
    pool, server = make_pool(lambda request: Reply(f"bad {len(server.requests)}"))
    pool.map(["p"], parse=int)
    assert {len(request.body["messages"]) for request in server.requests[1:]} == {3}
    assert server.requests[2].body["messages"][1]["content"] == "bad 2"


def test_failure_between_two_bad_answers_keeps_the_conversation(make_pool):
    pool, server = make_pool(lambda r: [Reply("x"), Reply(status=500), Reply("7")][len(server.requests) - 1])
    assert pool.map(["p"], parse=int) == [7]
    assert server.requests[1].body == server.requests[2].body


def test_journal_knows_a_prompt_by_its_first_request(make_pool, tmp_path):
    """An answer to the second attempt is resumed, and has an equal value."""
    pool, server = make_pool(corrects_itself)
    first = pool.map(["Peru"], response_format=City, journal=tmp_path / "j.jsonl")
    again = pool.map(["Peru"], response_format=City, journal=tmp_path / "j.jsonl")
    assert first == again == [City("Lima", 10)]
    assert again.resumed == {0}
    assert len(server.requests) == 2


def test_retry_keeps_the_type(make_pool):
    pool, server = make_pool(lambda r: Reply(status=400) if len(server.requests) == 1 else Reply('{"value": "good"}'))
    answers = pool.map(["a"], response_format=Label)
    assert answers == [None]
    assert pool.retry(pickle.loads(pickle.dumps(answers))) == [Label.GOOD]


# Servers that know less.


def knows(*types, status=400):
    """A server that rejects other formats with an error that names them, and answers only if it sees the schema."""

    def reply(request):
        wanted = request.body.get("response_format", {}).get("type", "nothing")
        if wanted not in types:
            message = f"response_format.type {wanted} is not supported"
            return Reply(status=status, body={"error": {"message": message}})
        assert "population" in json.dumps(request.body)
        return Reply(LIMA)

    return reply


@pytest.mark.parametrize("status", [400, 422, 500])
@pytest.mark.parametrize("types", [["json_object"], ["nothing"]])
def test_server_that_does_not_know_schemas(make_pool, types, status):
    """The schema goes into a system message, and costs no attempt; the pool remembers it. 500: llama-cpp-python."""
    pool, server = make_pool(knows(*types, status=status), 1, max_tries=1)
    assert pool.map(["Peru", "Chad"], response_format=City) == [City("Lima", 10)] * 2
    asked = len(server.requests)
    assert asked == 2 + len({"json_object": "1", "nothing": "22"}[types[0]])
    assert pool.ask("Laos", response_format=City) == City("Lima", 10)
    assert len(server.requests) == asked + 1


def test_system_message_of_the_user_is_kept(make_pool):
    pool, server = make_pool(knows("json_object"), system="Be brief.")
    pool.map(["Peru"], response_format=City)
    first, *others = server.requests[-1].body["messages"]
    assert first["content"].startswith("Be brief.\n\nReply only with JSON that matches this JSON schema: {")
    assert [message["role"] for message in others] == ["user"]


def test_many_workers_meet_the_refusal_at_once(make_pool):
    pool, server = make_pool(knows("json_object"), 20)
    assert pool.map(["Peru"] * 100, response_format=City) == [City("Lima", 10)] * 100
    assert len(server.requests) <= 100 + 20


def test_journal_is_found_after_a_refusal(make_pool, tmp_path):
    pool, server = make_pool(knows("json_object"))
    for _ in range(2):
        assert pool.map(["Peru"], response_format=City, journal=tmp_path / "j.jsonl") == [City("Lima", 10)]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "message", ["Invalid schema for response_format 'City': no", "the model does not exist", "temperature is invalid"]
)
def test_other_errors_are_the_callers(make_pool, message):
    """A schema that the server finds invalid is not hidden."""
    pool, server = make_pool(lambda request: Reply(status=400, body={"error": {"message": message}}))
    with pytest.raises(BadRequestError):
        pool.ask("a", response_format=City)
    assert len(server.requests) == 1


def test_a_field_of_the_body_is_sent_as_it_is(make_pool):
    pool, server = make_pool(lambda request: Reply(LIMA))
    assert pool.map(["a"], response_format={"type": "json_object"}) == [LIMA]
    assert server.requests[0].body["response_format"] == {"type": "json_object"}
    assert pool.map(["a"], response_format={"type": "json_object"}, parse=json.loads) == [json.loads(LIMA)]


def test_a_type_and_parse_exclude_each_other(make_pool):
    pool, server = make_pool(lambda request: Reply())
    with pytest.raises(ConfigurationError, match="pass parse or a type as response_format, not both"):
        pool.map(["a"], response_format=City, parse=int)
    with pytest.raises(ConfigurationError, match="response_format must be"):
        pool.ask("a", response_format=5)
    assert server.requests == []


def test_cost_budget_counts_the_longer_conversation(make_pool):
    """The bad answer and the error are in the second request, so it may cost more than the first."""
    sizes = []

    def reply(request):
        size = len(json.dumps(request.body))
        sizes.append(size)
        usage = {"prompt_tokens": size, "completion_tokens": 10, "total_tokens": size + 10}
        return Reply("x" * 2000, usage=usage)

    pool, _ = make_pool(reply, prices={"m": (1, 1)}, model="m", params={"max_tokens": 10})
    answers = pool.map(["p"] * 5, parse=int, cost_budget=0.01)
    assert answers.cost <= 0.01


def test_types_for_mypy(tmp_path):
    """map returns Answers of the type, and ask a value of it."""
    pytest.importorskip("mypy")
    code = """
from enum import Enum
from chatpool import Answers, ChatPool
class Label(Enum):
    GOOD = "good"
pool = ChatPool()
answers: Answers[Label] = pool.map(["a"], response_format=Label)
for answer in answers:
    if answer is not None:
        print(answer.name)
label: Label = pool.ask("a", response_format=Label)
wrong: int = pool.ask("a", response_format=Label)
text: str = pool.ask("a")
"""
    (tmp_path / "program.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "program.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ, "MYPYPATH": str(ROOT)}
    )
    errors = [line for line in done.stdout.splitlines() if "error" in line and "program.py" in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert "program.py:12" in errors[0]
