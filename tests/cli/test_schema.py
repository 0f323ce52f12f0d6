"""``chatpool run --schema``: the schema goes out, and its fields come back as columns."""

from __future__ import annotations

import csv
import json

import pytest

from chatpool.testing import FakeChatServer, Reply

REVIEW = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "enum": ["good", "bad"]},
        "score": {"type": "integer", "minimum": 0},
        "sure": {"type": "boolean"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "place": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "at": {"$ref": "#/$defs/point"}},
            "required": ["city", "at"],
        },
    },
    "required": ["label", "score", "sure", "note", "tags", "place"],
    "$defs": {"point": {"type": ["object", "null"], "properties": {"x": {"type": "number"}}, "required": ["x"]}},
}
ANSWER = {
    "label": "good",
    "score": 7,
    "sure": True,
    "note": None,
    "tags": ["a,b", "ü"],
    "place": {"city": 'Li"ma', "at": {"x": 1}},
}
COLUMNS = [
    "answer.label", "answer.score", "answer.sure", "answer.note", "answer.tags", "answer.place.city",
    "answer.place.at.x",
]  # fmt: skip
CELLS = ["good", "7", "true", "", '["a,b", "ü"]', 'Li"ma', "1"]


@pytest.fixture
def schema_file(shell):
    def write(schema, name="schema.json"):
        shell.write(name, schema if isinstance(schema, str) else json.dumps(schema))
        return name

    return write


