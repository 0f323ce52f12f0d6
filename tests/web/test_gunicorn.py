"""The Flask and the Django example under each of gunicorn's worker classes."""

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

# Threads or files that a process may gain after the warm-up, which may not have used all 20 workers of its pool at once.
# Each process serves 125 of 500 requests or more, so a leak in every fifth request is detected.
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


# Seconds. In the warm-up, calls overlap, so that every process is used and starts its threads.
DELAYS = {"slow": 0.5, "warm": 0.1}


def reply(request):
    """Echo the prompt: at once, after a delay, or never."""
    if "hangs" in request.prompt:
        return Reply(fault="stall")
    return Reply(delay=next((seconds for word, seconds in DELAYS.items() if word in request.prompt), 0.0))


@pytest.fixture(scope="module")
def api():
    with FakeChatServer(reply=reply) as server:
        yield server


@pytest.fixture
def start(api, tmp_path):
    """Start sites; they end with the test."""
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


# Each framework with each worker class; the slower tests leave out redundant cases.
EACH = [(example, kind) for example in FRAMEWORKS for kind in KINDS]
MOST = [case for case in EACH if case not in [("django_view", "preload"), ("django_view", "gevent-preload")]]


@pytest.mark.parametrize(("example", "kind"), EACH)
def test_each_request_gets_its_own_answers_and_nothing_leaks(start, example, kind):
    """20 at a time; after 500 requests a worker has no more threads and files than after 50."""
    site = start(example, kind)
    assert site.count_right("warm", 50) == 50, site.output
    workers = site.workers()
    before = {pid: threads_and_files(pid) for pid in workers}
    assert site.count_right("more", 500) == 500, site.output
    assert site.workers() == workers, "a worker died"
    for pid, counts in before.items():
        assert_settles(pid, counts)
    assert "Traceback" not in site.output


def assert_settles(pid, before):
    """Assert that a process soon has at most ``GROWTH`` more threads and files than before."""
    assert wait_until(lambda: all(now <= then + GROWTH for now, then in zip(threads_and_files(pid), before))), (
        before,
        threads_and_files(pid),
    )


@pytest.mark.parametrize(("example", "kind"), MOST)
def test_deadline_gives_a_partial_page(start, example, kind):
    """Two of five prompts hang: soon after the deadline of four seconds, the page has the other three."""
    site = start(example, kind, deadline=4)
    began = time.monotonic()
    status, page = site.get("a", "hangs 1", "b", "hangs 2", "c")
    assert status == 200
    assert "answered 3 of 5; the rest did not come in time" in page
    assert 3.9 < time.monotonic() - began < 20
    assert site.is_right("d", "e"), "the next request is served as usual"
    assert "Traceback" not in site.output


@pytest.mark.parametrize(("example", "kind"), MOST)
def test_reload_and_shutdown_lose_no_request(start, api, example, kind):
    """SIGHUP under load, then SIGTERM: requests in flight are answered, old workers end, and the log has no errors."""
    site = start(example, kind)
    old = site.workers()
    with ThreadPoolExecutor(8) as threads:
        pages = ask_slowly(site, api, threads, f"reload {site.port}", requests=8)
        site.process.send_signal(signal.SIGHUP)
        assert [page.result() for page in pages] == [True] * 8, site.output
        assert wait_until(lambda: not any(map(is_alive, old)), PATIENCE), site.output
        assert site.count_right("after", 10) == 10, site.output
        pages = ask_slowly(site, api, threads, f"end {site.port}", requests=1)
        began = time.monotonic()
        assert site.end() == 0, site.output
        assert pages[0].result(), site.output
    assert time.monotonic() - began < 20
    assert "Traceback" not in site.output


def ask_slowly(site, api, threads, name, requests):
    """Send requests with answers that take half a second; return once the first one has reached the API."""
    pages = [threads.submit(site.is_right, f"slow {name} {n}", f"{name} {n}") for n in range(requests)]
    assert wait_until(lambda: any(f"slow {name}" in request.prompt for request in api.requests), PATIENCE)
    return pages
