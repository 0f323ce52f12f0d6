"""Run a server until the process that started it ends, for whatever reason: ``keeper.py COMMAND…``.

Only the starting process holds the other end of the pipe that is this process's stdin. At its end, this process kills
its own process group: the server and its children.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    """Run the command; exit with its exit code."""
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=lambda: os._exit(server.wait() % 256), daemon=True).start()
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
