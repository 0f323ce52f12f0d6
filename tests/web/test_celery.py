"""The Celery example in a real prefork worker."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.web.servers import EXAMPLES, HERE, Process, environment, open_files, program, threads

pytest.importorskip("celery", reason="needs Celery: pip install 'chatpool[web]'")

CALLER = """
import sys
from on_files import answer
sent = [(n, answer.delay([f"t{n} p{part}" for part in range(4)])) for n in range(int(sys.argv[1]))]
wrong = [n for n, result in sent if result.get(timeout=120, interval=0.05) != [f"t{n} p{part}" for part in range(4)]]
print("WRONG", wrong)
"""


@pytest.fixture
def folder(tmp_path):
    for name in ("queue", "results"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.fixture
def start(server, folder):
    workers = []

    def start(**more):
        env = environment(server, HERE, EXAMPLES / "celery_task", CELERY_FOLDER=str(folder), **more)
        words = [program("celery"), "--app", "on_files", "worker", "--pool", "prefork", "--concurrency", "4"]
        words += ["--loglevel", "INFO", "--without-gossip", "--without-mingle"]
        workers.append(Process(words, folder / "celery.log", env=env, cwd=folder))
        workers[-1].wait_for(r"ready\.")
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


def call(server, folder, tasks):
    """Have so many tasks done; return what a caller in a process of its own says of their answers."""
    env = environment(server, HERE, EXAMPLES / "celery_task", CELERY_FOLDER=str(folder))
    words = [sys.executable, "-c", CALLER, str(tasks)]
    done = subprocess.run(words, env=env, cwd=folder, capture_output=True, text=True, timeout=240)
    return done.stdout.strip() or done.stderr


@pytest.mark.parametrize("warm", [{}, {"WARM": "1"}], ids=["cold", "used before the fork"])
def test_tasks_get_their_own_answers(start, server, folder, warm):
    """Sixty tasks in four forked processes: no answer crosses, nothing leaks, and the end is clean."""
    worker = start(**warm)
    assert call(server, folder, 30) == "WRONG []"
    before = {pid: (threads(pid), open_files(pid, "socket:")) for pid in worker.children()}
    assert call(server, folder, 60) == "WRONG []"
    assert worker.children() == list(before)
    for pid, (had_threads, had_sockets) in before.items():
        assert threads(pid) <= max(had_threads, 4 + 2 + 4)
        assert open_files(pid, "socket:") <= max(had_sockets, 4) + 4
    assert worker.end() == 0
    assert "Traceback" not in worker.told
    assert not any(os.path.exists(f"/proc/{pid}") for pid in before)
