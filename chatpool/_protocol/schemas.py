"""``response_format``: a type → the field of a request's body, and an answer's text → a value of that type. Pure."""

from __future__ import annotations

import json
import operator
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from chatpool.errors import BadRequestError, CallError, ConfigurationError, InternalServerError

from . import typed
from .strict import JSON_TYPES, resolve, strict_schema, types_of

JSON_SCHEMA, JSON_OBJECT, NOTHING = range(3)  # what a server knows: from the most to the least
REJECTED = "Your answer was rejected:"  # how the message begins that asks again
_VALUE = "value"  # the field of an answer whose type is no object: strict mode requires one
_SCHEMA_KEYS = frozenset(
    {"$ref", "$schema", "$defs", "anyOf", "oneOf", "allOf", "enum", "const", "properties", "items"}
)
_FENCE = re.compile(r"\s*```\w*\n(.*?)\n?```\s*", re.DOTALL)
_NAMES_FORMAT = re.compile(r"json_schema|response_format|json_object|structured.?outputs?", re.IGNORECASE)
_BAD_SCHEMA = re.compile(r"invalid schema|invalid json_?schema", re.IGNORECASE)
# How a limit in a schema is checked: the type that it is for, the comparison, and the words for it.
_LIMITS: dict[str, tuple[str, Callable[[Any, Any], bool], str]] = {
    "minimum": ("number", operator.ge, "be at least"),
    "maximum": ("number", operator.le, "be at most"),
    "exclusiveMinimum": ("number", operator.gt, "be more than"),
    "exclusiveMaximum": ("number", operator.lt, "be less than"),
    "minLength": ("string", lambda value, least: len(value) >= least, "have a length of at least"),
    "maxLength": ("string", lambda value, most: len(value) <= most, "have a length of at most"),
    "minItems": ("array", lambda value, least: len(value) >= least, "have a number of items of at least"),
    "maxItems": ("array", lambda value, most: len(value) <= most, "have a number of items of at most"),
}
# llama-cpp-python 0.3 validates a request within its handler, and answers 500 with pydantic's message.
_VALIDATION = re.compile(r"validation error|input should be|not (supported|implemented)|unsupported", re.IGNORECASE)
_LINK = re.compile(r"\n\s*For further information visit \S+")  # in pydantic's errors


class ResponseFormat:
    """The type of the answers of a run. Called with an answer's text, like ``parse``."""

    label = "response_format"

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        try:
            schema = self._schema()
            self.is_wrapped = not _is_model(kind) and (schema.get("type") != "object" or "properties" not in schema)
            self.schema = strict_schema(_wrap(schema) if self.is_wrapped else schema)
        except (TypeError, ValueError, NameError, RecursionError) as error:
            raise ConfigurationError(
                f"response_format must be a pydantic model, a dataclass, a TypedDict, a Literal, an Enum or a JSON "
                f"schema: {error}"
            ) from None

    @property
    def value_schema(self) -> dict[str, Any]:
        """The schema of a value, which is a part of ``schema`` if that wraps it."""
        value: dict[str, Any] = self.schema["properties"][_VALUE] if self.is_wrapped else self.schema
        return value

    @property
    def field(self) -> dict[str, Any]:
        """The field ``response_format`` of a request's body."""
        name = re.sub(r"\W", "_", str(self.schema.get("title") or getattr(self.kind, "__name__", "answer")))[:64]
        return {"type": "json_schema", "json_schema": {"schema": self.schema, "name": name, "strict": True}}

    def __call__(self, text: str) -> Any:
        """Return an answer as a value of the type; raise ValueError if it does not fit."""
        fence = _FENCE.fullmatch(text)
        text = fence[1] if fence else text
        if _is_model(self.kind):
            return self.kind.model_validate_json(text)
        value = self._unwrapped(text)
        if isinstance(self.kind, Mapping):
            _check(value, self.value_schema, self.schema, "")
            return value
        return typed.build(self.kind, value)

    def _schema(self) -> dict[str, Any]:
        if isinstance(self.kind, Mapping):
            return dict(self.kind)
        schema: dict[str, Any] = self.kind.model_json_schema() if _is_model(self.kind) else typed.schema_of(self.kind)
        return schema

    def _unwrapped(self, text: str) -> Any:
        """Return the JSON of an answer. Servers that do not know the schema leave out the object, or the quotes."""
        try:
            value = json.loads(text)
        except ValueError:
            if not self.is_wrapped or text.lstrip()[:1] in ("{", "[", '"'):
                raise
            return text.strip()
        return value[_VALUE] if self.is_wrapped and isinstance(value, dict) and value.keys() == {_VALUE} else value


def response_format_of(kind: Any) -> tuple[dict[str, Any], ResponseFormat | None]:
    """Return the fields of the body for a ``response_format``, and its type; a body field has none."""
    if kind is None:
        return {}, None
    if isinstance(kind, Mapping) and not _is_schema(kind):
        return {"response_format": dict(kind)}, None
    response_format = ResponseFormat(kind)
    return {"response_format": response_format.field}, response_format


