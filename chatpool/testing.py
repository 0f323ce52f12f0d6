"""A fake chat API for tests: a real HTTP server on a loopback port, with scripted replies and faults.

>>> with FakeChatServer() as server:
...     server.script("ping", Reply(status=503), Reply("pong"))
...     answers = ChatPool(base_url=server.url).map(["ping"])  # ["pong"], after one retry

A reply is a list of steps: bytes to send, seconds to wait, and an ``End``. ``Reply`` makes them for the common cases;
``Raw`` takes them as they are, to reproduce any server's misbehaviour. A ``Stream`` paces a streamed reply, or breaks
it off. ``dialect`` returns the replies of real providers by name. ``RateLimit``, ``FixedWindow``, ``InFlight`` and
others are limits to refuse requests with.
"""

from ._testing.dialects import DIALECTS, dialect
from ._testing.limits import (
    EXACT,
    Announcing,
    FixedWindow,
    InFlight,
    Limit,
    PerModel,
    RandomRefusals,
    RateLimit,
    RefusedPrompts,
    Shared,
    SlidingWindow,
    Together,
)
from ._testing.replies import AnyReply, Handler, Raw, Reply, Request, chaos
from ._testing.server import FakeChatServer
from ._testing.streams import Stream
from ._testing.wire import End, Step

__all__ = [
    "DIALECTS",
    "EXACT",
    "Announcing",
    "AnyReply",
    "End",
    "FakeChatServer",
    "FixedWindow",
    "Handler",
    "InFlight",
    "Limit",
    "PerModel",
    "RandomRefusals",
    "RateLimit",
    "Raw",
    "RefusedPrompts",
    "Reply",
    "Request",
    "Shared",
    "SlidingWindow",
    "Step",
    "Stream",
    "Together",
    "chaos",
    "dialect",
]
