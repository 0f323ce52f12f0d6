"""The pytest fixture ``fake_chat_server``; it comes with the package, no import needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import FakeChatServer


@pytest.fixture
def fake_chat_server() -> Iterator[FakeChatServer]:
    """A FakeChatServer on a free loopback port, closed when the test is over."""
    from .testing import FakeChatServer  # noqa: PLC0415 - plugins are loaded in every pytest run

    with FakeChatServer() as server:
        yield server
