"""The servers as fixtures. Each is started once for all tests of a process, and tests leave it as they found it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatpool.testing import FakeChatServer

from .servers import RunningServer, running, skip_unless_installed
from .set_up import FOLDER, find_program, python_of

HERE = Path(__file__).resolve().parent
MakeNginx = Callable[..., RunningServer]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where servers write."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def llama_cpp(folder: Path) -> Iterator[RunningServer]:
    """llama.cpp's server, with a model that writes nonsense. Its key is sk-test, its model's name tiny."""
    skip_unless_installed("llama_cpp")
    home = FOLDER / "llama_cpp"
    model = ["--model", str(home / "tiny.gguf"), "--model_alias", "tiny", "--chat_format", "chatml"]
    lean = ["--n_ctx", "2048", "--n_threads", "1", "--verbose", "false"]
    start = [str(python_of(home)), "-m", "llama_cpp.server", *model, *lean, "--api_key", "sk-test"]
    with running(lambda port: [*start, "--port", str(port)], folder / "llama_cpp.log", cwd=folder) as server:
        yield server


@pytest.fixture(scope="session")
def aimock(folder: Path) -> Iterator[RunningServer]:
    """aimock, which answers "question 007" with "answer 007" and plays the faults of aimock.json. Its key is sk-test."""
    skip_unless_installed("aimock")
    home, answers = FOLDER / "aimock", folder / "aimock"
    answers.mkdir()
    (answers / "answers.json").write_text(json.dumps({"fixtures": [_question(number) for number in range(1000)]}))
    (answers / "faults.json").write_bytes((HERE / "aimock.json").read_bytes())
    program = home / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
    start = ["node", program, "-h", "127.0.0.1", "-f", answers, "--log-level", "warn"]
    settings = {"AIMOCK_API_KEYS": "sk-test"}
    with running(lambda port: [*start, "-p", str(port)], folder / "aimock.log", cwd=home, environment=settings) as server:
        yield server


def _question(number: int) -> dict[str, dict[str, str]]:
    return {"match": {"userMessage": f"question {number:03}"}, "response": {"content": f"answer {number:03}"}}


@pytest.fixture(scope="session")
def prism(folder: Path) -> Iterator[RunningServer]:
    """Prism, which refuses with 422 what OpenAI's published description of its API does not allow."""
    skip_unless_installed("prism")
    home = FOLDER / "prism"
    program = home / "node_modules" / "@stoplight" / "prism-cli" / "dist" / "index.js"
    start = ["node", program, "mock", "-h", "127.0.0.1", "--errors", "true", home / "chat.json"]
    with running(lambda port: [*start, "-p", str(port)], folder / "prism.log", cwd=home) as server:
        yield server


@pytest.fixture(scope="session")
def behind() -> Iterator[FakeChatServer]:
    """What stands behind a gateway. It answers every prompt with itself, so that a mix-up would show."""
    with FakeChatServer() as server:
        yield server


@pytest.fixture(scope="session")
def litellm(folder: Path, behind: FakeChatServer) -> Iterator[RunningServer]:
    """The LiteLLM proxy; what it is told stands in litellm_settings.py."""
    skip_unless_installed("litellm")
    from .litellm_settings import settings

    (folder / "litellm.json").write_text(json.dumps(settings(behind.url)))  # JSON is YAML, too
    (folder / "litellm_keys.py").write_bytes((HERE / "litellm_keys.py").read_bytes())  # it is looked for beside it
    program = FOLDER / "litellm" / "venv" / "bin" / "litellm"
    start = [program, "--config", folder / "litellm.json", "--host", "127.0.0.1", "--telemetry", "False"]
    # A "minute" of two seconds, and no download of prices at the start.
    quick = {"LITELLM_RATE_LIMIT_WINDOW_SIZE": "2", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with running(lambda port: [*start, "--port", str(port)], folder / "litellm.log", cwd=folder, environment=quick) as server:
        yield server


@pytest.fixture
def make_nginx(tmp_path: Path) -> Iterator[MakeNginx]:
    """Start nginx with directives for ``http`` and for ``server``; see nginx.conf for those that it always has."""
    skip_unless_installed("nginx")
    import contextlib

    program, template = find_program("nginx"), (HERE / "nginx.conf").read_text()
    with contextlib.ExitStack() as stack:

        def make(server: str, http: str = "", listen: str = "") -> RunningServer:
            def command(port: int) -> list[str]:
                words = {"PORT": str(port), "LISTEN": listen, "HTTP": http, "SERVER": server}
                text = template
                for word, value in words.items():
                    text = text.replace(f"@{word}@", value)
                (tmp_path / "nginx.conf").write_text(text)
                return [str(program), "-p", str(tmp_path), "-c", "nginx.conf", "-e", "stderr"]

            return stack.enter_context(running(command, tmp_path / "nginx.log", cwd=tmp_path))

        yield make
