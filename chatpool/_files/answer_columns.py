"""The columns of a table for its answers: ``answer``, or one for each field of their JSON schema. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from chatpool._protocol.schemas import ResponseFormat
from chatpool._protocol.strict import resolve, types_of

ANSWER = "answer"
_ARROW_TYPES = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool_"}  # names in pyarrow


class Column(NamedTuple):
    """A column: its name, the path of its field in the answer, and the field's schema, which may refer to ``root``."""

    name: str = ANSWER
    path: tuple[str, ...] = ()
    schema: Mapping[str, Any] = {}
    root: Mapping[str, Any] = {}

    def cell(self, answer: Any) -> Any:
        """Return this column's part of an answer; None if it has none."""
        for name in self.path:
            answer = answer.get(name) if isinstance(answer, dict) else None
        return answer

    def arrow_type(self, pa: Any) -> Any:
        """Return the column's type in Parquet: that of its schema, or text."""
        return _arrow_type(pa, self.schema, self.root, frozenset()) or pa.string()


def answer_columns(response_format: ResponseFormat | None) -> list[Column]:
    """Return the columns for the answers of a run. Fields of an object inside an object have columns of their own."""
    if response_format is None:
        return [Column()]
    return list(_columns((), response_format.value_schema, response_format.schema, frozenset()))


def _columns(path: tuple[str, ...], schema: Any, root: Any, refs: frozenset[str]) -> Iterator[Column]:
    schema, refs = _plain(schema, root, refs)
    fields = schema.get("properties")
    if not isinstance(fields, dict) or not fields:
        yield Column(".".join((ANSWER, *path)), path, schema, root)
        return
    for name, inner in fields.items():
        yield from _columns((*path, name), inner, root, refs)


def _plain(schema: Any, root: Any, refs: frozenset[str]) -> tuple[Any, frozenset[str]]:
    """Follow references, and leave out null as an option; ``refs`` are those followed. Any value for a circle."""
    while True:
        options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
        if len(options) == 1:
            schema = options[0]
        elif schema.get("$ref") in refs:
            return {}, refs
        elif "$ref" in schema:
            schema, refs = resolve(schema["$ref"], root), refs | {schema["$ref"]}
        else:
            return schema, refs


def _arrow_type(pa: Any, schema: Any, root: Any, refs: frozenset[str]) -> Any:
    """Return pyarrow's type for a schema; None for one that needs JSON."""
    schema, refs = _plain(schema, root, refs)
    kinds = [kind for kind in types_of(schema) if kind != "null"]
    if kinds == ["array"] and isinstance(schema.get("items"), dict):
        item = _arrow_type(pa, schema["items"], root, refs)
        return item and pa.list_(item)
    if kinds == ["object"] and schema.get("properties"):
        fields = {name: _arrow_type(pa, inner, root, refs) for name, inner in schema["properties"].items()}
        return pa.struct(list(fields.items())) if all(fields.values()) else None
    return getattr(pa, _ARROW_TYPES[kinds[0]])() if len(kinds) == 1 and kinds[0] in _ARROW_TYPES else None
