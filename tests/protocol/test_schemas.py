"""``response_format``: schemas of types, as OpenAI's SDK makes them, and values of these types out of answers."""

# ruff: noqa: UP037, UP045 - annotations are evaluated at run time, by Python 3.9, too
from __future__ import annotations

import dataclasses
import enum
import json
import pickle
import subprocess
import sys
from typing import Any, Literal, Optional, TypedDict, Union

import pytest

from chatpool import ConfigurationError
from chatpool._protocol.schemas import ResponseFormat, response_format_of
from chatpool._protocol.strict import strict_schema


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


@dataclasses.dataclass
class River:
    name: str
    length: float
    color: Color = Color.BLUE


@dataclasses.dataclass
class Country:
    """A country and its rivers."""

    name: str
    rivers: list[River]
    capital: Optional[str] = None


class Person(TypedDict):
    name: str
    age: int
    tags: dict[str, Literal["x", "y"]]


RIVER = {"name": "Amazon", "length": 6400, "color": "blue"}

# A type, the JSON of an answer, and the value that it becomes.
VALUES: dict[str, tuple[Any, Any, Any]] = {
    "dataclass": (River, RIVER, River("Amazon", 6400.0)),
    "default": (River, {"name": "Amazon", "length": 1.5}, River("Amazon", 1.5)),
    "nested": (Country, {"name": "Peru", "rivers": [RIVER]}, Country("Peru", [River("Amazon", 6400.0)])),
    "TypedDict": (Person, {"name": "A", "age": 3.0, "tags": {"k": "x"}}, {"name": "A", "age": 3, "tags": {"k": "x"}}),
    "Enum": (Color, {"value": "red"}, Color.RED),
    "Enum without the object": (Color, "red", Color.RED),
    "IntEnum": (Size, {"value": 2}, Size.LARGE),
    "Literal": (Literal["a", 1, True], {"value": True}, True),
    "list": (list[int], {"value": [1, 2]}, [1, 2]),
    "list without the object": (list[int], [1, 2], [1, 2]),
    "tuple": (tuple[int, ...], [1], (1,)),
    "Union": (Union[int, str], {"value": "x"}, "x"),
    "Optional": (Optional[River], {"value": None}, None),
    "int": (int, {"value": 7}, 7),
    "Any": (Any, {"value": {"a": 1}}, {"a": 1}),
    "schema": ({"type": "object", "properties": {"a": {"type": "integer"}}}, {"a": 1}, {"a": 1}),
    "schema of a list": ({"type": "array", "items": {"type": "string"}}, {"value": ["a"]}, ["a"]),
}


@pytest.mark.parametrize("name", VALUES)
def test_answer_becomes_a_value(name):
    kind, document, value = VALUES[name]
    got = ResponseFormat(kind)(json.dumps(document))
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("name", VALUES)
def test_schema_follows_the_rules_of_strict_mode(name):
    """The root is an object; every object requires all of its fields, and forbids others, or is a dict."""
    schema = ResponseFormat(VALUES[name][0]).field["json_schema"]["schema"]
    assert schema["type"] == "object"
    for inner in objects_in(schema):
        assert inner.get("required", []) == list(inner.get("properties", {}))
        assert inner["additionalProperties"] is False or "properties" not in inner


def objects_in(schema):
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for inner in schema.values():
            yield from objects_in(inner)
    if isinstance(schema, list):
        for inner in schema:
            yield from objects_in(inner)


