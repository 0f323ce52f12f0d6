"""Validates prompts and turns them into request bodies. Pure: no I/O, no clock."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple, Union

Prompt = Union[str, list[dict[str, Any]], dict[str, Any]]

CHAT_PATH = "/v1/chat/completions"
WITH_USAGE, WITHOUT_USAGE, UNSTREAMED = range(3)  # how a stream is asked for: with stream_options, without, not at all
BYTES_A_TOKEN = 4
TOKENS_A_PICTURE = 1000  # a guess; OpenAI counts 85 tokens for a small picture, about 1,100 for a large one
_MISSING = ("NoneType", "NAType", "NaTType")  # types of None and of pandas' missing values
_VERSION = "/v1"
_MEDIA_TYPE = r"image|audio|video|file|document"
_BASE64 = r"data:|[A-Za-z0-9+/=_-]{100}"
_ROW_HINT = "; if this is a row of a table, make a text of it, or use chatpool.table(frame, '{column}')"


def plain_number(value: Any) -> Any:
    """Return a numpy scalar as Python's number, for JSON; raise TypeError for anything else."""
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        return value.item()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=plain_number)


@dataclass(frozen=True)
class BatchRequest:
    """A prompt with a name, as in the Batch API's input files. ``path``: the endpoint that it is posted to."""

    prompt: Any
    custom_id: str | None = None
    path: str = CHAT_PATH


def check_prompts(prompts: Any) -> None:
    """Raise TypeError for an iterable that is not a series of prompts: a single prompt, a dict, a table."""
    if hasattr(type(prompts), "columns"):  # a DataFrame of pandas, polars or another library; iterating yields columns
        raise TypeError(
            f'prompts is a whole {type(prompts).__name__}; pass one of its columns, such as frame["prompt"]'
        )
    if type(prompts).__module__.partition(".")[0] == "pyarrow":  # iterating yields pyarrow's scalars, not text
        raise TypeError(f"prompts is a pyarrow {type(prompts).__name__}; pass prompts.to_pylist()")
    if isinstance(prompts, Mapping) and not {"messages", "role"} & set(prompts):
        raise TypeError(
            f"prompts is a {type(prompts).__name__}; pass a series of prompts, such as list(prompts.values())"
        )
    if isinstance(prompts, (str, bytes, Mapping)):
        raise TypeError(
            f"prompts is one {type(prompts).__name__}, not a series of prompts; "
            "put it in a list, or send a single prompt with ask()"
        )
    if inspect.isgenerator(prompts) and inspect.getgeneratorstate(prompts) == inspect.GEN_CLOSED:
        raise ValueError("prompts is a generator that was read before, so it yields nothing; make a new one, or a list")
    if not isinstance(prompts, Iterable):
        raise TypeError(f"prompts must be an iterable of prompts, not {type(prompts).__name__}")


def check_prompt(prompt: Any, index: int) -> None:
    """Raise TypeError, with the index, for an invalid prompt, or ValueError if JSON cannot represent it."""
    check_shape(prompt, index)
    fields = prompt.prompt if isinstance(prompt, BatchRequest) else prompt
    if not isinstance(fields, str):
        encode(fields, f"prompt {index}")


def check_shape(prompt: Any, index: int) -> None:
    """Raise TypeError, with the index, for an invalid prompt. Does not check whether JSON can represent it."""
    if isinstance(prompt, BatchRequest):
        if path_of(prompt) != CHAT_PATH:
            return
        prompt = prompt.prompt
    if isinstance(prompt, str):
        return
    if isinstance(prompt, dict):
        if "messages" not in prompt:
            hint = "; a single message goes in a list" if "role" in prompt else _ROW_HINT
            raise TypeError(f"prompt {index}: a dict prompt holds body fields and needs 'messages'{hint}")
    elif isinstance(prompt, list):
        if not prompt or not all(isinstance(message, dict) for message in prompt):
            raise TypeError(f"prompt {index}: a list prompt must be a non-empty list of message dicts")
        if not all("role" in message for message in prompt):
            raise TypeError(f"prompt {index}: each message of a list prompt needs a 'role'{_ROW_HINT}")
    else:
        raise TypeError(
            f"prompt {index}: a prompt is a str, a list of message dicts or a dict of body fields, "
            f"not {type(prompt).__name__}{_hint(prompt)}"
        )


def _hint(prompt: Any) -> str:
    # The type is checked first, because pandas' NA raises when it is compared.
    missing = type(prompt).__name__ in _MISSING or (isinstance(prompt, float) and prompt != prompt)
    return "; drop missing values first" if missing else ""


