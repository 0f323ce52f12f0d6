"""Files that may quote prompts and answers are private to their owner."""

from __future__ import annotations

import logging
import os
import stat

PRIVATE = 0o600  # read and write for the owner, nothing for anybody else

logger = logging.getLogger("chatpool.files")


def make_private(fd: int, path: str) -> None:
    """Set an open file's mode to 0600 if other users have access to it, and log that at INFO."""
    status = os.fstat(fd)
    mode = stat.S_IMODE(status.st_mode)
    # Windows has access lists in place of modes, and a terminal is not ours to change.
    if os.name == "nt" or not stat.S_ISREG(status.st_mode) or not mode & 0o077:
        return
    try:
        os.fchmod(fd, PRIVATE)
    except OSError as error:
        logger.warning("other users have access to %s (mode %04o), which cannot be changed: %s", path, mode, error)
    else:
        logger.info("other users had access to %s (mode %04o); its mode is now %04o", path, mode, PRIVATE)
