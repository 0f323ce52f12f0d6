"""The servers as fixtures: started on a free port at their first use, ended with the tests."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from chatpool.testing import FakeChatServer

from .servers import RunningServer, running
from .set_up import FOLDER, HERE, find_program, python_of

SETTINGS = HERE / "settings"
MakeNginx = Callable[..., RunningServer]

_NGINX = """
daemon off;
master_process off;
pid nginx.pid;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path body;
    proxy_temp_path proxied;
    fastcgi_temp_path none;
    uwsgi_temp_path none;
    scgi_temp_path none;
    log_format connections "$request_method $connection $connection_requests $status";
    access_log access.log connections;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    {http}
    server {{
        listen 127.0.0.1:{port} {listen};
        {server}
    }}
}}
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for the servers' files."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def behind() -> Iterator[FakeChatServer]:
    """The server behind a gateway. It echoes prompts, so a mix-up of answers is detected."""
    with FakeChatServer() as server:
        yield server


@pytest.fixture(scope="session")
def llama_cpp(folder: Path) -> Iterator[RunningServer]:
    """llama.cpp's server, with a model called tiny that generates nonsense. Its key is sk-test."""
    home = FOLDER / "llama_cpp"
    model = ["--model", str(home / "tiny.gguf"), "--model_alias", "tiny", "--chat_format", "chatml"]
    # By default it interrupts a stream when another request comes.
    lean = ["--n_ctx", "2048", "--n_threads", "1", "--verbose", "false", "--interrupt_requests", "false"]
    start = [python_of(home), "-m", "llama_cpp.server", *model, *lean, "--api_key", "sk-test", "--port"]
    with running(lambda port: [*start, str(port)], folder / "llama_cpp.log", cwd=folder) as server:
        yield server


@pytest.fixture(scope="session")
def aimock(folder: Path) -> Iterator[RunningServer]:
    """aimock, which answers "question 007" with "answer 007" and plays the faults of aimock.json. Its key is sk-test."""
    questions = folder / "questions.json"
    questions.write_text(json.dumps({"fixtures": [_question(number) for number in range(1000)]}))
    program = FOLDER / "aimock" / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
    start = ["node", program, "-f", SETTINGS / "aimock.json", "-f", questions, "--log-level", "warn", "-p"]
    keys = {"AIMOCK_API_KEYS": "sk-test"}
    with running(lambda port: [*start, str(port)], folder / "aimock.log", cwd=folder, environment=keys) as server:
        yield server


def _question(number: int) -> dict[str, dict[str, str]]:
    return {"match": {"userMessage": f"question {number:03}"}, "response": {"content": f"answer {number:03}"}}


@pytest.fixture(scope="session")
def prism(folder: Path) -> Iterator[RunningServer]:
    """Prism, which answers a valid request with "valid", and rejects others with 422."""
    home = FOLDER / "prism"
    program = home / "node_modules" / "@stoplight" / "prism-cli" / "dist" / "index.js"
    start = ["node", program, "mock", home / "chat.json", "--errors", "true", "-h", "127.0.0.1", "-p"]
    with running(lambda port: [*start, str(port)], folder / "prism.log", cwd=folder) as server:
        yield server


@pytest.fixture(scope="session")
def litellm(folder: Path, behind: FakeChatServer) -> Iterator[RunningServer]:
    """The LiteLLM proxy; its models are in litellm.yaml, its keys in litellm_keys.py."""
    program = FOLDER / "litellm" / "venv" / "bin" / "litellm"
    start = [program, "--config", SETTINGS / "litellm.yaml", "--host", "127.0.0.1", "--telemetry", "False", "--port"]
    settings = {
        "BEHIND": behind.url,
        "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(32)}",  # it does not start without one
        "LITELLM_RATE_LIMIT_WINDOW_SIZE": "2",  # its "minute", in seconds
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # no download of prices
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with running(lambda port: [*start, str(port)], folder / "litellm.log", cwd=folder, environment=settings) as server:
        yield server


@pytest.fixture(scope="session")
def forward_proxy(folder: Path) -> Iterator[RunningServer]:
    """proxy.py, with the credentials user:secret. Only it resolves chat.test, to this machine."""
    program = FOLDER / "forward_proxy" / "venv" / "bin" / "proxy"
    data = folder / "forward_proxy"
    small = ["--num-workers", "1", "--num-acceptors", "1", "--data-dir", data, "--cache-dir", data / "cache"]
    start = [program, *small, "--plugins", "proxy_names.Names", "--basic-auth", "user:secret", "--port"]
    settings = {"PYTHONPATH": str(SETTINGS), "PYTHONDONTWRITEBYTECODE": "1"}
    log = folder / "forward_proxy.log"
    with running(lambda port: [*start, str(port)], log, cwd=folder, environment=settings) as server:
        yield server


@pytest.fixture
def make_nginx(tmp_path: Path) -> Iterator[MakeNginx]:
    """Start nginx with these directives in ``server`` and ``http``; it logs each request in access.log."""
    settings, program = tmp_path / "nginx.conf", find_program("nginx") or ""
    start = [program, "-p", tmp_path, "-c", settings, "-e", "stderr"]
    with contextlib.ExitStack() as stack:

        def make(server: str, http: str = "", listen: str = "") -> RunningServer:
            def command(port: int) -> list[str | Path]:
                settings.write_text(_NGINX.format(port=port, server=server, http=http, listen=listen))
                return start

            return stack.enter_context(running(command, tmp_path / "nginx.log", cwd=tmp_path))

        yield make
