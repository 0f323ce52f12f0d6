"""The Django and the Flask example under real gunicorn, with each kind of worker."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from chatpool.testing import Reply
from tests.conftest import wait_until
from tests.web.servers import Site, answers_in, open_files, threads

pytest.importorskip("gunicorn", reason="needs gunicorn: pip install 'chatpool[web]'")

APPS = {"django": "ask.wsgi", "flask": "app:app"}
WORKERS = {
    "sync": ["--workers", "2"],
    "gthread": ["--workers", "2", "--worker-class", "gthread", "--threads", "8"],
    "preload": ["--workers", "4", "--preload"],
    "gevent": ["--workers", "2", "--worker-class", "gevent"],
}
KINDS = [("django", how) for how in WORKERS] + [("flask", how) for how in WORKERS]


@pytest.fixture
def start(server, tmp_path):
    """Start a site on gunicorn; with --preload, its pool was used before the fork."""
    sites = []

    def start(kind, how, **environment):
        pytest.importorskip(kind, reason=f"needs {kind}: pip install 'chatpool[web]'")
        if how == "gevent":
            pytest.importorskip("gevent", reason="needs gevent: pip install 'chatpool[web]'")
        app = "warmed" if how == "preload" else APPS[kind]
        sites.append(Site(kind, [*WORKERS[how], app], tmp_path, server, WARM=kind, **environment))
        return sites[-1]

    yield start
    for site in sites:
        site.kill()


def ask_at_once(site, requests, at_once=20):
    """Make so many requests, so many at a time, each with prompts of its own; return those that had others' answers."""

    def ask(number):
        prompts = [f"r{number} p{part}" for part in range(3)]
        return answers_in(site.ask(*prompts)) == [(prompt, prompt) for prompt in prompts]

    with ThreadPoolExecutor(at_once) as users:
        right = list(users.map(ask, range(requests)))
    return [number for number, is_right in enumerate(right) if not is_right]


@pytest.mark.parametrize(("kind", "how"), KINDS)
def test_answers_never_cross_and_nothing_leaks(start, kind, how):
    """Five hundred requests, twenty at once: each page has its own answers, and the workers are as they were."""
    site = start(kind, how)
    assert ask_at_once(site, 60) == []
    before = {pid: (threads(pid), open_files(pid, "socket:")) for pid in site.children()}
    assert ask_at_once(site, 500) == []
    assert site.children() == list(before), "a worker was replaced"
    for pid, (had_threads, had_sockets) in before.items():
        # max_workers and a spare, the watch, gunicorn's own
        assert threads(pid) <= max(had_threads, 20 + 2 + 1 + 8 + 4)
        assert open_files(pid, "socket:") <= max(had_sockets, 20) + 4
        assert wait_until(lambda pid=pid: open_files(pid, "db.sqlite3") == 0)
    assert "Traceback" not in site.told


@pytest.mark.parametrize(("kind", "how"), [("django", "gthread"), ("flask", "sync"), ("flask", "gevent")])
def test_page_is_there_by_the_deadline(start, server, kind, how):
    """With the answers that there are by then, and for each of the others the reason."""
    server.script("hangs", Reply(fault="stall"))
    site = start(kind, how, ASK_DEADLINE="1")
    began = time.monotonic()
    page = site.ask("a", "hangs", "b")
    assert time.monotonic() - began < 10
    assert "Answered 2 of 3" in page
    found = dict(answers_in(page))
    assert (found["a"], found["b"]) == ("a", "b")
    assert "the deadline passed" in found["hangs"]


@pytest.mark.parametrize(("kind", "how"), [("django", "gthread"), ("flask", "preload"), ("flask", "gevent")])
def test_reload_is_clean(start, server, kind, how):
    """SIGHUP in mid-traffic: no request fails, the old workers are gone, the new ones answer; SIGTERM ends it all."""
    server._latency = 0.3
    site = start(kind, how)
    old = set(site.children())
    with ThreadPoolExecutor(1) as user:
        under_way = user.submit(ask_at_once, site, 40, 4)
        assert wait_until(lambda: len(server.requests) > 12, 30)
        site.process.send_signal(signal.SIGHUP)
        assert under_way.result(60) == []
    assert wait_until(lambda: not old & set(site.children()), 30)
    assert ask_at_once(site, 8) == []
    assert site.end() == 0
    assert "Traceback" not in site.told
    assert "WORKER TIMEOUT" not in site.told
