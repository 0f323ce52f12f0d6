"""Run a server for as long as whoever started it lives, however that one ends: ``keeper.py COMMAND…``.

Standard input is a pipe whose other end nobody but the starter holds: it ends with the starter. Then this process group
is killed, the server and its children with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    """Run the command; pass its exit code on."""
    server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=lambda: os._exit(server.wait() % 256), daemon=True).start()
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
