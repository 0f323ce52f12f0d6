"""Tracers, mocks, logs and error trackers see every attempt, and none of them sees the key."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chatpool import ChatPool
from chatpool._http.fast_path import is_enabled
from chatpool.testing import Reply

KEY = "sk-secret-of-ours"
PRIVATE = "a private prompt"

WAYS = {
    "map": lambda pool, prompts: pool.map(prompts),
    "imap": lambda pool, prompts: [result.value for result in pool.imap(prompts)],
    "imap_unordered": lambda pool, prompts: [result.value for result in pool.imap_unordered(prompts)],
    "submit": lambda pool, prompts: [future.result() for future in [pool.submit(prompt) for prompt in prompts]],
    "ask": lambda pool, prompts: [pool.ask(prompt) for prompt in prompts],
}

# Prompts, and the statuses of their attempts; None: no reply.
OUTCOMES = {"well": [200], "flaky": [500, 200], "reset": [None, 200], "rejected": [400]}


def play(server):
    server.script("flaky", Reply(status=500), Reply())
    server.script("reset", Reply(fault="reset"), Reply())
    server.script("rejected", Reply(status=400))


def ordered(statuses):
    return sorted(statuses, key=lambda status: status or 0)


ALL_STATUSES = ordered(status for statuses in OUTCOMES.values() for status in statuses)


# OpenTelemetry.


@pytest.fixture
def tracer():
    """A tracer provider that records its spans."""
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.calls = lambda: [span for span in exporter.get_finished_spans() if span.kind.name == "CLIENT"]
    return provider


@pytest.fixture
def instrument(tracer):
    """Instrument a library, given its name, until the end of the test."""
    names = {"requests": "RequestsInstrumentor", "urllib3": "URLLib3Instrumentor"}
    active = []

    def instrument(library):
        module = pytest.importorskip(f"opentelemetry.instrumentation.{library}")
        active.append(getattr(module, names[library])())
        active[-1].instrument(tracer_provider=tracer)

    yield instrument
    for instrumentor in active:
        instrumentor.uninstrument()


@pytest.mark.parametrize("libraries", [["requests"], ["urllib3"], ["requests", "urllib3"]], ids="+".join)
def test_opentelemetry_sees_each_attempt_once(server, make_pool, tracer, instrument, libraries):
    """One span for each, with its status, whether one of the libraries is instrumented or both are."""
    for library in libraries:
        instrument(library)
    play(server)
    make_pool(api_key=KEY).map(list(OUTCOMES))
    spans = tracer.calls()
    assert ordered(span.attributes.get("http.status_code") for span in spans) == ALL_STATUSES
    assert {span.attributes["http.url"] for span in spans} == {f"{server.url}/chat/completions"}
    assert len(spans) == len(server.requests)
    failed = [span for span in spans if not span.status.is_unset]
    assert ordered(span.attributes.get("http.status_code") for span in failed) == [None, 400, 500]
    assert KEY not in str([span.to_json() for span in spans])


@pytest.mark.parametrize("library", ["requests", "urllib3"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_callers_span_is_the_parent_of_the_calls(server, pool, tracer, instrument, library, way):
    """Although other threads make them; the requests carry the trace to the server."""
    instrument(library)
    server.script("flaky", Reply(status=500), Reply())
    for _ in range(2):  # the second time with existing threads
        with tracer.get_tracer("test").start_as_current_span("caller") as caller:
            way(pool, ["flaky", "b", "c"])
        ours = [span for span in tracer.calls() if span.parent.span_id == caller.context.span_id]
        server.script("flaky", Reply(status=500), Reply())
        assert len(ours) == 4
        sent = [tuple(request.headers["traceparent"].split("-")[1:3]) for request in server.requests[-4:]]
        assert sorted(sent) == sorted((f"{s.context.trace_id:032x}", f"{s.context.span_id:016x}") for s in ours)


def test_two_callers_of_one_pool_have_separate_traces(pool, tracer, instrument):
    instrument("requests")
    callers = [tracer.get_tracer("test").start_span(name) for name in "ab"]
    from opentelemetry.trace import use_span

    iterators = []
    for caller in callers:
        with use_span(caller):
            iterators.append(pool.imap(["x"] * 10))
    for _ in zip(*iterators):  # alternately, outside both spans
        pass
    parents = [span.parent.span_id for span in tracer.calls()]
    assert [parents.count(caller.context.span_id) for caller in callers] == [10, 10]


@pytest.mark.skipif(not is_enabled(), reason="with urllib3 1.26 there is no fast path")
def test_only_urllib3s_instrumentation_disables_the_fast_path(instrument):
    """It would not see calls that bypass urlopen; the one of requests is above the fast path."""
    instrument("requests")
    assert is_enabled()
    instrument("urllib3")
    assert not is_enabled()


# Mocks. For responses see tests/protocol/test_conversation.py.


def test_requests_mock_sees_each_attempt():
    requests_mock = pytest.importorskip("requests_mock")
    url = "https://mocked.example/v1"
    good = {"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
    with requests_mock.Mocker() as mock, ChatPool(2, base_url=url, api_key=KEY, max_wait=0.01) as pool:
        mock.post(f"{url}/chat/completions", [{"status_code": 503}, {"text": "<html>"}, {"json": good}])
        answers = pool.map(["a"])
        assert answers == ["hi"]
        assert answers.results[0].attempts == mock.call_count == 3
        assert mock.last_request.json()["messages"] == [{"role": "user", "content": "a"}]
        assert pool.map(["a"] * 10) == ["hi"] * 10
        assert mock.call_count == 13


# Logs.


def test_logs_contain_no_prompt(server, make_pool, caplog):
    """A retry is logged at INFO, a failure at WARNING; no library logs the prompt, the answer or the key."""
    caplog.set_level(logging.DEBUG)
    server.script(PRIVATE, Reply(status=500), Reply(fault="reset"), Reply(status=400))
    make_pool(api_key=KEY).map([PRIVATE, "a public prompt"])
    ours = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "chatpool"]
    assert [level for level, _ in ours] == ["INFO", "INFO", "WARNING"]
    assert ours[0][1].startswith("prompt 0: attempt 1 failed (InternalServerError 500")
    assert ours[1][1].startswith("prompt 0: attempt 2 failed (APIConnectionError")
    assert ours[2][1].startswith("prompt 0 failed: BadRequestError 400")
    for word in (PRIVATE, "public", KEY):
        assert word not in caplog.text


def test_without_a_handler_nothing_is_printed(server, make_pool, capfd):
    """Without chatpool's NullHandler, logging's last resort would print warnings to stderr."""
    server.script("a", Reply(status=400))
    code = f"from chatpool import ChatPool; ChatPool(base_url={server.url!r}).map(['a'])"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert capfd.readouterr() == ("", "")


# Instrumentation that comes before the import of chatpool, or cannot be removed: in separate processes.

_SENTRY = """
import json, sys
import sentry_sdk
from sentry_sdk.transport import Transport

