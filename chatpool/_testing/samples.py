"""Values that fit a JSON schema, for a fake server whose answers are to have a type."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from .replies import AnyReply, Reply, Request

_SAMPLES = {"string": "text", "integer": 1, "number": 1.5, "boolean": True, "null": None}
_DEEPEST = 20  # levels of a recursive schema


def answer_of_its_type(request: Request) -> AnyReply:
    """Reply with a value of the schema that a request asks for, the same for equal prompts; else echo the prompt."""
    wanted = request.body.get("response_format")
    inner = wanted.get("json_schema") if isinstance(wanted, dict) else None
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        return Reply()
    return Reply(json.dumps(sample(schema, random.Random(request.prompt))))


def sample(schema: Any, rng: random.Random, root: Mapping[str, Any] | None = None, depth: int = 0) -> Any:
    """Return a value that fits a schema; choices are random."""
    root = schema if root is None else root
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    if "$ref" in schema:
        return sample(root.get("$defs", {}).get(str(schema["$ref"]).rpartition("/")[2]), rng, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    for choices in (schema.get("enum"), schema.get("anyOf"), schema.get("oneOf")):
        if choices:
            choice = rng.choice(choices)
            return choice if choices is schema.get("enum") else sample(choice, rng, root, depth + 1)
    return _sample_of_type(schema, rng, root, depth)


def _sample_of_type(schema: Mapping[str, Any], rng: random.Random, root: Mapping[str, Any], depth: int) -> Any:
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or "properties" in schema:
        return {name: sample(part, rng, root, depth + 1) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [sample(schema.get("items"), rng, root, depth + 1) for _ in range(schema.get("minItems", 1))]
    return schema.get("minimum", _SAMPLES.get(str(kind)))
