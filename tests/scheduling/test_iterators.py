"""imap and imap_unordered: lazy, bounded, and dropped without a trace."""

from __future__ import annotations

import gc
import itertools
import threading

import pytest

from chatpool import (
    ChatPool,
    ConfigurationError,
    DeadlineError,
    PoolClosedError,
)
from chatpool.testing import Reply
from tests.conftest import wait_until


def test_imap_yields_in_order(server, pool):
    """Each result as soon as it and all before it are there."""
    server.script("0", Reply("0", delay=0.05))
    results = list(pool.imap([str(number) for number in range(20)]))
    assert [result.value for result in results] == [str(number) for number in range(20)]
    assert [result.index for result in results] == list(range(20))


def test_imap_unordered_yields_as_they_finish(server, pool):
    """A slow first prompt does not hold the others up."""
    server.script("0", Reply("0", delay=0.3))
    indexes = [result.index for result in pool.imap_unordered([str(number) for number in range(20)])]
    assert sorted(indexes) == list(range(20))
    assert indexes[-1] == 0


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_endless_input_is_read_only_a_little_ahead(server, pool, method):
    """Four prompts ahead for each worker, and no more however long it runs."""
    taken = 0

    def endless():
        nonlocal taken
        for number in itertools.count():
            taken = number + 1
            yield str(number)

    for given, result in enumerate(getattr(pool, method)(endless()), 1):
        assert taken - given <= 16
        assert result.ok
        if given == 100:
            break


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_nothing_is_sent_before_the_first_next(server, pool, method):
    """An iterator that nobody uses costs nothing."""
    getattr(pool, method)(["a"])
    assert server.requests == []


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_dropped_iterator_gives_its_places_back(server, pool, method):
    """What was under way is cut, and the pool is fit for the next map at once."""
    server.script("slow", Reply(fault="stall"))
    iterator = getattr(pool, method)(["a", "slow", "slow", "slow", "slow"])
    assert next(iterator).value == "a"
    del iterator
    assert pool.map(["b"] * 4, deadline=3) == ["b"] * 4
    assert wait_until(lambda: not pool._engine()._scheduler._jobs)


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_bad_prompt_is_raised_after_what_is_in_flight(server, pool, method):
    """Input is lazy, so a prompt of a wrong type is met only when it is reached."""
    iterator = getattr(pool, method)(["a", "b", 3, "c"])
    assert {next(iterator).value, next(iterator).value} == {"a", "b"}
    with pytest.raises(TypeError, match="prompt 2"):
        next(iterator)
    assert len(server.requests) == 2


def test_error_of_the_input_is_raised_after_what_is_in_flight(pool):
    """The caller's own exception comes back to the caller, and loses no answer."""

    def broken():
        yield "a"
        raise OSError("file gone")

    iterator = pool.imap(broken())
    assert next(iterator).value == "a"
    with pytest.raises(OSError, match="file gone"):
        next(iterator)


def test_results_come_before_more_input_is_waited_for(server, pool):
    """With a slow input, what is done is yielded before the next prompt but one is read."""
    given = []

    def slow():
        yield "a"
        assert wait_until(lambda: pool._engine()._core.limits.answers == 1)
        yield "b"
        assert wait_until(lambda: pool._engine()._core.limits.answers == 2)
        assert given == ["a"]
        yield "c"

    for result in pool.imap(slow()):
        given.append(result.value)
    assert given == ["a", "b", "c"]


def test_failures_are_results_too(server, pool):
    server.script("bad", Reply(status=400))
    assert [result.ok for result in pool.imap(["a", "bad", "b"])] == [True, False, True]


def test_deadline_of_imap(server, pool):
    """What is not answered by then is yielded with DeadlineError."""
    server.script("slow", Reply(fault="stall"))
    results = list(pool.imap(["a", "slow", "b"], deadline=0.3))
    assert [result.value for result in results] == ["a", None, "b"]
    assert type(results[1].error) is DeadlineError


def test_parse_errors_of_the_caller_are_raised(pool):
    with pytest.raises(ZeroDivisionError):
        list(pool.imap(["a"], parse=lambda text: 1 / 0))


def test_lone_prompt_is_refused_at_once(pool):
    """Not at the first next(), but where the mistake is."""
    with pytest.raises(TypeError, match="not a series"):
        pool.imap("lone")
    with pytest.raises(ConfigurationError):
        pool.imap_unordered(["a"], deadline="x")


def test_imap_within_parse_works(pool):
    answers = pool.map(["a"] * 8, parse=lambda text: [r.value for r in pool.imap([text, text])])
    assert answers == [["a", "a"]] * 8


def test_close_during_imap_loses_no_outcome(server):
    """What was taken in is yielded with its outcome, and then the error is raised."""
    server.script("0", Reply(fault="stall"))
    pool = ChatPool(2, base_url=server.url)
    results = []
    threading.Timer(0.2, pool.close).start()
    with pytest.raises(PoolClosedError):
        results.extend(iter_all(pool.imap(str(number) for number in range(1000)), results))
    assert [result.index for result in results] == list(range(len(results)))
    assert len(results) >= 8


def iter_all(iterator, results):
    for result in iterator:
        results.append(result)
    return []


def test_dropped_iterator_is_collected_by_any_thread(server):
    """An iterator in a cycle is dropped by the garbage collector, within a callback in a worker, and frees its slots."""
    server.script("failing", Reply(fault="stall"))
    with ChatPool(2, base_url=server.url) as pool:
        box = {"results": pool.imap(["first", "failing", "failing", "never"] * 10)}
        box["box"] = box
        next(box["results"])
        del box
        assert pool.submit("x").done() is False
        gc.collect()
        assert pool.map(["well"] * 4, deadline=5) == ["well"] * 4
    assert server.count("never") == 0
