"""What the documentation says is run, and what it names is there."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys

import pytest

import chatpool
from chatpool import ChatPool
from tests.snippets import ROOT, run_tests, snippets

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
MOVING = sorted(path for path in (DOCS / "moving").glob("*.md") if path.name != "index.md")
SERVERS = DOCS / "servers.md"
RUN_HERE = [path for path in PAGES if path not in MOVING and path != SERVERS]
SECONDS = 60  # a backstop; nothing here takes more than a few


def skip_without(found):
    """Skip where a snippet's packages are not installed."""
    missing = sorted({name for snippet in found for name in snippet.missing()})
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def name_of(path):
    return str(path.relative_to(DOCS).with_suffix(""))


@pytest.mark.parametrize("path", RUN_HERE, ids=name_of)
def test_page(named_server, path, tmp_path, monkeypatch):
    """A page's snippets run from its top to its end, each with what those above it made; tests in them pass."""
    found = [snippet for snippet in snippets(path) if snippet.run_by is None]
    skip_without(found)
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "__page__"}
    for snippet in found:
        snippet.run(space)
    run_tests(space)
    for value in space.values():
        if isinstance(value, ChatPool):
            value.close()


def test_snippets_that_others_run_name_a_test_file():
    """Whoever takes a snippet out of these hands says where it is run."""
    named = {snippet.run_by for path in PAGES for snippet in snippets(path) if snippet.run_by}
    assert not [name for name in named if not (ROOT / name).exists()]


def test_guide_asks_what_it_says(named_server, tmp_path, monkeypatch):
    """Where the guide tells the number of requests, that many are sent."""
    monkeypatch.chdir(tmp_path)
    space = {}
    for snippet in snippets(DOCS / "guide.md"):
        before = len(named_server.requests)
        snippet.run(space)
        sent = named_server.requests[before:]
        if "journal=" in snippet.code and "questions" in snippet.code:
            assert len(sent) == 101
            assert len(space["answers"].resumed) == 100
        if "fields = " in snippet.code:
            assert sorted(request.body["temperature"] for request in sent) == [0, 0, 1]
            assert {request.body["model"] for request in sent} == {"gpt-4o-mini", "gpt-4o"}
        if "dedupe" in snippet.code:
            assert len(sent) == 2
            assert space["answers"] == ["red", "blue", "red", "red"]
    assert space["populations"] == [10_000_000]
    space["pool"].close()


# Moving in: before and after, each a script of its own.


@pytest.mark.parametrize("path", MOVING, ids=name_of)
def test_before_and_after_give_equal_answers(named_server, path, tmp_path):
    """Both ask the same of the server, and end with the same answers."""
    before, after = snippets(path)
    skip_without([before, after])
    asked, answers = [], []
    for snippet in (before, after):
        first = len(named_server.requests)
        answers.append(run_script(snippet.code, tmp_path))
        asked.append(sorted(map(question, named_server.requests[first:]), key=str))
    assert answers[0] == answers[1] == [f"Name a river in {country}." for country in ["Peru", "Chad", "Laos"]]
    assert asked[0] == asked[1]


def question(request):
    """What a request asks, without the fields that say no more than the default."""
    return [request.body.get(name) for name in ("messages", "model", "temperature")]


