"""Real gunicorn and Celery processes, and what can be seen of them from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import requests

from tests.conftest import wait_until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
HERE = Path(__file__).parent


def program(name):
    """The command of the Python that runs the tests."""
    return str(Path(sys.executable).with_name(name))


def environment(chat_server, *paths, **more):
    """What a server process sees: the fake chat API, the examples, and no bytecode left in them."""
    found = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    found.update(OPENAI_BASE_URL=chat_server.url, PYTHONPATH=os.pathsep.join(map(str, paths)), PYTHONUNBUFFERED="1")
    return {**found, "PYTHONDONTWRITEBYTECODE": "1", **more}


class Process:
    """A server process with its log. Ended, together with its children, when the test ends."""

    def __init__(self, words, log, **options):
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True, **options)

    @property
    def told(self):
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern, seconds=60):
        """Wait until the log says this; return the match."""
        assert wait_until(lambda: re.search(pattern, self.told) or self.process.poll() is not None, seconds), self.told
        found = re.search(pattern, self.told)
        assert found, self.told
        return found

    def children(self):
        """The worker processes."""
        told = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in told.read_text().split()] if told.exists() else []

    def end(self, by=signal.SIGTERM, seconds=30):
        """Ask it to end; return its exit code."""
        self.process.send_signal(by)
        return self.process.wait(seconds)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Site(Process):
    """gunicorn with one of the example projects."""

    def __init__(self, kind, words, folder, chat_server, **more):
        paths = [HERE, EXAMPLES / f"{kind}_view"]
        env = environment(chat_server, *paths, ASK_DATABASE=str(folder / "db.sqlite3"), **more)
        if kind == "django":
            manage = [sys.executable, str(EXAMPLES / "django_view" / "manage.py"), "migrate", "--verbosity", "0"]
            subprocess.run(manage, env=env, check=True, timeout=60)
        bind = [
            "--bind",
            "127.0.0.1:0",
            "--graceful-timeout",
            "20",
            "--backlog",
            "256",
            "--worker-tmp-dir",
            str(folder),
        ]
        super().__init__([program("gunicorn"), *bind, *words], folder / "gunicorn.log", env=env, cwd=folder)
        self.url = self.wait_for(r"Listening at: (http://\S+)")[1]
        assert wait_until(lambda: "Booting worker" in self.told, 30)

    def ask(self, *prompts, seconds=60):
        """Open the page for these prompts."""
        reply = requests.get(f"{self.url}/?{urlencode([('q', prompt) for prompt in prompts])}", timeout=seconds)
        reply.raise_for_status()
        return reply.text


def answers_in(page):
    """The prompts and what stands below each."""
    return re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", page, re.DOTALL)


def threads(pid):
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def open_files(pid, what):
    """How many of a process's file descriptors are sockets, or a file of this name."""
    names = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            names.append(os.readlink(link))
        except FileNotFoundError:  # closed meanwhile
            continue
    return sum(what in name for name in names)
