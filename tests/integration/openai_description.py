"""Write an OpenAPI description of OpenAI's chat call, for Prism: ``openai_description.py FILE``. Needs openai.

OpenAI generates its SDK from its OpenAPI description. No package contains the description, but the SDK is on PyPI, so
this reads its types. Unknown fields are rejected, as OpenAI does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import openai
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

_MESSAGE = {"role": "assistant", "content": "valid", "refusal": None}
_REPLY = {"object": "chat.completion", "choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}]}


def describe() -> dict[str, Any]:
    """Return the description, with "valid" as the answer to every valid request."""
    request = TypeAdapter(CompletionCreateParamsNonStreaming).json_schema(ref_template="#/components/schemas/{model}")
    schemas = close({**request.pop("$defs"), "Request": request})
    call = {
        "requestBody": {"required": True, "content": _json(schema={"$ref": "#/components/schemas/Request"})},
        "responses": {"200": {"description": "a completion", "content": _json(example=_REPLY)}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "OpenAI's chat completions", "version": openai.__version__},
        "security": [{"key": []}],
        "paths": {"/chat/completions": {"post": call}},
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}, "schemas": schemas},
    }


def close(schema: Any) -> Any:
    """Allow only the named properties, in all nested objects."""
    if isinstance(schema, list):
        return [close(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: close(inner) for name, inner in schema.items()}
    is_object = schema.get("type") == "object" and "properties" in schema
    return {**closed, "additionalProperties": False} if is_object else closed


def _json(**content: Any) -> dict[str, Any]:
    return {"application/json": content}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(describe()))
