"""Install real servers for the integration suite, each in its own environment: ``set_up.py aimock nginx``.

Installs to ``.servers/`` beside this file, or to the folder in the environment variable CHATPOOL_SERVERS. Skips
installed servers. The suite has passed with these versions. nginx comes from Debian, and only root can install it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER = Path(os.environ.get("CHATPOOL_SERVERS") or HERE / ".servers").absolute()


class CannotInstall(Exception):
    """A server cannot be installed; the message says why."""


@dataclass(frozen=True)
class Server:
    """A server's packages, from PyPI, from npm, or from Debian, with the ``program`` that the last one installs."""

    pip: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    debian: str = ""
    program: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    finish: Callable[[Path], None] = lambda folder: None

    @property
    def pin(self) -> str:
        """The content of the marker of a finished installation; with another pin, the server is installed again."""
        return " ".join(filter(None, [*self.pip, *self.npm, self.debian]))


def find_program(name: str) -> str | None:
    """Return a program's path; servers are often on root's path only."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")


def is_installed(name: str) -> bool:
    """Whether the server is completely installed, in the right version."""
    server, marker = SERVERS[name], FOLDER / name / "installed"
    has_program = not server.program or find_program(server.program) is not None
    return has_program and marker.exists() and marker.read_text() == server.pin


def install(name: str) -> None:
    """Install a server; raise CannotInstall if that fails."""
    server, folder = SERVERS[name], FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    if server.debian and find_program(server.program) is None:
        _install_by_apt(server)
    if server.pip:
        _install_by_pip(server, folder)
    if server.npm:
        _install_by_npm(server, folder)
    server.finish(folder)
    (folder / "installed").write_text(server.pin)  # last, so that an incomplete installation starts again


def python_of(folder: Path) -> Path:
    """Return the Python of a server's virtual environment."""
    return folder / "venv" / "bin" / "python"


def _need(program: str) -> str:
    path = find_program(program)
    if path is None:
        raise CannotInstall(f"{program} is not installed; install it with the system's package manager")
    return path


def _install_by_apt(server: Server) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise CannotInstall(f"{server.program} is not installed; run as root: apt-get install {server.debian}")
    _run(["apt-get", "update", "-qq"])
    _run(["apt-get", "install", "-qq", "--yes", "--no-install-recommends", server.debian])


def _install_by_pip(server: Server, folder: Path) -> None:
    _run([sys.executable, "-m", "venv", "--clear", str(folder / "venv")])
    _run([str(python_of(folder)), "-m", "pip", "install", "--quiet", *server.pip], server.environment)


def _install_by_npm(server: Server, folder: Path) -> None:
    _need("node")  # npm may be installed without it
    quiet = ["--no-audit", "--no-fund", "--loglevel=error"]
    _run([_need("npm"), "install", "--prefix", str(folder), "--ignore-scripts", *quiet, *server.npm])


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, check=False)
    if done.returncode:
        raise CannotInstall(f"command failed with exit code {done.returncode}: {' '.join(command)}")


def _make_model(folder: Path) -> None:
    _run([str(python_of(folder)), str(HERE / "tiny_model.py"), str(folder / "tiny.gguf")])


def _describe(folder: Path) -> None:
    _run([str(python_of(folder)), str(HERE / "openai_description.py"), str(folder / "chat.json")])


SERVERS = {
    "aimock": Server(npm=("@copilotkit/aimock@1.43.0",)),
    "forward_proxy": Server(pip=("proxy.py==2.4.10",)),
    "litellm": Server(pip=("litellm[proxy]==1.106.2",)),
    "llama_cpp": Server(
        pip=("llama-cpp-python[server]==0.3.36", "gguf==0.19.0"),
        # The wheel is compiled, without images and downloads.
        environment={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_CURL=OFF"},
        finish=_make_model,
    ),
    "nginx": Server(debian="nginx-light", program="nginx"),
    # Later versions need Node.js 24. OpenAI's SDK is the source of the API's description.
    "prism": Server(npm=("@stoplight/prism-cli@5.14.2",), pip=("openai==2.48.0",), finish=_describe),
}


def main() -> int:
    """Install the named servers; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="+", choices=sorted(SERVERS), help=", ".join(sorted(SERVERS)))
    failed = False
    for name in parser.parse_args().names:
        try:
            if not is_installed(name):
                install(name)
            print(f"{name}: installed")
        except CannotInstall as error:
            failed = True
            print(f"{name}: {error}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
