"""Real servers as processes: started on a free port, waited for, and ended with all their children."""

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

_PATIENCE = 90.0  # seconds for a server to answer; the slowest needs 10 on an idle machine
_PARTING = 5.0  # seconds to end when asked to
_LONGEST_RUN = 120.0  # seconds for a command
_MOST_PORTS = 3  # a port that was free a moment ago can be somebody else's by now

Command = Sequence[Union[str, Path]]


@dataclass(frozen=True)
class RunningServer:
    """A server that answers at ``port`` on the loopback, and writes to ``log``."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        """Its root, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        """The base URL of its API, as most have it."""
        return f"{self.url}/v1"


def require(name: str) -> None:
    """Skip the test module that calls this if the server is not here, and say how to have it."""
    if not is_installed(name):
        told = f"{name} is not installed: run python tests/integration/set_up.py {name}"
        pytest.skip(told, allow_module_level=True)


def chatpool(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command ``chatpool`` in a folder, in this environment alone."""
    command = [sys.executable, "-m", "chatpool", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_LONGEST_RUN, check=False
    )


@contextlib.contextmanager
def running(
    command: Callable[[int], Command], log: Path, *, cwd: Path, environment: Mapping[str, str] | None = None
) -> Iterator[RunningServer]:
    """Run what ``command`` makes of a port until the block ends."""
    for _ in range(_MOST_PORTS):
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
    # None of the machine's keys, proxies and settings reach a server.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, str(HERE / "keeper.py"), *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env={**kept, **environment},
        start_new_session=True,  # with its children it is one group, which can be ended as a whole
    )
    with process:
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):  # none of the group is left
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PARTING)
    process.wait()


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    wait_until(lambda: process.poll() is not None or _speaks_http(port), _PATIENCE)
    return process.poll() is None and _speaks_http(port)


def _speaks_http(port: int) -> bool:
    """Whether there comes a reply, whatever it says. A port that is open proves little: some open it too early."""
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