def run_script(code, folder):
    """Run a snippet as a script in a process of its own; return its ``answers``."""
    script = folder / "script.py"
    script.write_text(f"{code}\nimport json\nprint(json.dumps(answers))\n", encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# Settings for each server: what arrives.

CHAT = "/chat/completions"
ARRIVES = {
    "OpenAI": {"path": f"/v1{CHAT}", "authorization": "Bearer sk-test", "model": "gpt-4o-mini"},
    "Azure OpenAI": {"path": f"/openai/v1{CHAT}", "api-key": "KEY", "authorization": None, "model": "DEPLOYMENT"},
    "Azure OpenAI, dated": {
        "path": f"/openai/deployments/DEPLOYMENT{CHAT}?api-version=2024-10-21",
        "api-key": "KEY",
        "authorization": None,
    },
    "OpenRouter": {
        "path": f"/api/v1{CHAT}",
        "authorization": "Bearer sk-or-v1-KEY",
        "http-referer": "https://example.com",
        "x-openrouter-title": "My tool",
        "model": "openai/gpt-4o-mini",
    },
    "vLLM": {
        "path": f"/v1{CHAT}",
        "authorization": "Bearer token-abc",
        "model": "Qwen/Qwen2.5-3B-Instruct",
        "top_k": 50,
    },
    "Ollama": {"path": f"/v1{CHAT}", "authorization": None, "model": "llama3.2"},
    "llama.cpp": {"path": f"/v1{CHAT}", "authorization": "Bearer secret", "model": "any"},
}


def test_every_snippet_of_the_servers_is_looked_at():
    """None is added without saying what shall arrive."""
    assert len(snippets(SERVERS)) == len(ARRIVES)


@pytest.mark.parametrize("name", ARRIVES)
def test_settings_of_a_server(server, name, monkeypatch):
    """With the address swapped for the fake server's, the path, the headers and the fields are those that it wants."""
    code = snippets(SERVERS)[list(ARRIVES).index(name)].code
    if name == "OpenAI":
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        assert "base_url='https://api.openai.com/v1'" in repr(ChatPool())
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    space = {}
    exec(re.sub(r'base_url="https?://[^/"]+', f'base_url="http://127.0.0.1:{server.port}', code), space)
    with space["pool"] as pool:
        assert pool.ask("ping") == "ping"
    (request,) = server.requests
    seen = {"path": request.path, **request.body, **request.headers}
    assert {key: seen.get(key) for key in ARRIVES[name]} == ARRIVES[name]


# The testing kit: under pytest, and from other languages.


def test_testing_page_under_pytest(tmp_path):
    """Its snippets, as one file of tests, pass where nothing but the package brings the fixture."""
    found = snippets(DOCS / "testing.md")
    (tmp_path / "test_page.py").write_text("\n".join(snippet.code for snippet in found), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


@pytest.fixture
def fake_server_command():
    """The page's own ``chatpool fake-server``, on a free port and without its errors; gives its address."""
    (line,) = re.findall(r"^chatpool (fake-server .*)$", TESTING, flags=re.MULTILINE)
    words = line.replace("--port 8080", "--port 0").replace("--error-rate 0.05", "--error-rate 0").split()
    process = subprocess.Popen([sys.executable, "-m", "chatpool", *words], stdout=subprocess.PIPE, text=True)
    try:
        yield re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
    finally:
        process.kill()
        process.communicate()


TESTING = (DOCS / "testing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("language", "program"), [("sh", "curl"), ("js", "node")])
def test_other_languages_reach_the_fake_server(fake_server_command, language, program, tmp_path):
    """The page's curl and JavaScript get their answer."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    if program == "node" and subprocess.run(["node", "-e", "fetch"], capture_output=True).returncode:
        pytest.skip("this node is older than fetch")
    blocks = re.findall(rf"```{language}\n(.*?)```", TESTING, flags=re.DOTALL)
    (code,) = [block for block in blocks if "/chat/completions" in block]
    code = code.replace("http://127.0.0.1:8080", fake_server_command)
    script = tmp_path / ("call.mjs" if language == "js" else "call.sh")
    script.write_text(code, encoding="utf-8")
    command = ["node" if language == "js" else "sh", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert "ping" in done.stdout, done.stderr


# What the pages name.


def test_reference_names_everything_public():
    """Every name of ``chatpool.__all__`` and of ``chatpool.testing`` has its entry."""
    entries = set(re.findall(r"^\.\. (?:auto)?\w+:: (\S+)$", (DOCS / "reference.md").read_text(), flags=re.MULTILINE))
    kit = ["FakeChatServer", "Reply", "Raw", "End", "Request", "RateLimit", "chaos"]
    wanted = {f"chatpool.{name}" for name in chatpool.__all__} | {f"chatpool.testing.{name}" for name in kit}
    assert not wanted - entries


def test_promises_name_tests_and_errors_that_exist():
    """The table is derived from the tests; a test file or error that was renamed is renamed there."""
    table = [line for line in (DOCS / "faults.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [row for row in table if not row.startswith(("| what", "|--"))]
    assert len(rows) > 30
    assert not [row for row in rows if not re.search(r"`test_\w+\.py`", row)]
    files = set(re.findall(r"`(test_\w+\.py)`", "\n".join(rows)))
    assert not [name for name in files if not (ROOT / "tests" / name).exists()]
    errors = set(re.findall(r"`(\w+Error)`", "\n".join(rows))) - {"ValueError", "TypeError"}
    assert errors <= set(chatpool.__all__)


def test_every_module_has_its_line_for_contributors():
    """Where things live: one line for each module."""
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = [path.name for path in (ROOT / "chatpool").glob("*.py")]
    assert not [name for name in modules if f"`{name}`" not in told]


# The whole, built.


def test_builds_without_a_warning(tmp_path):
    """Sphinx finds every page, every link and every name; what the commands say of themselves is in it."""
    missing = [name for name in ("sphinx", "myst_parser", "furo") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5 * SECONDS, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    built = {str(path.relative_to(tmp_path).with_suffix("")) for path in tmp_path.rglob("*.html")}
    assert {name_of(path) for path in PAGES} <= built
    assert "--max-requests" in (tmp_path / "command.html").read_text(encoding="utf-8")
    assert "µs of CPU a call" in (tmp_path / "performance.html").read_text(encoding="utf-8")
