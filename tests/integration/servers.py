"""Runs real servers as processes: starts them on a free port, waits for them, and ends them with all their children."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import pytest

from tests.conftest import wait_until

from .set_up import HERE, is_installed

_START_TIMEOUT = 90.0  # seconds; the slowest server needs 10 on an idle machine
_END_TIMEOUT = 5.0  # seconds
_RUN_TIMEOUT = 120.0  # seconds for a command
_MAX_PORTS = 3  # another process may have taken a free port in the meantime

Command = Sequence[Union[str, Path]]


@dataclass(frozen=True)
class RunningServer:
    """A server on a loopback ``port``, with its output in ``log``."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        """The URL without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        """The base URL of the API, for most servers."""
        return f"{self.url}/v1"


def require(name: str) -> None:
    """Skip the calling test module if the server is not installed."""
    if not is_installed(name):
        reason = f"{name} is not installed: run python tests/integration/set_up.py {name}"
        pytest.skip(reason, allow_module_level=True)


def chatpool(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command ``chatpool`` in a folder, with only these environment variables."""
    command = [sys.executable, "-m", "chatpool", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_RUN_TIMEOUT, check=False
    )


@contextlib.contextmanager
def running(
    command: Callable[[int], Command], log: Path, *, cwd: Path, environment: Mapping[str, str] | None = None
) -> Iterator[RunningServer]:
    """Run the command that ``command`` returns for a port, until the end of the block."""
    for _ in range(_MAX_PORTS):
        port = _free_port()
        with log.open("wb") as output, _process(command(port), output.fileno(), cwd, environment or {}) as process:
            if _answers(process, port):
                yield RunningServer(port, log)
                return
    raise AssertionError(f"the server did not start; it wrote:\n{log.read_text(errors='replace')[-4000:]}")


@contextlib.contextmanager
def _process(
    command: Command, output: int, cwd: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    # The machine's API keys, proxies and settings are not passed to the server.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "keeper.py"), *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env={**kept, **environment},
        start_new_session=True,  # a process group, to end it with its children
    )
    with process:
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):  # all processes of the group have ended
            os.killpg(process.pid, signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_TIMEOUT)
    process.wait()


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    wait_until(lambda: process.poll() is not None or _speaks_http(port), _START_TIMEOUT)
    return process.poll() is None and _speaks_http(port)


def _speaks_http(port: int) -> bool:
    """Whether the server replies. An open port is not enough: some servers open it too early."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
