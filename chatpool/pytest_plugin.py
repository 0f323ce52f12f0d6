"""The pytest fixture ``fake_chat_server``. It comes with the package; tests need no import."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import FakeChatServer


@pytest.fixture
def fake_chat_server() -> Iterator[FakeChatServer]:
    """A FakeChatServer on a free loopback port, closed after the test."""
    from .testing import FakeChatServer  # noqa: PLC0415 - pytest loads its plugins in every run

    with FakeChatServer() as server:
        yield server
