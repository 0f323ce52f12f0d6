"""The journal of finished calls, for code that reads one."""

from ._files.journal import Journal
from ._protocol.results import PathLike

__all__ = ["Journal", "PathLike"]
