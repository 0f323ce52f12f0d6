"""How long to wait, and who waits: arithmetic without a clock, and backoff's loop around it."""

from __future__ import annotations

import asyncio
import configparser
import gc
import time
import warnings
import weakref
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from chatpool import (
    ChatPool,
    InternalServerError,
    NotSentError,
    ParseError,
    RateLimitError,
)
from chatpool._protocol.judgement import is_transient
from chatpool._scheduling.retry import Postponed, back_off, delay_before_retry, load_backoff
from chatpool.testing import Reply


def test_own_waits_are_full_jitter_under_a_doubling_bound():
    """The n-th wait lies anywhere between 0 and 0.25 × 2ⁿ⁻¹ seconds, 20 at most."""
    for attempts, bound in ((1, 0.25), (2, 0.5), (3, 1), (6, 8), (8, 20), (1000, 20)):
        waits = [delay_before_retry(InternalServerError("x"), attempts, 60) for _ in range(400)]
        assert 0 <= min(waits) < 0.1 * bound
        assert 0.9 * bound < max(waits) <= bound


def test_max_wait_bounds_own_waits():
    assert all(delay_before_retry(InternalServerError("x"), 9, 0.01) <= 0.01 for _ in range(100))


def test_servers_word_is_kept_to_the_letter():
    """No jitter shortens what the server asked for, and no bound: a call that cannot wait so long fails."""
    assert delay_before_retry(RateLimitError("x", retry_after=90), 1, 60) == 90


def test_closed_kept_connection_is_tried_again_at_once():
    from chatpool import APIConnectionError

    assert delay_before_retry(APIConnectionError("x", code="stale_connection"), 1, 60) == 0


@pytest.mark.parametrize(("error", "again"), [(ParseError("x"), True), (NotSentError("x"), False)])
def test_errors_without_a_reply(error, again):
    assert is_transient(error) is again


def test_back_off_leaves_the_wait_to_the_scheduler(monkeypatch):
    """backoff decides that there is another attempt, and when; it never sleeps."""
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    with pytest.raises(Postponed) as caught:
        back_off(7.5)
    assert caught.value.delay == 7.5
    assert slept == []


def test_back_off_leaves_no_reference_cycle():
    """The frames of a failure hold the call with its prompt and reply; they must not wait for the garbage collector."""

    class Prompt:
        pass

    def fail() -> weakref.ref:
        prompt = Prompt()
        try:
            back_off(1.0)
        except Postponed:
            return weakref.ref(prompt)

    load_backoff()
    gc.disable()
    try:
        assert fail()() is None
    finally:
        gc.enable()


def test_backoff_loads_with_warnings_as_errors():
    """backoff 2.2.1 calls a function that is deprecated from Python 3.14 on; its users' tests do not fail for that."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Postponed):
            load_backoff.__wrapped__()(1.0)


def test_python_3_16_has_what_backoff_needs(monkeypatch):
    """It has no asyncio.iscoroutinefunction; backoff's successor does not need it."""
    pytest.importorskip("backoff", minversion="3", reason="python-backoff is not installed; .ci/run installs it")
    monkeypatch.delattr(asyncio, "iscoroutinefunction", raising=False)
    with pytest.raises(Postponed):
        load_backoff.__wrapped__()(1.0)


@pytest.mark.parametrize(
    ("python", "distribution"), [("3.9", "backoff"), ("3.15", "backoff"), ("3.16", "python-backoff")]
)
def test_one_distribution_of_backoff_is_installed(python, distribution):
    """Both contain the package backoff, so that the second one would overwrite the first."""
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].splitlines()
    needs = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = [need.name for need in needs if need.marker is None or need.marker.evaluate({"python_version": python})]
    assert [name for name in here if "backoff" in name] == [distribution]


def test_back_off_occupies_no_slot(server):
    """Two workers, at most three threads: a retry that is due in half a second is not kept waiting for twenty."""
    late = Reply(status=500, headers={"retry-after": "20"})
    for prompt in ("a", "b", "e"):
        server.script(prompt, late, Reply(prompt))
    server.script("c", Reply(status=500, headers={"retry-after": "0.5"}, delay=0.2), Reply("c"))
    server.script("d", Reply("d", delay=5))
    with ChatPool(2, base_url=server.url) as pool:
        began = time.monotonic()
        for result in pool.imap_unordered(["a", "b", "c", "d", "e"]):
            assert result.value == "c"
            break
        assert time.monotonic() - began < 3