def is_unknown_format(error: CallError) -> bool:
    """Whether a server rejected a request because of its ``response_format``, rather than of the schema in it."""
    text = f"{error.code} {error} {error.body}"
    if _NAMES_FORMAT.search(text) is None or _BAD_SCHEMA.search(text) is not None:
        return False
    is_validation = isinstance(error, InternalServerError) and _VALIDATION.search(text) is not None
    return is_validation or isinstance(error, BadRequestError)


def downgrade(body: dict[str, Any], response_format: ResponseFormat, level: int) -> dict[str, Any]:
    """Return a body for a server that knows only ``json_object``, or nothing: the schema is in a system message."""
    body = {name: value for name, value in body.items() if name != "response_format"}
    if level == JSON_OBJECT:
        body["response_format"] = {"type": "json_object"}
    rule = f"Reply only with JSON that matches this JSON schema: {json.dumps(response_format.schema)}"
    first, *rest = body["messages"]
    if first.get("role") in ("system", "developer") and isinstance(first.get("content"), str):
        body["messages"] = [{**first, "content": f"{first['content']}\n\n{rule}"}, *rest]
    else:
        body["messages"] = [{"role": "system", "content": rule}, first, *rest]
    return body


def ask_again(body: dict[str, Any], answer: str, problem: str) -> dict[str, Any]:
    """Return a body whose conversation shows a rejected answer, and why it was rejected."""
    request = f"{REJECTED} {_LINK.sub('', problem)}\nReply again, with a corrected answer and nothing else."
    turns = [{"role": "assistant", "content": answer}, {"role": "user", "content": request}]
    return {**body, "messages": [*body["messages"], *turns]}


def _is_schema(value: Mapping[str, Any]) -> bool:
    kind = value.get("type")
    return isinstance(kind, list) or kind in JSON_TYPES or (kind is None and bool(_SCHEMA_KEYS & value.keys()))


def _is_model(kind: Any) -> bool:
    """Whether a type is a pydantic model. Looks only at what is imported already."""
    pydantic: Any = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def _wrap(schema: dict[str, Any]) -> dict[str, Any]:
    inner = {name: value for name, value in schema.items() if name not in ("$defs", "definitions", "title", "$schema")}
    outer: dict[str, Any] = {name: schema[name] for name in ("$defs", "definitions", "title") if name in schema}
    return {"type": "object", **outer, "properties": {_VALUE: inner}, "required": [_VALUE]}


def _check(value: Any, schema: Any, root: dict[str, Any], path: str) -> None:
    """Check the types, choices, fields and limits of a value; raise ValueError with the path to what does not fit."""
    name = path.lstrip(".") or "the answer"
    if "$ref" in schema:
        schema = resolve(schema["$ref"], root)
    kinds = types_of(schema)
    if kinds and not any(_has_type(value, kind) for kind in kinds):
        raise ValueError(f"{name} must be of type {' or '.join(kinds)}, not {value!r:.100}")
    choices = [schema["const"]] if "const" in schema else schema.get("enum")
    if choices is not None and not any(_same(value, choice) for choice in choices):
        raise ValueError(f"{name} must be one of {choices}, not {value!r:.100}")
    for limit, (kind, fits, rule) in _LIMITS.items():
        most = schema.get(limit)
        if _is_number(most) and _has_type(value, kind) and not fits(value, most):
            raise ValueError(f"{name} must {rule} {most}, not {value!r:.100}")
    _check_options(value, schema, root, path)
    if isinstance(value, dict):
        _check_fields(value, schema, root, path)
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        for number, item in enumerate(value):
            _check(item, schema["items"], root, f"{path}[{number}]")


def _check_fields(value: dict[str, Any], schema: Any, root: dict[str, Any], path: str) -> None:
    missing = [field for field in schema.get("required", []) if field not in value]
    if missing:
        raise ValueError(f"{path.lstrip('.') or 'the answer'} lacks {', '.join(missing)}")
    for field, inner in schema.get("properties", {}).items():
        if field in value:
            _check(value[field], inner, root, f"{path}.{field}")


def _check_options(value: Any, schema: Any, root: dict[str, Any], path: str) -> None:
    """Check a value against all of ``allOf``, and one of ``anyOf`` and of ``oneOf``."""
    for inner in schema.get("allOf", []):
        _check(value, inner, root, path)
    for options in (schema.get("anyOf", []), schema.get("oneOf", [])):
        problems = []
        for option in options:
            try:
                _check(value, option, root, path)
                break
            except ValueError as error:
                problems.append(str(error))
        else:
            if problems:
                raise ValueError("; or ".join(problems))


def _same(value: Any, choice: Any) -> bool:
    """Whether two JSON values are equal. True equals 1 in Python, and not in JSON."""
    return bool(value == choice) and isinstance(value, bool) == isinstance(choice, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _has_type(value: Any, kind: str) -> bool:
    if kind == "number":
        return _is_number(value)
    if kind == "integer":
        return (type(value) is int) or (isinstance(value, float) and value.is_integer())
    python = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}.get(kind, object)
    return isinstance(value, python)
