"""The Flask and the Django example under each kind of gunicorn's workers."""

from __future__ import annotations

import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from chatpool.testing import FakeChatServer, Reply
from tests.conftest import wait_until
from tests.web.programs import PATIENCE, Site, is_alive, threads_and_files

pytest.importorskip("gunicorn", reason="needs gunicorn")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

# Threads or files that a process may gain after the warm-up, in which its share of the pool's 20 workers need not all
# have been used at once. Of 500 requests it serves 125 or more: a leak at every fifth would be told.
GROWTH = 20

KINDS = {
    "sync": (["--workers", "2"], {}),
    "gthread": (["--workers", "2", "--threads", "8"], {}),
    "preload": (["--workers", "4", "--preload"], {"USE_BEFORE_FORK": "1"}),
    "gevent": (["--workers", "1", "--worker-class", "gevent"], {}),
    "gevent-preload": (
        ["--workers", "1", "--worker-class", "gevent", "--preload"],
        {"PATCH_FIRST": "1"},
    ),
}
FRAMEWORKS = {"flask_view": "flask", "django_view": "django"}


# Seconds. In the warm-up, calls overlap enough for every process to be used, and each to come to its size.
DELAYS = {"slow": 0.5, "warm": 0.1}


def reply(request):
    """An echo; at once, after a while, or never."""
    if "hangs" in request.prompt:
        return Reply(fault="stall")
    return Reply(delay=next((seconds for word, seconds in DELAYS.items() if word in request.prompt), 0.0))


@pytest.fixture(scope="module")
def api():
    with FakeChatServer(reply=reply) as server:
        yield server


@pytest.fixture
def start(api, tmp_path):
    """Start a site; it ends with the test in any case."""
    sites = []

    def start(example, kind, deadline=PATIENCE):
        pytest.importorskip(FRAMEWORKS[example], reason=f"needs {FRAMEWORKS[example]}")
        options, switches = KINDS[kind]
        if "gevent" in kind:
            pytest.importorskip("gevent", reason="needs gevent")
        sites.append(Site(example, tmp_path, api.url, *options, DEADLINE=str(deadline), **switches))
        return sites[-1]

    yield start
    for site in sites:
        site.kill()


# Each framework with each kind; the slower tests leave out those that tell nothing new.
EACH = [(example, kind) for example in FRAMEWORKS for kind in KINDS]
MOST = [case for case in EACH if case not in [("django_view", "preload"), ("django_view", "gevent-preload")]]


@pytest.mark.parametrize(("example", "kind"), EACH)
def test_answers_stay_with_their_requests_and_nothing_leaks(start, example, kind):
    """20 requests at a time get their own answers; after 500 a worker has no more threads and files than after 50."""
    site = start(example, kind)
    assert site.count_right("warm", 50) == 50, site.told
    workers = site.workers()
    before = {pid: threads_and_files(pid) for pid in workers}
    assert site.count_right("more", 500) == 500, site.told
    assert site.workers() == workers, "a worker died"
    for pid, counts in before.items():
        assert_settles(pid, counts)
    assert "Traceback" not in site.told


def assert_settles(pid, before):
    """A process comes to have no more threads and files than it had, but for ``GROWTH``."""
    assert wait_until(lambda: all(now <= then + GROWTH for now, then in zip(threads_and_files(pid), before))), (
        before,
        threads_and_files(pid),
    )


@pytest.mark.parametrize(("example", "kind"), MOST)
def test_the_deadline_gives_a_partial_page(start, example, kind):
    """Two of five prompts hang: the page has the other three, soon after the deadline of four seconds."""
    site = start(example, kind, deadline=4)
    began = time.monotonic()
    status, page = site.get("a", "hangs 1", "b", "hangs 2", "c")
    assert status == 200
    assert "answered 3 of 5; the rest did not come in time" in page
    assert 3.9 < time.monotonic() - began < 20
    assert site.is_right("d", "e"), "the next request is served as ever"
    assert "Traceback" not in site.told


@pytest.mark.parametrize(("example", "kind"), MOST)
def test_reload_and_end_lose_no_request(start, api, example, kind):
    """SIGHUP under load, then SIGTERM: every request in flight is answered, old workers go, the log is clean."""
    site = start(example, kind)
    old = site.workers()
    with ThreadPoolExecutor(8) as threads:
        pages = ask_slowly(site, api, threads, f"reload {site.port}", requests=8)
        site.process.send_signal(signal.SIGHUP)
        assert [page.result() for page in pages] == [True] * 8, site.told
        assert wait_until(lambda: not any(map(is_alive, old)), PATIENCE), site.told
        assert site.count_right("after", 10) == 10, site.told
        pages = ask_slowly(site, api, threads, f"end {site.port}", requests=1)
        began = time.monotonic()
        assert site.end() == 0, site.told
        assert pages[0].result(), site.told
    assert time.monotonic() - began < 20
    assert "Traceback" not in site.told


def ask_slowly(site, api, threads, name, requests):
    """Send requests whose answers take half a second; return once the first has reached the API."""
    pages = [threads.submit(site.is_right, f"slow {name} {n}", f"{name} {n}") for n in range(requests)]
    assert wait_until(lambda: any(f"slow {name}" in request.prompt for request in api.requests), PATIENCE)
    return pages
