"""Syncing the journal to the disk: a slow disk delays no call, no deadline and no Ctrl-C."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from chatpool import JournalError
from chatpool.journal import Journal
from chatpool.testing import Reply
from tests.conftest import wait_until

PROMPTS = [f"p{number}" for number in range(20)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


class Disk:
    """Replaces ``os.fsync``. While ``is_stuck``, a sync does not return; then it raises ``error``, if there is one."""

    def __init__(self):
        self.begun = self.done = 0
        self.error = None
        self._may_return = threading.Event()
        self._may_return.set()

    @property
    def is_stuck(self):
        return not self._may_return.is_set()

    def stick(self):
        self._may_return.clear()

    def release(self):
        self._may_return.set()

    def fsync(self, fd):
        self.begun += 1
        self._may_return.wait(60)
        if self.error is not None:
            raise self.error
        self.done += 1


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    yield disk
    disk.release()


@pytest.fixture
def eager(monkeypatch):
    """Syncs follow each other without a pause."""
    monkeypatch.setattr("chatpool._files.sync._SYNC_EVERY", 0.0)


def line_count(path):
    return path.read_bytes().count(b"\n")


def test_synced_once_a_second_and_at_the_end(pool, path, disk):
    """Not once a line, which would take longer than the call. A short map has one sync, after its last line."""
    pool.map(PROMPTS, journal=path)
    assert disk.done == 1


def test_synced_during_the_run(server, pool, path, disk, eager):
    """While a later call still hangs."""
    server.script("slow", Reply(fault="stall"))
    results = pool.imap(["a", "slow"], journal=path)
    next(results)
    assert wait_until(lambda: disk.done)
    results.close()


def test_slow_sync_does_not_delay_results(pool, path, disk, eager):
    """All results arrive during one sync, which is not followed by another one before its end."""
    disk.stick()
    results = pool.imap_unordered(PROMPTS, journal=path)
    assert sorted(next(results).value for _ in PROMPTS) == sorted(PROMPTS)
    assert line_count(path) == len(PROMPTS)
    assert disk.begun <= 1
    disk.release()
    assert list(results) == []
    assert disk.done == disk.begun


def test_slow_sync_does_not_delay_a_deadline(pool, path, disk):
    """It continues in the background, and another map can use the journal meanwhile."""
    disk.stick()
    for prompts in (["a"], ["a", "b"]):
        began = time.monotonic()
        assert pool.map(prompts, journal=path, deadline=0.5) == prompts
        assert time.monotonic() - began < 10
    assert disk.done == 0
    assert line_count(path) == 2
    disk.release()
    assert wait_until(lambda: disk.done == 2)


def test_map_without_a_deadline_returns_after_the_sync(pool, path, disk):
    disk.stick()
    returned = threading.Event()
    thread = threading.Thread(target=lambda: (pool.map(["a"], journal=path), returned.set()))
    thread.start()
    assert wait_until(lambda: disk.begun)
    assert not returned.wait(0.3)
    disk.release()
    thread.join(20)
    assert returned.is_set()


def test_slow_sync_does_not_delay_an_interrupt(pool, path, disk, eager):
    disk.stick()
    results = pool.imap(["a", "b"], journal=path)
    next(results)
    assert wait_until(lambda: disk.begun)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert disk.is_stuck


def test_interrupt_ends_the_wait_for_the_disk(pool, path, disk):
    """Ctrl-C after the last call, with all answers on the exception."""
    disk.stick()

    def interrupt():
        wait_until(lambda: disk.begun, 20)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        pool.map(["a"], journal=path)
    assert disk.is_stuck
    assert caught.value.answers == ["a"]


@pytest.mark.parametrize("at", ["the next line", "the end"])
def test_failed_sync_ends_the_map(server, pool, path, disk, caplog, at, monkeypatch):
    """With the answers on the exception, and a warning in the log."""
    monkeypatch.setattr("chatpool._files.sync._SYNC_EVERY", 0.0 if at == "the next line" else 60.0)
    disk.error = OSError(errno.EIO, "Input/output error")

    def reply(request):
        if request.prompt == "late" and at == "the next line":
            wait_until(lambda: caplog.records, 20)
        return Reply()

    server._reply = reply
    with pytest.raises(
        JournalError, match=r"answers\.jsonl cannot be synced to the disk: Input/output error"
    ) as caught:
        pool.map(["a", "late"], journal=path)
    assert caught.value.answers == ["a", None if at == "the next line" else "late"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [str(caught.value)]


def test_sync_that_fails_after_the_deadline_is_logged(pool, path, disk, caplog):
    """No thread waits for it any more, so it cannot be raised."""
    disk.stick()
    assert pool.map(["a"], journal=path, deadline=0.3) == ["a"]
    disk.error = OSError(errno.EIO, "Input/output error")
    disk.release()
    assert wait_until(lambda: "cannot be synced to the disk: Input/output error" in caplog.text)


def test_failed_sync_does_not_hide_an_interrupt(pool, path, disk):
    disk.error = OSError(errno.EIO, "Input/output error")
    results = pool.imap(["a", "b"], journal=path)
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)


def test_without_a_free_thread_the_journal_is_synced_at_the_end(pool, path, disk, monkeypatch):
    start = threading.Thread.start

    def start_others(thread):
        if thread.name == "chatpool-journal":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_others)
    assert pool.map(PROMPTS, journal=path) == PROMPTS
    assert disk.done == 1


def test_thread_ends_with_a_journal_that_is_not_closed(path):
    """The fixture no_thread_left_behind checks it."""
    with pytest.warns(ResourceWarning):
        Journal(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_child_forked_during_a_sync_does_not_keep_the_lock(pool, path, disk, eager):
    disk.stick()
    results = pool.imap(["a", "b"], journal=path)
    next(results)
    assert wait_until(lambda: disk.begun)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        results.close()
        signal.pause()
    try:
        disk.release()
        assert [result.value for result in results] == ["b"]
        Journal(path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_sync_does_not_delay_the_end_of_the_process(server, path):
    """A daemon thread runs it, and what was written is in the kernel's hands."""
    code = (
        "import os, sys, time; os.fsync = lambda fd: time.sleep(60); from chatpool import ChatPool\n"
        "print(ChatPool(base_url=sys.argv[1]).map(['a'], journal=sys.argv[2], deadline=1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, server.url, str(path)], capture_output=True, text=True, timeout=50
    )
    assert (done.stdout, done.stderr) == ("['a']\n", "")
    assert line_count(path) == 1
