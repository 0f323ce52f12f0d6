"""The public API: names, signatures, types."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import pickle
import subprocess
import sys
import sysconfig

import pytest

import chatpool
from chatpool import ChatPool, ChatResult, Usage, errors

NAMES = [
    "APIConnectionError",
    "APIStatusError",
    "APITimeoutError",
    "Answers",
    "AuthenticationError",
    "BadRequestError",
    "CallError",
    "ChatPool",
    "ChatPoolError",
    "ChatResult",
    "ConfigurationError",
    "ConflictError",
    "DEFAULT_MODEL",
    "DeadlineError",
    "Estimate",
    "InternalServerError",
    "InvalidResponseError",
    "JournalError",
    "NotFoundError",
    "NotSentError",
    "ParseError",
    "PermissionDeniedError",
    "PoolClosedError",
    "Price",
    "QuotaExceededError",
    "RateLimitError",
    "Retry",
    "SpendLimitError",
    "Usage",
    "__version__",
    "table",
]

TREE = {
    "ConfigurationError": ["ChatPoolError", "ValueError"],
    "PoolClosedError": ["ChatPoolError", "RuntimeError"],
    "JournalError": ["ChatPoolError", "OSError"],
    "CallError": ["ChatPoolError"],
    "APIConnectionError": ["CallError"],
    "APITimeoutError": ["APIConnectionError"],
    "APIStatusError": ["CallError"],
    "BadRequestError": ["APIStatusError"],
    "AuthenticationError": ["APIStatusError"],
    "PermissionDeniedError": ["APIStatusError"],
    "NotFoundError": ["APIStatusError"],
    "ConflictError": ["APIStatusError"],
    "RateLimitError": ["APIStatusError"],
    "QuotaExceededError": ["RateLimitError"],
    "InternalServerError": ["APIStatusError"],
    "InvalidResponseError": ["CallError"],
    "ParseError": ["CallError"],
    "DeadlineError": ["CallError"],
    "NotSentError": ["CallError"],
    "SpendLimitError": ["NotSentError"],
}


def test_public_names():
    """__all__ lists exactly these names, and each of them exists."""
    assert sorted(chatpool.__all__) == sorted(NAMES)
    assert all(hasattr(chatpool, name) for name in NAMES)


@pytest.mark.parametrize(("name", "bases"), TREE.items())
def test_error_tree(name, bases):
    """Every error has the bases that the module's docstring shows."""
    assert [base.__name__ for base in getattr(chatpool, name).__bases__] == bases
    assert name in errors.__doc__


def test_constructor_takes_only_max_workers_by_position():
    """Everything after max_workers is keyword-only, with these defaults."""
    parameters = list(inspect.signature(ChatPool).parameters.values())
    assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == ["max_workers"]
    assert {p.name: p.default for p in parameters} == {
        "max_workers": 20, "model": None, "api_key": None, "base_url": None, "system": None,
        "params": None, "headers": None, "timeout": (5, 600), "idle_timeout": None, "max_tries": 6, "max_time": None, "max_wait": 60,
        "requests_per_minute": None, "tokens_per_minute": None, "prices": None, "session": None, "progress": None,
        "on_retry": None, "on_result": None,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "more"), [("map", {"dedupe": False}), ("imap", {}), ("imap_unordered", {})])
def test_maps_take_only_prompts_by_position(name, more):
    first, *others = list(inspect.signature(getattr(ChatPool, name)).parameters.values())[1:]
    names = [
        "params",
        "response_format",
        "parse",
        "deadline",
        "progress",
        "journal",
        "request_budget",
        "token_budget",
        "cost_budget",
    ]
    assert first.name == "prompts"
    assert {p.name: p.default for p in others} == {**dict.fromkeys(names), "reask": True, **more}
    assert all(p.kind is p.KEYWORD_ONLY for p in others)


def test_constructor_starts_nothing(server):
    """An unused pool has no thread and no connection."""
    ChatPool(base_url=server.url)
    assert server.connections == 0


def test_result_is_frozen_and_has_slots():
    """A result cannot be changed, has no dict, and unpickles as it was."""
    result = ChatResult(0, "p", "t", "t", None, "stop", Usage(1, 2, 3), {"a": 1}, "r", 1, 0.5, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.text = "x"
    assert not hasattr(result, "__dict__")
    assert pickle.loads(pickle.dumps(result)) == result
    assert result.ok


@pytest.mark.parametrize("name", [name for name in TREE if issubclass(getattr(chatpool, name), chatpool.CallError)])
def test_errors_pickle_whole(name):
    """A CallError keeps its class, message, fields and cause through pickle."""
    error = getattr(chatpool, name)(
        "message", status_code=429, code="c", request_id="r", retry_after=1.5, attempts=3, body="b"
    )
    error.__cause__ = chatpool.NotSentError("cause", code="x")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == "message"
    assert (copy.status_code, copy.code, copy.request_id, copy.retry_after, copy.attempts, copy.body) == (
        429, "c", "r", 1.5, 3, "b",
    )  # fmt: skip
    assert copy.__cause__.code == "x"


def test_configuration_error_is_a_value_error():
    """So except ValueError catches it."""
    with pytest.raises(ValueError, match="max_workers"):
        ChatPool(0)


def test_logger_is_silent_by_default():
    """A library prints no log unless its user configures logging."""
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("chatpool").handlers)


def test_import_loads_no_optional_modules():
    """Those for the bar, the command, the journal and the first retry are imported at their first use."""
    later = {"tqdm", "argparse", "backoff", "asyncio", "pickle", "difflib"}
    later |= {"chatpool.journal", "chatpool.testing", "chatpool._cli.main"}
    code = f"import chatpool, sys; print(sorted({later} & set(sys.modules)))"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")
    }  # it imports pickle
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has the GIL")
def test_use_leaves_the_gil_disabled(server):
    """A free-threaded Python enables it if any module that is imported asks for it."""
    code = f"import chatpool, sys; chatpool.ChatPool(base_url={server.url!r}).map(['a']); print(sys._is_gil_enabled())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
