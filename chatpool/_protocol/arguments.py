"""Explains an unknown keyword argument: the setting that was meant, or the place where it belongs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection
from typing import Any, Callable, TypeVar, cast

_F = TypeVar("_F", bound=Callable[..., Any])

# Names that other parameters have now, because they mean something else everywhere else.
_RENAMED = {"max_requests": "request_budget", "max_tokens": "token_budget"}
# Parameters of OpenAI's chat completions (API reference, "Create chat completion"); any other server has its own.
_BODY_FIELDS = """
temperature top_p top_k n stop seed max_tokens max_completion_tokens logprobs top_logprobs logit_bias presence_penalty
frequency_penalty repetition_penalty min_p tools tool_choice functions function_call user reasoning_effort verbosity
service_tier response_format modalities audio parallel_tool_calls prediction store metadata web_search_options
safety_identifier prompt_cache_key
"""


def explain_unknown_arguments(function: _F) -> _F:
    """Have a function raise a TypeError that helps for a keyword argument that it does not have.

    ``inspect.signature``, ``help`` and type checkers see the function's own signature.
    """
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: Any, **named: Any) -> Any:
        for name in named:
            if name not in known:
                raise TypeError(f"{function.__name__}() has no argument {name}{_advice(name, known)}")
        return function(*args, **named)

    return cast(_F, checked)


def _advice(name: str, known: Collection[str]) -> str:
    renamed = _RENAMED.get(name)
    if renamed is not None and renamed in known:
        field = f'; to limit one answer, pass params={{"{name}": …}}' if name in _BODY_FIELDS.split() else ""
        return f": it is called {renamed} now{field}"
    if name in _BODY_FIELDS.split():
        return f' of its own; it is a field of the request body: pass params={{"{name}": …}}'
    import difflib  # noqa: PLC0415 - only for the hint of an error

    similar = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {similar[0]}?" if similar else ""
