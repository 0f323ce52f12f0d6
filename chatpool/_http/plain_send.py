"""Sends without releasing the interpreter lock.

``socket.send`` releases it. In a busy pool another thread takes it at once, and the sender waits to get it back, only
to release it again while it waits for the reply. A send that does not block takes 10 µs, less than that wait costs.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

_SOCKET, _SEND = socket.socket, socket.socket.send  # a tool that watches what is sent may replace either
_libc_send: Any = None


def load_send() -> None:
    """Find the C library's ``send``, if this system and this Python have it; once, before the first request."""
    global _libc_send
    if sys.platform != "linux":
        return
    try:
        import ctypes  # noqa: PLC0415 - it takes 3 ms, too long for `import chatpool`

        found = ctypes.PyDLL(None).send
        found.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
        found.restype = ctypes.c_ssize_t
    except Exception:  # noqa: BLE001 - no ctypes, linked statically, forbidden by an audit hook: socket.send will do
        return
    _libc_send = found


def send_at_once(sock: Any, data: bytes) -> int:
    """Send what the kernel takes at once, and return how many bytes that is.

    0 if it takes none, if the socket is not a plain one, or if it is broken: ``socket.send`` raises the error.
    """
    if _libc_send is None or type(sock) is not _SOCKET or _SOCKET.send is not _SEND:
        return 0
    sent: int = _libc_send(sock.fileno(), data, len(data), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    return max(sent, 0)
