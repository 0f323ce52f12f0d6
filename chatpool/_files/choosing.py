"""Rows → requests: which part of a row is the prompt, and what else of it is sent. Pure: no I/O."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from chatpool._protocol.requests import CHAT_PATH, BatchRequest, check_prompt, path_of
from chatpool.errors import ConfigurationError

from .json_documents import is_message
from .kinds import find_first
from .templates import Template, find_column, is_missing, list_names

EMBEDDINGS_PATH = "/v1/embeddings"
_PATHS = ("/v1/", "/chat/completions", "/completions", "/embeddings", "/responses")  # Azure leaves /v1 out
# From OpenAI's API reference for chat completions.
_CHAT_FIELDS = frozenset({
    "model", "messages", "temperature", "top_p", "n", "stop", "seed", "max_tokens", "max_completion_tokens",
    "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format", "tools",
    "tool_choice", "parallel_tool_calls", "reasoning_effort", "service_tier", "stream", "stream_options", "store",
    "modalities", "audio", "prediction", "user", "verbosity", "web_search_options", "safety_identifier",
    "prompt_cache_key", "prompt_cache_retention", "functions", "function_call",
})  # fmt: skip
# What vLLM, llama.cpp, Ollama, OpenRouter, Mistral, DeepSeek, Qwen and Anthropic's compatible API understand besides.
_SERVERS_FIELDS = frozenset({
    "top_k", "min_p", "top_a", "typical_p", "repetition_penalty", "length_penalty", "best_of", "use_beam_search",
    "ignore_eos", "min_tokens", "stop_token_ids", "include_stop_str_in_output", "skip_special_tokens", "guided_json",
    "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "chat_template_kwargs", "extra_body",
    "add_generation_prompt", "continue_final_message", "thinking", "enable_thinking", "thinking_budget", "reasoning",
    "include_reasoning", "provider", "models", "route", "transforms", "plugins", "usage", "safe_prompt", "random_seed",
    "prompt_mode", "grammar", "json_schema", "cache_prompt", "n_predict", "mirostat", "keep_alive", "options", "think",
    "system", "format",
})  # fmt: skip
# Beside "prompt", without "user" and "metadata", which mean other things in data sets.
_BODY_FIELDS = _CHAT_FIELDS - {"messages", "user", "store", "audio", "prediction", "functions"}
_NAMES = ("custom_id", "id")

Entry = Union[BatchRequest, str, None]  # a row's request, the problem with it, or None if its prompt is empty


@dataclass(frozen=True)
class NamedRequest(BatchRequest):
    """A request of a row with an ``id``. ``alias``: another name under which a journal may have it."""

    alias: str | None = None


@dataclass(frozen=True)
class Choice:
    """How to make a request of a row; the options of the command by their names."""

    prompt_field: str | None = None
    template: Template | None = None
    system: Template | None = None
    id_field: str | None = None
    endpoint: str | None = None
    model: str | None = None
    has_schema: bool = False  # all answers have one response_format

    @property
    def names_columns(self) -> bool:
        """Whether columns were named, so that the input must be a table or JSON objects."""
        return self.names_prompt or self.id_field is not None

    @property
    def names_prompt(self) -> bool:
        """Whether the columns of the prompt were named."""
        return self.prompt_field is not None or self.template is not None

    @property
    def path(self) -> str:
        """The endpoint of rows that name none."""
        return self.endpoint or CHAT_PATH


class Chooser:
    """Makes requests of the rows of one input. ``unsent``: how often each field was not sent.

    ``names_by_id``: whether rows are named by their ``id``, which must be unique; None while that is not known.
    """

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self.unsent: Counter[str] = Counter()
        self.names_by_id: bool | None = None
        self._columns: dict[str, str] | None = None
        self._found: dict[str, str | None] = {}
        self._keys: dict[str, str] = {}  # of a table's chosen columns, by their names

    def start(self, columns: dict[str, str] | None) -> str | None:
        """Prepare for the rows of a file; return the problem if its columns do not fit."""
        self._columns, self._found, self._keys = columns, {}, {}
        if not columns:  # not a table, or an empty file
            return None
        try:
            self._keys = {name: self._key(name, columns) for name in self._wanted()}
        except ValueError as error:
            return str(error)
        used = {*self._keys.values(), *_NAMES}
        self.unsent.update(name for key, name in columns.items() if key not in used)
        return None

    def entry(self, value: Any) -> Entry:
        """Return a row's request, the problem with it, or None if its prompt is empty."""
        try:
            is_chosen = isinstance(value, dict) and (self._columns is not None or self._choice.names_prompt)
            entry = self._chosen(value) if is_chosen else self._read(value)
            if self._choice.has_schema and isinstance(entry, BatchRequest):
                _check_format(entry)
            return entry
        except (ValueError, TypeError) as error:
            # check_prompt names a prompt by its index; here the line's number does that.
            return str(error).replace("prompt -1: ", "").replace("prompt -1 ", "it ")

    def auto_id(self, value: Any) -> str | None:
        """Return a row's ``id`` if it can be a name, and no other name was chosen."""
        if self._choice.id_field is not None or not isinstance(value, dict) or value.get("custom_id"):
            return None
        name = value.get("id")
        return str(name) if isinstance(name, (str, int)) and not isinstance(name, bool) and str(name).strip() else None

    def _wanted(self) -> list[str]:
        choice = self._choice
        fields = choice.template.fields if choice.template else [choice.prompt_field or "prompt"]
        more = choice.system.fields if choice.system else []
        return [*fields, *more, *([choice.id_field] if choice.id_field else [])]

    def _key(self, name: str, columns: Mapping[str, str] | Sequence[str]) -> str:
        """Return the key of the column of this name; raise ValueError if there is none, or more than one."""
        names = list(columns.values()) if isinstance(columns, Mapping) else list(columns)
        key = self._found.get(name)
        if key is not None and key in columns:
            return key
        found = find_column(name, names)
        if found is None:
            raise ValueError(_no_column(name, names, is_chosen=self._choice.names_columns or name != "prompt"))
        self._found[name] = found
        return found

    def _chosen(self, value: Mapping[str, Any]) -> Entry:
        """Make the request of a table's row, or of a JSON object of which fields were chosen."""
        choice, keys = self._choice, self._keys
        if not self._columns:
            keys = {name: self._key(name, list(value)) for name in self._wanted()}
            self.unsent.update(key for key in value if key not in (*keys.values(), *_NAMES))
        cells = {name: value[key] for name, key in keys.items()}
        template = choice.template
        parts = template.fields if template else [choice.prompt_field or "prompt"]
        if any(is_missing(cells[name]) for name in [*parts, *(choice.system.fields if choice.system else [])]):
            return None
        system = choice.system.fill(cells) if choice.system else None
        prompt = template.fill(cells) if template else cells[parts[0]]
        return self._request(prompt, self._name(value), system, value)

    def _name(self, value: Mapping[str, Any]) -> str | None:
        """Return the name that a row brings; raise ValueError if it must have one and has none."""
        field = self._choice.id_field
        if field is None:
            name = value.get("custom_id")
            if self._columns is not None and is_missing(name):
                return None
            if name is not None and (not isinstance(name, str) or not name):
                raise TypeError("'custom_id' must be a non-empty string")
            return name
        name = value[self._key(field, self._columns or list(value))]
        if is_missing(name):
            raise ValueError(f"{field!r} is empty, and --id-field needs a name for each row")
        return str(name)

    def _request(self, prompt: Any, name: str | None, system: str | None, value: Any) -> BatchRequest:
        if not isinstance(prompt, (str, list)):
            raise TypeError(f"a prompt must be a string or a list of messages, not {_excerpt(prompt)}")
        if self._choice.path != CHAT_PATH:
            return self._named({**self._model(), _input_field(self._choice.path): prompt}, name, value)
        if system is not None and isinstance(prompt, str):
            return self._named(_with_system(system, prompt), name, value)
        return self._named(prompt, name, value)

    def _model(self) -> dict[str, Any]:
        if self._choice.model is None:
            raise ConfigurationError(f"--endpoint {self._choice.path} needs the name of its model: --model")
        return {"model": self._choice.model}

    def _named(self, prompt: Any, name: str | None, value: Any, path: str | None = None) -> BatchRequest:
        path = path or self._choice.path
        check_prompt(BatchRequest(prompt, name, path), -1)
        alias = None if name is not None else self.auto_id(value)
        if alias is None or self.names_by_id is None:
            return BatchRequest(prompt, name, path)
        return NamedRequest(prompt, alias if self.names_by_id else None, path, alias)

    def _read(self, value: Any) -> Entry:
        """Make the request of a JSON value or of a line of text."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return self._object(value)
        if self._choice.names_columns:
            raise TypeError(f"a row without columns, {_excerpt(value)}; the options name columns")
        if isinstance(value, list) and value and not all(map(is_message, value)):
            raise TypeError("a list prompt must be a non-empty list of message dicts, each with a 'role'")
        if not isinstance(value, list):
            raise TypeError(f"a prompt is a string, a list of messages or an object, not {_excerpt(value)}")
        return self._request(value, None, None, value)

    def _text(self, value: str) -> Entry:
        if not value.strip():
            return None
        if self._choice.names_columns:
            raise TypeError("a row without columns; the options name columns, which need a table or JSON objects")
        # A line of text has no columns, so braces in the system message are characters.
        return self._request(value, None, self._choice.system.text if self._choice.system else None, value)

    def _object(self, value: dict[str, Any]) -> Entry:
        if "body" in value:
            return self._batch(value)
        if "messages" in value:
            return self._bare_body(value, CHAT_PATH)
        if "prompt" not in value or (self._choice.endpoint == "/v1/completions" and "model" in value):
            return self._other_object(value)
        self._refuse_body_fields(value)
        prompt, system = value["prompt"], value.get("system")
        self.unsent.update(key for key in value if key not in ("prompt", "system", *_NAMES))
        if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
            return None
        if isinstance(prompt, dict):
            raise TypeError(
                "'prompt' is an object; if pandas wrote this, use to_json(path, orient='records', lines=True)"
            )
        if not isinstance(prompt, (str, list)):
            raise TypeError("'prompt' must be a string or a list of messages")
        if system is not None and not isinstance(system, str):
            raise TypeError("'system' beside 'prompt' must be a string")
        if self._choice.system is not None and not system:
            system = self._choice.system.fill(self._system_cells(value))
        return self._request(prompt, self._name(value), system or None, value)

    def _system_cells(self, value: dict[str, Any]) -> dict[str, Any]:
        fields = self._choice.system.fields if self._choice.system else []
        return {name: value[self._key(name, list(value))] for name in fields}

    def _other_object(self, value: dict[str, Any]) -> Entry:
        path = self._choice.endpoint
        if path is None and "input" in value and isinstance(value.get("model"), str):
            path = EMBEDDINGS_PATH
        if path is not None and path != CHAT_PATH and _input_field(path) in value:
            return self._bare_body(value, path)
        match = find_column("prompt", list(value))
        if match is not None:
            return self._object({("prompt" if key == match else key): cell for key, cell in value.items()})
        names = list(value)
        example = find_first(names) or (names[0] if names else "text")
        raise TypeError(
            f"an object needs 'body', 'messages' or 'prompt', and this one has {list_names(names) or 'no fields'}; "
            f"pass --prompt-field {example}, or --template '{{{example}}}'"
        )

    def _bare_body(self, value: dict[str, Any], path: str) -> Entry:
        """Read a body without its envelope. Fields that no server knows belong to the data set, and are not sent."""
        name = self._name(value)
        if path == CHAT_PATH:
            _check_messages(value["messages"])
            known = _CHAT_FIELDS | _SERVERS_FIELDS
        else:
            known = frozenset(value) - {*_NAMES, "metadata"}
        if value.get("store"):
            known |= {"metadata"}
        body = {key: field for key, field in value.items() if key in known}
        self.unsent.update(key for key in value if key not in known and key not in _NAMES)
        _refuse_streaming(body)
        if path != CHAT_PATH and "model" not in body:
            body = {**self._model(), **body}
        return self._named(body, name, value, path)

    def _batch(self, value: dict[str, Any]) -> BatchRequest:
        """Read a line of the Batch API's input ("The request input object" in OpenAI's API reference)."""
        body, path = value["body"], value.get("url", self._choice.path)
        if not isinstance(body, dict):
            raise TypeError("'body' must be an object")
        if value.get("method", "POST") != "POST":
            raise ValueError("'method' must be POST")
        if not isinstance(path, str) or not path.startswith(_PATHS):
            raise ValueError(f"'url' must be a path such as {CHAT_PATH}")
        request = BatchRequest(body, self._name(value), path)
        if path_of(request) == CHAT_PATH and "messages" in body:
            _check_messages(body["messages"])
        check_prompt(request, -1)
        _refuse_streaming(body)
        return request

    def _refuse_body_fields(self, value: dict[str, Any]) -> None:
        """Beside "prompt", keep other columns of a data set, but refuse a field that was meant to be sent."""
        ignored = sorted(_BODY_FIELDS & value.keys())
        if ignored:
            raise ValueError(
                f"{ignored[0]!r} would not be sent; use 'messages' in place of 'prompt', pass --param {ignored[0]}=…, "
                "or pass --prompt-field prompt to send the prompt alone"
            )


def _with_system(system: str, prompt: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]


def _input_field(path: str) -> str:
    return "prompt" if path.endswith("/completions") else "input"


def _check_messages(messages: Any) -> None:
    """Raise TypeError for messages that no server accepts."""
    if not isinstance(messages, list) or not messages or not all(map(is_message, messages)):
        raise TypeError("'messages' must be a non-empty list of objects, each with a 'role'")


def _check_format(request: BatchRequest) -> None:
    """Raise ValueError for a request whose answer cannot have the format that --schema asks for."""
    if path_of(request) != CHAT_PATH:
        raise ValueError(f"--schema is for chat completions, not for {request.path}")
    if isinstance(request.prompt, dict) and "response_format" in request.prompt:
        raise ValueError("the request has a 'response_format' of its own; leave it out, or --schema")


def _refuse_streaming(body: Mapping[str, Any]) -> None:
    if body.get("stream"):
        raise ValueError("'stream' is not supported; answers are read whole")


def _no_column(name: str, names: Sequence[str], *, is_chosen: bool) -> str:
    if is_chosen:
        return f"no column {name!r} among {list_names(names)}"
    example = find_first(names) or (names[0] if names else "text")
    return (
        f"no column 'prompt' among {list_names(names)}; pass --prompt-field {example} to send a column, "
        f"or --template '{{{example}}}' to put several into a text"
    )


def _excerpt(value: Any) -> str:
    return json.dumps(value, default=str)[:40]