class Kept(Transport):
    items = []

    def capture_envelope(self, envelope):
        self.items += [item.payload.json for item in envelope.items if item.payload.json]

def watch():
    sentry_sdk.init("https://public@sentry.example/1", transport=Kept, traces_sample_rate=1.0)

watch() if sys.argv[2] == "before" else None
from chatpool import ChatPool
watch() if sys.argv[2] == "after" else None

with ChatPool(2, base_url=sys.argv[1], max_wait=0.01) as pool:
    with sentry_sdk.start_transaction(name="a view"):
        answers = pool.map(sys.argv[3:])
        sentry_sdk.capture_message("breadcrumbs")
    for fail in (answers.raise_for_failures, lambda: pool.ask("rejected"), lambda: pool.map(["well"], parse=int)):
        try:
            fail()
        except Exception as error:
            sentry_sdk.capture_exception(error)
sentry_sdk.flush()
json.dump(Kept.items, sys.stdout)
"""


@pytest.mark.parametrize("order", ["before", "after"])
def test_sentry_sees_each_attempt(server, order):
    """A breadcrumb and a span for each, the span in the caller's transaction, and a breadcrumb for each failure."""
    pytest.importorskip("sentry_sdk")
    play(server)
    items = run(_SENTRY, server.url, order, *OUTCOMES)
    attempts = server.requests[: len(ALL_STATUSES)]
    (transaction,) = [item for item in items if item.get("type") == "transaction"]
    (message,) = [item for item in items if item.get("message") == "breadcrumbs"]
    spans = transaction["spans"]
    assert ordered(span["data"].get("http.response.status_code") for span in spans) == ALL_STATUSES
    assert {span["op"] for span in spans} == {"http.client"}
    assert {span["parent_span_id"] for span in spans} == {transaction["contexts"]["trace"]["span_id"]}
    crumbs = message["breadcrumbs"]["values"]
    calls = [crumb["data"].get("http.response.status_code") for crumb in crumbs if crumb["category"] == "httplib"]
    assert ordered(calls) == ALL_STATUSES
    assert [crumb["level"] for crumb in crumbs if crumb["category"] == "chatpool"].count("warning") == 1
    trace = transaction["contexts"]["trace"]["trace_id"]
    assert {request.headers["sentry-trace"].split("-")[0] for request in attempts} == {trace}


