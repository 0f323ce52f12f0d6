"""The Celery example under a prefork worker of four processes.

The broker and the result backend are Redis, if it is installed, and a folder, which needs no installation. Kombu's
in-memory broker does not work across processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from chatpool.testing import FakeChatServer, Reply
from tests.conftest import wait_until
from tests.web.programs import EXAMPLES, HERE, PATIENCE, Program, is_alive, threads_and_files

pytest.importorskip("celery", reason="needs celery")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

GROWTH = 20  # as for gunicorn


@pytest.fixture
def api():
    with FakeChatServer(reply=lambda request: Reply(delay=1.0 if "slow" in request.prompt else 0.0)) as server:
        yield server


@pytest.fixture(params=["redis", "folder"])
def broker(request, tmp_path):
    """The settings of a broker and a result backend."""
    if request.param == "folder":
        for name in ("queue", "control", "results"):
            (tmp_path / name).mkdir()
        yield {"BROKER_URL": "filesystem://", "RESULT_URL": f"file://{tmp_path}/results", "FOLDER": str(tmp_path)}
        return
    pytest.importorskip("redis", reason="needs redis")
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server")
    path = tmp_path / "redis"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as redis:
        assert wait_until(path.exists, PATIENCE)
        yield {"BROKER_URL": f"redis+socket://{path}", "RESULT_URL": f"redis+socket://{path}"}
        redis.terminate()


@pytest.fixture
def environment(api, broker):
    """The environment of the worker and of its clients."""
    return {
        **broker,
        "OPENAI_BASE_URL": api.url,
        "OPENAI_API_KEY": "sk-test",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(EXAMPLES / "celery_task")]),
    }


@pytest.fixture(params=[{}, {"USE_BEFORE_FORK": "1"}], ids=["unused", "used-before-the-fork"])
def worker(request, environment, tmp_path):
    arguments = ["celery", "-A", "celery_site", "worker", "-P", "prefork", "-c", "4", "--loglevel", "INFO"]
    worker = Program(arguments, tmp_path, tmp_path / "log", {**environment, **request.param})
    yield worker
    worker.kill()


def send(environment, tasks):
    """Start a process that sends tasks, each a list of prompts, and waits for their results."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "celery_site.py")],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.stdin.write(json.dumps(tasks))
    process.stdin.close()
    return process


def receive(process):
    """Return the results of the tasks."""
    with process:
        return json.load(process.stdout)


def tasks_of(name, count):
    return [[f"{name} {number}.{k}" for k in range(3)] for number in range(count)]


def test_each_task_gets_its_own_answers_and_nothing_leaks(worker, environment):
    """Four processes share the tasks; 200 tasks later each has at most ``GROWTH`` more threads and files."""
    warm, more = tasks_of("warm", 50), tasks_of("more", 200)
    assert receive(send(environment, warm)) == warm, worker.output
    before = {pid: threads_and_files(pid) for pid in worker.workers()}
    assert len(before) == 4
    assert receive(send(environment, more)) == more, worker.output
    after = {pid: threads_and_files(pid) for pid in before}
    assert all(now <= then + GROWTH for pid in before for now, then in zip(after[pid], before[pid])), (before, after)
    assert "Traceback" not in worker.output


def test_warm_shutdown_finishes_running_tasks(worker, environment, api):
    """SIGTERM: the running task is answered, the processes end within seconds, and the log has no errors."""
    slow = [["slow one", "slow two"]]
    sender = send(environment, slow)
    assert wait_until(lambda: any("slow" in request.prompt for request in api.requests), PATIENCE), worker.output
    children = worker.workers()
    began = time.monotonic()
    assert worker.end() == 0, worker.output
    assert time.monotonic() - began < 20
    assert receive(sender) == slow, worker.output
    assert not any(map(is_alive, children))
    assert "Traceback" not in worker.output
