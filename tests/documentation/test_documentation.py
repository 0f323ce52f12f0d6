"""The documentation's snippets run, print the output that it shows, and name things that exist."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import json
import re
import shutil
import subprocess
import sys
import types

import pytest

import chatpool
from chatpool import ChatPool
from chatpool.testing import Reply
from tests.snippets import ROOT, run_tests, snippets

DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
MIGRATING = sorted(path for path in (DOCS / "migrating").glob("*.md") if path.name != "index.md")
PROVIDERS = DOCS / "providers.md"
RUN_HERE = [path for path in PAGES if path not in MIGRATING and path != PROVIDERS]
WIDTH = 88  # columns of code that fit the box of a page; the two set-up commands are one line each for .ci/run
SECONDS = 60  # an upper bound; nothing here takes more than a few


def skip_without(found):
    """Skip where a snippet's packages are not installed."""
    missing = sorted({name for snippet in found for name in snippet.missing()})
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def name_of(path):
    return str(path.relative_to(DOCS).with_suffix(""))


@pytest.mark.parametrize("path", RUN_HERE, ids=name_of)
def test_snippets_of_a_page_run_from_top_to_bottom(named_server, path, tmp_path, monkeypatch, capsys):
    """Each sees the names of those above it, and prints the output below it; tests in them pass.

    They run up to the first whose packages are not installed.
    """
    found = [snippet for snippet in snippets(path) if snippet.run_by is None]
    monkeypatch.chdir(tmp_path)
    named_server.script("Name a river in Peru.", Reply("The Amazon."))
    named_server.script("Name a river in Chad.", Reply("The Chari."))
    named_server.script("Name a river in Laos.", Reply("The Mekong."))
    space = {"__name__": "__page__"}
    for snippet in itertools.takewhile(lambda snippet: not snippet.missing(), found):
        capsys.readouterr()
        snippet.run(space)
        if snippet.output is not None:
            assert capsys.readouterr().out == snippet.output
    run_tests(space)
    for value in space.values():
        if isinstance(value, ChatPool):
            value.close()
    skip_without(found)


