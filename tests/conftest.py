"""Fixtures: a clean environment for every test, and a check that it leaves no thread behind."""

from __future__ import annotations

import gc
import inspect
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest

from chatpool import ChatPool
from chatpool.testing import FakeChatServer
from tests.snippets import answer

_VARIABLES = [
    "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE",
    "NETRC",
]  # fmt: skip
_PROXIES = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"]
# Windows has no fork, no signals between processes, no named pipes and no file modes.
_POSIX = r"\b(fork|waitpid|mkfifo|killpg|pthread_kill|send_signal|SIG[A-Z]+|preexec_fn|S_IMODE|resource)\b|/dev/"


def pytest_configure() -> None:
    """Let Ctrl-C reach its tests even if a shell started pytest in the background, which ignores SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On Windows, skip the tests that use features of POSIX."""
    if sys.platform == "win32":
        for item in items:
            if isinstance(item, pytest.Function) and uses_posix(item.function):
                item.add_marker(pytest.mark.skip(reason="uses fork, signals or other features of POSIX"))


def uses_posix(test: FunctionType) -> bool:
    """Whether the source of a test names a feature of POSIX, or a function or string of its module that does."""
    sources = {
        name: value if isinstance(value, str) else inspect.getsource(value)
        for name, value in test.__globals__.items()
        if isinstance(value, str) or (inspect.isfunction(value) and value.__module__ == test.__module__)
    }
    helpers = [rf"\b{name}\b" for name, source in sources.items() if re.search(_POSIX, source)]
    return re.search("|".join([_POSIX, *helpers]), inspect.getsource(test)) is not None


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the machine's API keys, URLs, proxies and certificates."""
    for name in [*_VARIABLES, *_PROXIES, *(name.upper() for name in _PROXIES)]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """After each test, the package's threads end soon."""
    yield
    assert wait_until(lambda: not chatpool_threads()), chatpool_threads()


@pytest.fixture
def server(fake_chat_server: FakeChatServer) -> FakeChatServer:
    """The package's own fixture, with a shorter name."""
    return fake_chat_server


@pytest.fixture
def named_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeChatServer]:
    """A server that environment variables point to, for scripts and snippets."""
    with FakeChatServer(reply=answer, key="sk-test") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        yield server
    gc.collect()  # a script's globals are a reference cycle with its pool


@pytest.fixture
def make_pool(server: FakeChatServer) -> Iterator[Callable[..., ChatPool]]:
    """Make pools for the server that wait 10 ms at most before a retry; they are closed after the test."""
    pools = []

    def make(max_workers: int = 4, **settings: Any) -> ChatPool:
        pools.append(ChatPool(max_workers, **{"base_url": server.url, "max_wait": 0.01, **settings}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def pool(make_pool: Callable[..., ChatPool]) -> ChatPool:
    """A pool of four workers."""
    return make_pool()


def chatpool_threads() -> list[str]:
    """Return the names of the package's running threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("chatpool")]


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait for a condition; return whether it became true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
