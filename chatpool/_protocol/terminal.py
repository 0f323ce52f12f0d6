"""Text from a server, made safe for a terminal."""

from __future__ import annotations

import re

# C0, DEL and C1 move the cursor and run commands of the terminal, U+2028 and U+2029 are line ends to some, and the
# characters with the property Bidi_Control (UAX #9) reorder what is around them.
_CONTROLS = "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"


def escape_controls(text: str) -> str:
    r"""Replace each control character by its escape in Python, such as ``\x1b``."""
    if text.isascii() and text.isprintable():  # as most names of servers are
        return text
    return re.sub(_CONTROLS, lambda found: found[0].encode("unicode_escape").decode(), text)
