"""Starts the example programs, and inspects their processes."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

from tests.conftest import wait_until

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
HERE = Path(__file__).parent
PATIENCE = 60.0  # seconds, a backstop on slow machines


class Program:
    """A process with children, which writes to a log file."""

    def __init__(self, arguments: list[str], folder: Path, log: Path, environment: dict[str, str]) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # so that its children can be killed with it
            )

    @property
    def output(self) -> str:
        """The log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def workers(self) -> set[int]:
        """Return the ids of the forked processes."""
        pid = self.process.pid
        try:
            return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
        except FileNotFoundError:
            return set()

    def end(self) -> int:
        """End it gracefully; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Site(Program):
    """A web example under gunicorn."""

    def __init__(self, example: str, folder: Path, api: str, *options: str, **environment: str) -> None:
        self.port = free_port()
        module = {"flask_view": "app:app", "django_view": "wsgi:application"}[example]
        settings = {"OPENAI_BASE_URL": api, "OPENAI_API_KEY": "sk-test", "POOL": POOLS[example], "HOME": str(folder)}
        if example == "django_view":
            settings["DJANGO_DATABASE"] = str(folder / "db.sqlite3")
            self._migrate(settings)
        bind = ["--bind", f"127.0.0.1:{self.port}", "--config", str(HERE / "gunicorn_conf.py")]
        arguments = ["gunicorn", *bind, "--graceful-timeout", "60", "--timeout", "120", *options, module]
        super().__init__(arguments, EXAMPLES / example, folder / "log", {**settings, **environment})
        if not wait_until(self._is_up, PATIENCE):
            self.kill()
            raise AssertionError(self.output)

    def get(self, *questions: str) -> tuple[int, str]:
        """Request the page; return its status and text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", "/?" + urlencode([("q", question) for question in questions]))
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def is_right(self, *questions: str) -> bool:
        """Whether the page has the answer to each question, and no others. (The fake server echoes.)"""
        status, page = self.get(*questions)
        pairs = re.findall(r"<li>(.*?): (.*?)</li>", page)
        return status == 200 and pairs == [(question, question) for question in questions]

    def count_right(self, name: str, requests: int) -> int:
        """Send requests with different prompts, 20 at a time; return how many got their own answers."""
        with ThreadPoolExecutor(20) as threads:
            return sum(threads.map(lambda n: self.is_right(*[f"{name} {n}.{k}" for k in range(3)]), range(requests)))

    def _is_up(self) -> bool:
        try:
            return self.get()[0] == 200
        except OSError:
            return self.process.poll() is not None

    @staticmethod
    def _migrate(settings: dict[str, str]) -> None:
        command = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
        subprocess.run(command, cwd=EXAMPLES / "django_view", env={**os.environ, **settings}, check=True)
        with contextlib.closing(sqlite3.connect(settings["DJANGO_DATABASE"])) as database:
            database.execute("PRAGMA journal_mode=WAL")  # is stored in the file; writers wait less for the disk


POOLS = {"flask_view": "app", "django_view": "questions.views"}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def threads_and_files(pid: int) -> tuple[int, int]:
    """Return how many threads a process has, and how many open files and sockets."""
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
