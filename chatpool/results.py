"""The results of calls: ``Answers``, ``ChatResult`` (one a prompt), ``Usage`` in tokens, ``Retry`` and ``Estimate``."""

from ._protocol.answers import Answers
from ._protocol.results import ChatResult, Estimate, Retry, Usage

__all__ = ["Answers", "ChatResult", "Estimate", "Retry", "Usage"]