def test_sentry_events_contain_no_key(server, monkeypatch):
    """Although they contain the local variables of every frame."""
    pytest.importorskip("sentry_sdk")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    play(server)
    items = run(_SENTRY, server.url, "before", *OUTCOMES)
    kinds = [item["exception"]["values"][-1]["type"] for item in items if "exception" in item]
    assert kinds == [
        "BadRequestError",
        "BadRequestError",
    ]  # an answer that int() rejects is a failure, not an exception
    assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in server.requests)
    assert KEY not in json.dumps(items)


_OPENTELEMETRY = """
import importlib, json, sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

url, order, libraries = sys.argv[1:4]
spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))

def watch():
    for library in libraries.split("+"):
        module = importlib.import_module(f"opentelemetry.instrumentation.{library}")
        name = {"requests": "RequestsInstrumentor", "urllib3": "URLLib3Instrumentor"}[library]
        getattr(module, name)().instrument(tracer_provider=provider)

watch() if order == "before" else None
from chatpool import ChatPool
if order == "after the first calls":
    pool = ChatPool(2, base_url=url, max_wait=0.01)
    pool.map(["unseen"] * 10)
    watch()
else:
    watch() if order == "after" else None
    pool = ChatPool(2, base_url=url, max_wait=0.01)
with provider.get_tracer("test").start_as_current_span("caller"):
    pool.map(sys.argv[4:])
calls = [span for span in spans.get_finished_spans() if span.kind.name == "CLIENT"]
json.dump([[span.attributes.get("http.status_code"), span.parent is not None] for span in calls], sys.stdout)
"""


@pytest.mark.parametrize("order", ["before", "after", "after the first calls"])
@pytest.mark.parametrize("libraries", ["requests", "urllib3", "requests+urllib3"])
def test_opentelemetry_may_be_set_up_at_any_time(server, libraries, order):
    """Before all imports, as opentelemetry-instrument does; by the program, after them; while a pool is in use."""
    pytest.importorskip("opentelemetry.sdk")
    for library in libraries.split("+"):
        pytest.importorskip(f"opentelemetry.instrumentation.{library}")
    play(server)
    spans = run(_OPENTELEMETRY, server.url, order, libraries, *OUTCOMES)
    assert ordered(status for status, _ in spans) == ALL_STATUSES
    assert all(has_parent for _, has_parent in spans)


PAGE = (Path(__file__).parents[2] / "docs" / "logging.md").read_text(encoding="utf-8")
ALONE = re.findall(
    r"```python alone\n(.*?)```", PAGE, flags=re.DOTALL
)  # others are run by tests/documentation/test_examples.py


@pytest.mark.parametrize(
    ("needs", "header"), [("opentelemetry.instrumentation.requests", "traceparent"), ("sentry_sdk", "user-agent")]
)
def test_snippet_that_changes_its_process_runs(server, monkeypatch, needs, header):
    """OpenTelemetry's sends the trace to the server; Sentry's does not, as it says."""
    pytest.importorskip(needs)
    (code,) = [code for code in ALONE if needs in code]
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("SENTRY_DSN", "http://public@127.0.0.1:1/1")  # no server listens there
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "river in Peru" in done.stdout or '"http.status_code": 200' in done.stdout
    for request in server.requests:
        assert header in request.headers
        assert "sentry-trace" not in request.headers
    assert server.requests


def run(code, *arguments):
    """Run a script in a separate process; return the JSON that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