OPTIONAL = {"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}
REFERENCE = {
    "type": "object", "properties": {"a": {"$ref": "#/definitions/A"}}, "definitions": {"A": {"type": "string"}}
}  # fmt: skip

# A type, an answer's text, and why it is rejected.
BAD: dict[str, tuple[Any, str, str]] = {
    "not JSON": (River, "Here you are:", "Expecting value"),
    "a list": (River, "[]", "the answer must be an object, not \\[\\]"),
    "a missing field": (River, '{"name": "x"}', "the answer lacks length"),
    "a wrong type": (River, '{"name": 5, "length": 1}', "name must be of type string, not 5"),
    "a bool as a number": (River, '{"name": "x", "length": true}', "length must be of type number, not True"),
    "a wrong choice": (Color, '{"value": "green"}', "must be one of 'red', 'blue', not 'green'"),
    "prose for a choice": (Color, "The color is red.", "must be one of 'red', 'blue'"),
    "1 for True": (Literal[True], "1", "must be one of True, not 1"),
    "inside a list": (Country, '{"name": "x", "rivers": [{"name": "y"}]}', r"rivers\[0\] lacks length"),
    "no option of a Union": (Optional[int], '"x"', "must be of type integer, not 'x'; or"),
    "a schema's type": (VALUES["schema"][0], '{"a": "x"}', "a must be of type integer, not 'x'"),
    "a schema's fields": (VALUES["schema"][0], "{}", "the answer lacks a"),
    "a schema's enum": ({"enum": [1, None]}, "true", r"must be one of \[1, None\], not True"),
    "a schema's const": ({"const": "a"}, "b", r"must be one of \['a'\], not 'b'"),
    "no option of a schema": (OPTIONAL, '{"a": 1}', "a must be of type string, not 1; or a must be of type null"),
    "a part of a schema": ({"allOf": [{"type": "string"}, {"maxLength": 2}]}, "abc", "have a length of at most 2"),
    "a number beyond a limit": ({"type": "integer", "maximum": 5}, "6", "the answer must be at most 5, not 6"),
    "too few items": ({"type": "array", "minItems": 2}, "[1]", "a number of items of at least 2"),
    "a reference of an old draft": (REFERENCE, '{"a": 1}', "a must be of type string"),
}


@pytest.mark.parametrize("name", BAD)
def test_answer_that_does_not_fit_is_rejected(name):
    kind, text, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        ResponseFormat(kind)(text)


def test_code_fence_is_removed():
    """Servers that ignore the schema often return Markdown."""
    assert ResponseFormat(River)('```json\n{"name": "x", "length": 1}\n```\n') == River("x", 1.0)
    assert ResponseFormat(Color)("red\n") is Color.RED


def test_docstring_is_the_description():
    assert ResponseFormat(Country).schema["description"] == "A country and its rivers."
    assert "description" not in ResponseFormat(River).schema


@pytest.mark.parametrize("kind", [5, "City", object, complex, [River], {1: 2}.values()])
def test_other_things_are_refused_by_name(kind):
    with pytest.raises(ConfigurationError, match="response_format must be a pydantic model, a dataclass"):
        response_format_of(kind)


@pytest.mark.parametrize("kind", ["json_object", "text", "json_schema", "grammar"])
def test_a_field_of_the_body_is_passed_on(kind):
    assert response_format_of({"type": kind, "x": 1}) == ({"response_format": {"type": kind, "x": 1}}, None)


def test_schema_of_the_caller_is_not_changed():
    schema = {"type": "object", "title": "A b!", "properties": {"a": {"type": "integer"}}}
    field = ResponseFormat(schema).field
    assert schema == {"type": "object", "title": "A b!", "properties": {"a": {"type": "integer"}}}
    assert field["json_schema"]["name"] == "A_b_"
    assert field["json_schema"]["strict"] is True


def test_format_pickles():
    assert pickle.loads(pickle.dumps(ResponseFormat(River)))(json.dumps(RIVER)) == River("Amazon", 6400.0)


def test_pydantic_is_not_imported():
    code = "import sys, typing, chatpool; from chatpool._protocol.schemas import ResponseFormat as R; "
    code += "R(typing.Literal['a'])('a'); print('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# Compared with OpenAI's SDK.


def models():
    """Return many pydantic models: each kind of field alone, optional, with a description, with a default, in a list."""
    import datetime
    import decimal
    import uuid

    from pydantic import BaseModel, Field, create_model

    class Inner(BaseModel):
        """An inner model."""

        x: int
        y: Optional[str] = None

    class Tree(BaseModel):
        name: str
        children: "list[Tree]" = []

    Tree.model_rebuild(_types_namespace={"Tree": Tree})
    kinds = [
        int, str, float, bool, Color, Size, Inner, Literal["a", "b"], list[Inner], dict[str, int], Union[int, Inner],
        datetime.date, decimal.Decimal, uuid.UUID, tuple[int, str], list[list[Color]], River, Any,
    ]  # fmt: skip
    made = [Inner, Tree]
    for number, kind in enumerate(kinds):
        made += [
            create_model(f"Plain{number}", field=(kind, ...)),
            create_model(f"Optional{number}", field=(Optional[kind], None)),
            create_model(f"Described{number}", field=(kind, Field(description="words")), other=(int, 5)),
            create_model(f"Listed{number}", field=(list[kind], Field(default_factory=list, title="T"))),
        ]
    return made


def test_schemas_equal_those_of_openais_sdk():
    pytest.importorskip("pydantic")
    sdk = pytest.importorskip("openai.lib._pydantic")
    found = models()
    assert len(found) > 70
    for model in found:
        assert strict_schema(model.model_json_schema()) == sdk.to_strict_json_schema(model), model
        assert ResponseFormat(model).schema == sdk.to_strict_json_schema(model), model


def test_field_equals_that_of_openais_sdk():
    pytest.importorskip("pydantic")
    parsing = pytest.importorskip("openai.lib._parsing._completions")
    for model in models()[:10]:
        assert ResponseFormat(model).field == parsing.type_to_response_format_param(model)


def test_pydantic_model():
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("City", name=(str, ...), population=(int, ...))
    made = ResponseFormat(model)
    assert made('{"name": "Lima", "population": 10}') == model(name="Lima", population=10)
    with pytest.raises(ValueError, match="population"):
        made('{"name": "Lima"}')