def build_body(prompt: Any, *, model: str, system: str | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's body: the prompt's own fields override ``params``, which override ``model``."""
    if isinstance(prompt, BatchRequest):
        if path_of(prompt) != CHAT_PATH:  # other endpoints have other fields
            return {**params, **prompt.prompt}
        prompt = prompt.prompt
    body: dict[str, Any] = {"model": model, **params}
    if isinstance(prompt, dict):
        body.update(prompt)
    elif isinstance(prompt, list):
        body["messages"] = prompt
    else:
        lead = [{"role": "system", "content": system}] if system is not None else []
        body["messages"] = [*lead, {"role": "user", "content": prompt}]
    return body


def encode(value: Any, name: str) -> bytes:
    """Return JSON bytes; raise TypeError or ValueError, with ``name``, for a value that JSON cannot represent.

    Escapes to ASCII, so that a lone surrogate in a prompt is valid in the request. NaN is not valid JSON.
    """
    try:
        return _encoder.encode(value).encode("ascii")
    except TypeError as error:
        raise TypeError(f"{name} cannot be sent as JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be sent as JSON: {error}") from None


def encode_text(text: str) -> bytes:
    """Return the JSON of a text, as ``encode`` does."""
    return encode_basestring_ascii(text).encode("ascii")


def streamed(payload: bytes, level: int) -> bytes | None:
    """Return a body that asks for a stream, at one of the levels above; None if it is not to be streamed.

    Its own ``stream`` and ``stream_options`` stay.
    """
    if level == UNSTREAMED:
        return None
    fields = {"stream": True, **({"stream_options": {"include_usage": True}} if level == WITH_USAGE else {})}
    if b'"stream' not in payload:
        return payload[:-1] + b"," + encode(fields, "the request")[1:]
    own = json.loads(payload)
    if own.get("stream") is False:
        return None
    own_options = own.pop("stream_options", None)
    if level == WITH_USAGE and isinstance(own_options, dict):
        fields["stream_options"] = {"include_usage": True, **own_options}
    return encode({**own, **fields}, "the request")


def path_of(prompt: Any) -> str:
    """Return the path of the endpoint that a prompt is posted to, as in a Batch file; Azure's have no ``/v1``."""
    path = prompt.path if isinstance(prompt, BatchRequest) else CHAT_PATH
    return path if path.startswith(_VERSION + "/") else _VERSION + path


class TokenEstimate(NamedTuple):
    """An estimate of a request's tokens.

    ``text``: of the prompt's text. ``media``: of its pictures, audio and files, the same guess for each. ``answer``:
    the longest answer that the request allows; 0 if it sets no limit.
    """

    text: int
    media: int
    answer: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)


def estimate(payload: bytes, body: Mapping[str, Any]) -> TokenEstimate:
    """Estimate a request's tokens: one for four bytes of text, and as many for the answer as the request allows.

    Four characters of English per token is OpenAI's own rule of thumb; JSON's escapes make it fit other scripts too.
    Base64 is not counted: servers count a picture by its width and height.
    """
    parts, hidden = _media(body.get("messages", body.get("input")))
    return TokenEstimate((len(payload) - hidden) // BYTES_A_TOKEN, parts * TOKENS_A_PICTURE, longest_answer(body) or 0)


def _media(value: Any) -> tuple[int, int]:
    """Return the number of pictures, audio and files, and their bytes of base64."""
    if isinstance(value, dict):
        if re.search(_MEDIA_TYPE, str(value.get("type", ""))):
            return 1, _base64_bytes(value)
        value = list(value.values())
    if not isinstance(value, list):
        return 0, 0
    found = [_media(part) for part in value if isinstance(part, (dict, list))]
    return sum(parts for parts, _ in found), sum(size for _, size in found)


def _base64_bytes(value: Any) -> int:
    if isinstance(value, str):
        return len(value) if re.match(_BASE64, value) else 0
    if isinstance(value, dict):
        value = list(value.values())
    return sum(_base64_bytes(part) for part in value) if isinstance(value, list) else 0


def longest_answer(body: Mapping[str, Any]) -> int | None:
    """Return the most tokens that the answer can have; None if the request sets no limit."""
    longest = body.get("max_completion_tokens") or body.get("max_tokens")
    copies = body.get("n") or 1
    return longest * copies if isinstance(longest, int) and isinstance(copies, int) else None
