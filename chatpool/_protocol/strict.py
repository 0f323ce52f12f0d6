"""Makes a JSON schema strict, as OpenAI's structured outputs require it. Pure.

Gives the same schema as ``to_strict_json_schema`` of OpenAI's SDK (``openai/lib/_pydantic.py``); the rules are those of
the guide "Structured model outputs": every object forbids other fields, and requires all of its own.
"""

from __future__ import annotations

import copy
from typing import Any

JSON_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")


def strict_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a strict copy of a schema. Raises ValueError for a reference that leads nowhere, or into a circle."""
    root = copy.deepcopy(schema)
    try:
        return _strict(root, root)
    except RecursionError:
        raise ValueError("a field of a type that contains itself cannot have a description of its own") from None


def resolve(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    """Return the schema that a ``$ref`` names. Raises ValueError for a reference that leads nowhere."""
    if reference == "#":
        return root
    target: Any = root
    for name in reference[2:].split("/"):
        target = target.get(name) if isinstance(target, dict) else None
    if not reference.startswith("#/") or not isinstance(target, dict):
        raise ValueError(f"the reference {reference!r} leads to no schema")
    return target


def types_of(schema: dict[str, Any]) -> list[Any]:
    """Return the names of the types that a schema allows, as a list; empty if it names none."""
    kinds = schema.get("type", [])
    return kinds if isinstance(kinds, list) else [kinds]


def _strict(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(schema, dict):
        raise ValueError(f"{schema!r} is not a JSON schema")
    unknown = [kind for kind in types_of(schema) if kind not in JSON_TYPES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not one of JSON schema's types: {', '.join(JSON_TYPES)}")
    for name in ("$defs", "definitions"):
        for inner in _dict(schema.get(name)).values():
            _strict(inner, root)
    if schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    if isinstance(schema.get("properties"), dict):
        schema["required"] = list(schema["properties"])
        schema["properties"] = {name: _strict(inner, root) for name, inner in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        schema["items"] = _strict(schema["items"], root)
    if isinstance(schema.get("anyOf"), list):
        schema["anyOf"] = [_strict(inner, root) for inner in schema["anyOf"]]
    _strict_all_of(schema, root)
    if "default" in schema and schema["default"] is None:
        del schema["default"]
    return _without_siblings(schema, root)


def _strict_all_of(schema: dict[str, Any], root: dict[str, Any]) -> None:
    parts = schema.get("allOf")
    if not isinstance(parts, list):
        return
    if len(parts) == 1:
        schema.update(_strict(parts[0], root))
        del schema["allOf"]
    else:
        schema["allOf"] = [_strict(part, root) for part in parts]


def _without_siblings(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Replace a reference that has other fields beside it, which strict mode forbids, by its target."""
    reference = schema.get("$ref")
    if not reference:
        return schema
    target = resolve(str(reference), root)
    if len(schema) == 1:
        return schema
    schema.update({**target, **schema})
    del schema["$ref"]
    return _strict(schema, root)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
