"""The bar: on a terminal and in a notebook, nowhere else, and never at the cost of an answer."""

from __future__ import annotations

import io
import sys
import threading
import types
from contextlib import contextmanager, redirect_stderr

import pytest

from chatpool._scheduling.progress import Progress
from chatpool.testing import Reply


class Terminal(io.StringIO):
    """A stderr that says it is a terminal, and notes which threads write to it."""

    def __init__(self):
        super().__init__()
        self.writers = set()

    def isatty(self):
        return True

    def write(self, text):
        self.writers.add(threading.current_thread())
        return super().write(text)


@contextmanager
def terminal():
    """Put a terminal in stderr's place. No fixture: pytest puts its own stderr back before the test is called."""
    with redirect_stderr(Terminal()) as stderr:
        yield stderr


def test_bar_on_a_terminal_counts_prompts_failures_and_retries(server, pool):
    server.script("bad", Reply(status=400))
    server.script("flaky", Reply(status=500), Reply("b"))
    with terminal() as stderr:
        pool.map(["a", "bad", "flaky"])
    last = stderr.getvalue().split("\r")[-1]
    assert "3/3" in last
    assert "failed=1" in last
    assert "retries=1" in last


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_iterators_have_a_bar_too(pool, method):
    with terminal() as stderr:
        list(getattr(pool, method)(["a", "b"]))
        assert "2/2" in stderr.getvalue()
        list(getattr(pool, method)(iter(["a", "b"])))
        assert "2 prompts" in stderr.getvalue()


def test_only_the_callers_thread_draws(pool):
    with terminal() as stderr:
        pool.map(["a"] * 20)
    assert stderr.writers == {threading.current_thread()}


def test_silent_where_stderr_is_a_log(pool, capsys):
    pool.map(["a"])
    assert capsys.readouterr().err == ""


def test_progress_can_be_forced_on_and_off(make_pool, capsys):
    pool = make_pool(progress=True)
    with terminal() as stderr:
        make_pool(progress=False).map(["a"])
        pool.map(["a"], progress=False)
    assert stderr.getvalue() == ""
    pool.map(["a"])
    assert "1/1" in capsys.readouterr().err


def test_bar_in_a_notebook(pool, monkeypatch, capsys):
    """In a Jupyter kernel there is a bar though stderr is no terminal; without ipywidgets, a text bar."""
    monkeypatch.setattr("tqdm.notebook.IProgress", None)  # another test may have loaded it with ipywidgets
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    pool.map(["a"])
    assert "1/1" in capsys.readouterr().err


def test_no_monitor_thread_is_left(pool):
    """tqdm starts one even for a disabled bar, unless its interval is 0."""
    before = set(threading.enumerate())
    with terminal():
        pool.map(["a"])
    assert not [
        thread for thread in set(threading.enumerate()) - before if not thread.name.startswith(("chatpool", "fake"))
    ]


def test_broken_stderr_costs_no_answer(pool, monkeypatch):
    """A terminal that goes away takes the bar with it, and nothing else."""

    class Broken(Terminal):
        def write(self, text):
            raise OSError("gone")

    with redirect_stderr(Broken()):
        assert pool.map(["a", "b"]) == ["a", "b"]
    monkeypatch.setattr(sys, "stderr", None)
    assert pool.map(["a", "b"]) == ["a", "b"]


def test_bar_shows_failures_and_retries_only_if_there_are_some(server, make_pool):
    server.script("fails", Reply(status=400))
    server.script("again", Reply(status=500), Reply())
    with terminal() as stderr:
        make_pool().map(["a", "b"])
        assert "failed" not in stderr.getvalue()
        assert "retries" not in stderr.getvalue()
        make_pool().map(["a", "fails", "again"])
        assert "failed=1, retries=1" in stderr.getvalue()
        assert "prompts/s" in stderr.getvalue()


@pytest.mark.parametrize("way", ["map", "imap"])
def test_rate_of_the_bar_counts_no_resumed_answer(server, pool, tmp_path, monkeypatch, way):
    """tqdm's initial= is for them."""
    pool.map([str(number) for number in range(50)], journal=tmp_path / "j.jsonl")
    bars = []
    monkeypatch.setattr(Progress, "close", lambda bar: bars.append((bar._bar.initial, bar._bar.n)) or bar._bar.close())
    with terminal():
        list(getattr(pool, way)([str(number) for number in range(53)], journal=tmp_path / "j.jsonl"))
    assert bars == [(50, 53)]
