"""The endpoints for models and embeddings.

The shapes are from "Models" and "Embeddings" in OpenAI's API reference.
"""

from __future__ import annotations

import base64
import json
import math
import random
import sys
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

_CREATED = 1700000000  # when every model was created, as a Unix timestamp
_DIMENSIONS = 1536  # of text-embedding-3-small
_MOST_INPUTS = 2048


def model_list(names: Iterable[str]) -> dict[str, Any]:
    """Return the list of models."""
    return {"object": "list", "data": [model(name) for name in names]}


def model(name: str) -> dict[str, Any]:
    """Return one model."""
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "chatpool"}


def embeddings_problem(body: Mapping[str, Any]) -> str | None:
    """Return why a request for embeddings is invalid; None if it is not."""
    inputs = body.get("input")
    if not isinstance(inputs, (str, list)) or not inputs or not all(_is_input(item) for item in _inputs(body)):
        return "input must be a string, a list of strings, a list of tokens or a list of such lists, none of them empty"
    if len(_inputs(body)) > _MOST_INPUTS:
        return f"input must have at most {_MOST_INPUTS} elements"
    dimensions = body.get("dimensions", _DIMENSIONS)
    if not isinstance(dimensions, int) or dimensions < 1:
        return "dimensions must be an integer, 1 or more"
    if body.get("encoding_format", "float") not in ("float", "base64"):
        return 'encoding_format must be "float" or "base64"'
    return None


def embeddings(body: Mapping[str, Any], usage: Mapping[str, int] | None) -> dict[str, Any]:
    """Return a vector of length 1 for each input: the same one for the same input, as random as its text."""
    inputs, dimensions = _inputs(body), body.get("dimensions", _DIMENSIONS)
    as_base64 = body.get("encoding_format") == "base64"
    tokens = sum(len(item.split() if isinstance(item, str) else item) for item in inputs)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _encode(_vector(item, dimensions), as_base64)}
            for index, item in enumerate(inputs)
        ],
        "model": body.get("model", "fake"),
        "usage": usage or {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _inputs(body: Mapping[str, Any]) -> list[str | list[int]]:
    """Return the inputs as a list. A list of numbers is the tokens of a single one."""
    inputs = body["input"]
    is_one = isinstance(inputs, str) or isinstance(inputs[0], int)
    return [inputs] if is_one else inputs


def _is_input(item: Any) -> bool:
    is_tokens = isinstance(item, list) and all(isinstance(token, int) for token in item)
    return bool(item) and (isinstance(item, str) or is_tokens)


def _vector(item: str | list[int], dimensions: int) -> array[float]:
    """Return a vector. One with fewer dimensions is the beginning of a longer one, as with OpenAI's models."""
    rng = random.Random(json.dumps(item))
    numbers = [rng.uniform(-1, 1) for _ in range(dimensions)]
    norm = math.sqrt(sum(number * number for number in numbers))
    return array("f", [number / norm for number in numbers])


def _encode(vector: array[float], as_base64: bool) -> str | list[float]:
    """Return the numbers, or the base64 of their 32 bits each, little-endian."""
    if not as_base64:
        return vector.tolist()
    if sys.byteorder == "big":
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()