def rows(name="out.csv"):
    with open(name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_fields_of_the_answer_become_columns(shell, schema_file):
    """Nested fields, too; null is an empty cell, and a list is JSON. The request asks for the schema as OpenAI's SDK."""
    shell.server.script("a", Reply(json.dumps(ANSWER)))
    shell.write("in.csv", "id,prompt", "1,a", "2,")
    assert shell.run("in.csv", "-o", "out.csv", "--schema", schema_file(REVIEW)) == 0
    first, second = rows()
    assert list(first) == ["id", "prompt", *COLUMNS, "error"]
    assert [first[name] for name in COLUMNS] == CELLS
    assert (first["id"], first["error"]) == ("1", "")
    assert [second[name] for name in COLUMNS] == [""] * len(COLUMNS)
    assert second["error"] == "no prompt in this row"
    (request,) = shell.server.requests
    field = request.body["response_format"]
    assert (field["type"], field["json_schema"]["strict"]) == ("json_schema", True)
    assert field["json_schema"]["schema"]["properties"]["label"] == REVIEW["properties"]["label"]
    assert field["json_schema"]["schema"]["additionalProperties"] is False


def test_next_run_reads_the_same_values(shell, schema_file):
    """Nothing is sent again until the schema is another one."""
    shell.server.script("a", *[Reply(json.dumps(ANSWER))] * 2)
    shell.write("in.csv", "prompt", "a")
    shell.run("in.csv", "-o", "out.csv", "--schema", schema_file(REVIEW))
    before = rows()
    assert shell.run("in.csv", "-o", "out.csv", "--schema", "schema.json") == 0
    assert rows() == before
    assert len(shell.server.requests) == 1
    schema_file({**REVIEW, "description": "A review."})
    assert shell.run("in.csv", "-o", "out.csv", "--schema", "schema.json") == 0
    assert rows() == before
    assert len(shell.server.requests) == 2


def test_answer_that_the_schema_rejects_is_asked_again(shell, schema_file):
    """The model is shown the error; if all answers are rejected, the column ``error`` says why."""
    bad, good = json.dumps({**ANSWER, "label": "fair"}), json.dumps(ANSWER)
    rejected = "Your answer was rejected: ValueError: label must be one of ['good', 'bad'], not 'fair'"

    def reply(request):
        prompt = request.body["messages"][-1]["content"]
        if prompt.startswith(rejected):
            return Reply(good)
        return Reply(bad if prompt == "a" else "no idea")

    shell.write("in.csv", "prompt", "a", "b")
    arguments = ["in.csv", "-o", "out.csv", "--schema", schema_file(REVIEW), "--max-tries", "2", "--usage"]
    with FakeChatServer(reply=reply) as server:
        assert shell.run(*arguments, "--base-url", server.url) == 1
    first, second = rows()
    assert [first[name] for name in COLUMNS] == CELLS
    assert [second[name] for name in COLUMNS] == [""] * len(COLUMNS)
    assert second["error"].startswith("ParseError: response_format rejected the answer: JSONDecodeError: ")
    assert int(first["prompt_tokens"]) > 0
    assert first["finish_reason"] == "stop"


def test_batch_output_has_the_answer_as_the_server_sent_it(shell, schema_file):
    """A rejected answer is an error there, beside the response."""
    shell.server.script("a", Reply(json.dumps(ANSWER)))
    shell.server.script("b", Reply("no idea"))
    shell.write("in.jsonl", '{"custom_id": "x", "prompt": "a"}', '{"custom_id": "y", "prompt": "b"}')
    assert shell.run("in.jsonl", "-o", "out.jsonl", "--schema", schema_file(REVIEW), "--max-tries", "1") == 1
    with open("out.jsonl", encoding="utf-8") as file:
        lines = {line["custom_id"]: line for line in map(json.loads, file)}
    assert json.loads(lines["x"]["response"]["body"]["choices"][0]["message"]["content"]) == ANSWER
    assert lines["x"]["error"] is None
    assert lines["y"]["error"]["code"] == "JSONDecodeError"
    assert lines["y"]["response"]["body"]["choices"][0]["message"]["content"] == "no idea"


def test_text_output_has_the_value(shell, schema_file):
    shell.server.script("a", Reply('{"value": "good"}'))
    shell.server.script("b", Reply('{"value": "bad"}'))
    shell.write("in.txt", "a", "b")
    assert shell.run("in.txt", "--text", "--schema", schema_file({"enum": ["good", "bad"]})) == 0
    assert shell.out == "good\nbad\n"
    shell.server.script("a", Reply(json.dumps({"z": 1, "y": "\n"})))
    shell.write("in.txt", "a")
    schema_file({"type": "object", "properties": {"z": {"type": "integer"}, "y": {"type": "string"}}})
    assert shell.run("in.txt", "--text", "--schema", "schema.json") == 0
    assert json.loads(shell.out.replace("\\\\", "\\")) == {"z": 1, "y": "\n"}


@pytest.mark.parametrize(
    ("schema", "text", "cell"),
    [
        ({"type": "string", "enum": ["good", "bad"]}, '{"value": "good"}', "good"),
        ({"type": "integer"}, '{"value": 0}', "0"),
        ({"type": "boolean"}, '{"value": false}', "false"),
        ({"type": "array", "items": {"type": "integer"}}, '{"value": []}', "[]"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"value": {"a": 1}}', '{"a": 1}'),
    ],
)
def test_answer_that_is_no_object_is_one_column(shell, schema_file, schema, text, cell):
    """Also if its value is false in Python."""
    shell.server.script("a", Reply(text))
    shell.write("in.csv", "prompt", "a")
    assert shell.run("in.csv", "-o", "out.csv", "--schema", schema_file(schema)) == 0
    assert rows() == [{"prompt": "a", "answer": cell, "error": ""}]


def test_schema_that_contains_itself(shell, schema_file):
    """The field that repeats is a column of JSON."""
    node = {"type": "object", "properties": {"n": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}}
    option = {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
    node["properties"]["next"] = option
    schema = {"type": "object", "properties": {"first": {"$ref": "#/$defs/node"}}, "$defs": {"node": node}}
    shell.server.script("a", Reply('{"first": {"n": 1, "next": {"n": 2, "next": null}}}'))
    shell.write("in.csv", "prompt", "a")
    assert shell.run("in.csv", "-o", "out.csv", "--schema", schema_file(schema)) == 0
    assert rows()[0]["answer.first.n"] == "1"
    assert json.loads(rows()[0]["answer.first.next"]) == {"n": 2, "next": None}


def test_columns_of_these_names_are_kept(shell, schema_file):
    """Those of the input, and a field with a dot in its name."""
    schema = {
        "type": "object",
        "properties": {
            "a.b": {"type": "integer"},
            "a": {"type": "object", "properties": {"b": {"type": "integer"}}},
            "c": {"type": "integer"},
        },
    }
    shell.server.script("p", Reply('{"a.b": 1, "a": {"b": 2}, "c": 3}'))
    shell.write("in.csv", "prompt,answer.c,answer", "p,old,older")
    assert shell.run("in.csv", "-o", "out.csv", "--schema", schema_file(schema)) == 0
    (row,) = rows()
    assert list(row.values()) == ["p", "old", "older", "1", "2", "3", ""]
    assert list(row)[3:] == ["answer.a.b", "answer.a.b_2", "answer.c_2", "error"]
    assert "the new ones of out.csv are answer.a.b, answer.a.b_2, answer.c_2, error" in shell.err


def test_parquet_columns_have_the_types_of_the_schema(shell, schema_file):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    shell.server.script("a", Reply(json.dumps(ANSWER)))
    shell.server.script("b", Reply(json.dumps({**ANSWER, "score": 10**30, "place": {"city": "x", "at": None}})))
    shell.write("in.csv", "prompt", "a", "b", '""')
    assert shell.run("in.csv", "-o", "out.parquet", "--schema", schema_file(REVIEW)) == 0
    table = parquet.read_table("out.parquet")
    kinds = [pa.string(), pa.int64(), pa.bool_(), pa.string(), pa.list_(pa.string()), pa.string(), pa.float64()]
    assert [table.schema.field(name).type for name in COLUMNS] == kinds
    assert table["answer.tags"].to_pylist() == [ANSWER["tags"], ANSWER["tags"], None]
    assert table["answer.score"].to_pylist() == [7, None, None]
    assert table["answer.place.at.x"].to_pylist() == [1.0, None, None]


@pytest.mark.parametrize(
    "wrap", [lambda s: {"name": "x", "schema": s}, lambda s: {"type": "json_schema", "json_schema": {"schema": s}}]
)
def test_schema_inside_a_response_format(shell, schema_file, wrap):
    """As in OpenAI's documentation."""
    shell.server.script("a", Reply('{"value": 5}'))
    shell.write("in.csv", "prompt", "a")
    assert shell.run("in.csv", "-o", "out.csv", "--schema", schema_file(wrap({"type": "integer"}))) == 0
    assert rows()[0]["answer"] == "5"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "schema.json is not valid JSON: Expecting property name"),
        ("[1]", "schema.json is not a JSON schema: "),
        ("{}", "schema.json is not a JSON schema: it names neither a type nor properties"),
        ('{"label": "good"}', "schema.json is not a JSON schema: it names neither a type nor properties"),
        ('{"type": "object", "properties": {"a": 5}}', "schema.json is not a JSON schema: 5 is not a JSON schema"),
        (
            '{"type": "object", "properties": {"a": {"type": "int"}}}',
            "'int' is not one of JSON schema's types: object,",
        ),
        ('{"properties": {"a": {"$ref": "#/x"}}}', "the reference '#/x' leads to no schema"),
    ],
)
def test_file_that_is_no_schema_is_refused(shell, schema_file, content, message):
    shell.write("in.csv", "prompt", "a")
    assert shell.run("in.csv", "-o", "out.csv", "--schema", schema_file(content)) == 2
    assert message in shell.err
    assert shell.server.requests == []


def test_schema_that_cannot_be_used_is_refused(shell, schema_file):
    """A file that is not there, and requests that have a format of their own or none."""
    shell.write("in.csv", "prompt", "a")
    assert shell.run("in.csv", "-o", "out.csv", "--schema", "none.json") == 2
    assert "cannot read none.json: No such file or directory" in shell.err
    name = schema_file({"type": "integer"})
    assert shell.run("in.csv", "-o", "out.csv", "--schema", name, "--param", 'response_format={"type": "text"}') == 2
    assert "leave --param response_format out" in shell.err
    assert shell.run("in.csv", "-o", "o.csv", "--schema", name, "--endpoint", "/v1/embeddings", "--model", "m") == 2
    assert "--schema is for chat completions" in shell.err
    messages = '"messages": [{"role": "user", "content": "a"}]'
    shell.write("in.jsonl", f'{{{messages}, "response_format": {{"type": "text"}}}}', '{"model": "m", "input": "x"}')
    assert shell.run("in.jsonl", "-o", "out.jsonl", "--schema", name) == 2
    assert "line 1: the request has a 'response_format' of its own; leave it out, or --schema" in shell.err
    assert "line 2: --schema is for chat completions, not for /v1/embeddings" in shell.err
    assert shell.server.requests == []