def test_every_run_by_comment_names_a_test_file():
    named = {snippet.run_by for path in PAGES for snippet in snippets(path) if snippet.run_by}
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_code_fits_its_box(path):
    """Nobody has to scroll sideways to read an example."""
    blocks = re.findall(r"^ *```\w+.*?\n(.*?)^ *```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    assert not [line for line in lines if len(line) > WIDTH and not line.startswith("python3 -m venv")]


@pytest.mark.parametrize(
    ("page", "part", "requests"),
    [("quickstart", "fields = ", 3), ("resuming", "len(answers.resumed)", 101), ("budgets", "dedupe", 2)],
)
def test_page_sends_as_many_requests_as_it_says(named_server, tmp_path, monkeypatch, page, part, requests):
    monkeypatch.chdir(tmp_path)
    space = {}
    for snippet in [snippet for snippet in snippets(DOCS / f"{page}.md") if snippet.run_by is None]:
        before = len(named_server.requests)
        snippet.run(space)
        if part in snippet.code:
            sent = named_server.requests[before:]
            assert len(sent) == requests
    space["pool"].close()


def test_fields_of_a_prompt_override_params(named_server):
    """The example of the quickstart: a high effort and another model for the third prompt."""
    (snippet,) = [snippet for snippet in snippets(DOCS / "quickstart.md") if "fields = " in snippet.code]
    with ChatPool() as pool:
        snippet.run({"pool": pool})
    assert sorted(request.body["reasoning_effort"] for request in named_server.requests) == ["high", "none", "none"]
    assert {request.body["model"] for request in named_server.requests} == {chatpool.DEFAULT_MODEL, "gpt-6-sol"}


# Migrating: before and after, each a script of its own.


@pytest.mark.parametrize("path", MIGRATING, ids=name_of)
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
    """Return the fields that matter, without those that have their default."""
    return [request.body.get(name) for name in ("messages", "model", "temperature")]


def run_script(code, folder):
    """Run a snippet as a script in a process of its own; return its ``answers``."""
    script = folder / "script.py"
    script.write_text(f"{code}\nimport json\nprint(json.dumps(answers))\n", encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# Providers: the requests that arrive.

CHAT = "/chat/completions"
ARRIVES = {
    "OpenAI": {"path": f"/v1{CHAT}", "authorization": "Bearer sk-test", "model": "gpt-6-luna"},
    "Azure OpenAI": {"path": f"/openai/v1{CHAT}", "api-key": "KEY", "authorization": None, "model": "DEPLOYMENT"},
    "Azure OpenAI, dated": {
        "path": f"/openai/deployments/DEPLOYMENT{CHAT}?api-version=2024-10-21",
        "api-key": "KEY",
        "authorization": None,
    },
    "Azure OpenAI, Entra ID": {
        "path": f"/openai/v1{CHAT}",
        "authorization": "Bearer a-token-for-https://ai.azure.com/.default",
        "model": "DEPLOYMENT",
    },
    "OpenRouter": {
        "path": f"/api/v1{CHAT}",
        "authorization": "Bearer sk-or-v1-KEY",
        "http-referer": "https://example.com",
        "x-openrouter-title": "My tool",
        "model": "openai/gpt-6-luna",
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


def test_every_snippet_of_the_providers_has_its_expected_request():
    assert len(snippets(PROVIDERS)) == len(ARRIVES)


@pytest.mark.parametrize("name", ARRIVES)
def test_settings_of_a_provider(server, name, monkeypatch):
    """With the fake server's address in place of the provider's, path, headers and fields are as documented."""
    code = snippets(PROVIDERS)[list(ARRIVES).index(name)].code
    if name == "OpenAI":
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        assert "base_url='https://api.openai.com/v1'" in repr(ChatPool())
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    azure = types.SimpleNamespace(
        DefaultAzureCredential=lambda: "a-token-for-",
        get_bearer_token_provider=lambda credential, scope: lambda: credential + scope,
    )
    monkeypatch.setitem(sys.modules, "azure", types.SimpleNamespace(identity=azure))
    monkeypatch.setitem(sys.modules, "azure.identity", azure)
    space = {}
    exec(re.sub(r'"https?://(?!example|ai.azure)[^/"]+', f'"http://127.0.0.1:{server.port}', code), space)
    with space["pool"] as pool:
        assert pool.ask("ping") == "ping"
    (request,) = server.requests
    seen = {"path": request.path, **request.body, **request.headers}
    assert {key: seen.get(key) for key in ARRIVES[name]} == ARRIVES[name]


# Testing your code: under pytest, and from other languages.


def test_testing_page_under_pytest(tmp_path):
    """Its snippets pass as one file of tests; the package alone provides the fixture."""
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
    counts = re.findall(r"(\d+) (?:passed|skipped)", done.stdout)  # skipped: those of clients that are not installed
    assert sum(map(int, counts)) == TESTING.count("def test_")


@pytest.fixture
def fake_server_command():
    """The page's own ``chatpool fake-server``, on a free port and without its errors; yields its address."""
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


# Names on the pages.


def test_reference_names_everything_public():
    """Every name of ``chatpool.__all__`` and of ``chatpool.testing`` has its entry."""
    entries = set(re.findall(r"^\.\. (?:auto)?\w+:: (\S+)$", (DOCS / "reference.md").read_text(), flags=re.MULTILINE))
    kit = ["FakeChatServer", "Reply", "Raw", "End", "Request", "RateLimit", "chaos"]
    wanted = {f"chatpool.{name}" for name in chatpool.__all__} | {f"chatpool.testing.{name}" for name in kit}
    assert not wanted - entries


def test_settings_page_names_every_setting():
    """The tables have the arguments of the constructor and of map, and the default model."""
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", text))
    settings = {*inspect.signature(ChatPool).parameters, *inspect.signature(ChatPool.map).parameters}
    assert settings - {"self", "prompts"} <= named
    assert f"| `model` | `{chatpool.DEFAULT_MODEL}` |" in text


def test_faults_name_errors_and_test_folders_that_exist():
    text = (DOCS / "faults.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) > 30
    folders = set(re.findall(r"`(tests/\w+)`", text))
    assert folders
    assert not [name for name in folders if not (ROOT / name).is_dir()]
    errors = set(re.findall(r"`(\w+Error)`", "\n".join(rows))) - {
        "ValueError",
        "TypeError",
        "LookupError",
        "AttributeError",
    }
    assert errors <= set(chatpool.__all__)


def test_architecture_names_every_folder_and_public_module():
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "chatpool"
    folders = [path.parent.name for path in package.glob("*/__init__.py")]
    modules = [path.stem for path in package.glob("*.py") if not path.stem.startswith("_")]
    assert not [name for name in [*folders, *modules] if f"`{name}`" not in text]


# The site.


def test_builds_without_a_warning(tmp_path):
    """Sphinx finds every page, link and name, and the pages show the help of the commands."""
    missing = [name for name in ("sphinx", "myst_parser", "furo") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5 * SECONDS, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    built = {str(path.relative_to(tmp_path).with_suffix("")) for path in tmp_path.rglob("*.html")}
    assert {name_of(path) for path in PAGES} <= built
    assert "--request-budget" in (tmp_path / "command.html").read_text(encoding="utf-8")
    assert "µs of CPU a call" in (tmp_path / "performance.html").read_text(encoding="utf-8")
