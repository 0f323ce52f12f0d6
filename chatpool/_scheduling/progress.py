"""The progress bar. The only home of tqdm, which is imported when the first bar is drawn.

Only the thread that asked for the answers draws. A bar that cannot be drawn is dropped: it must not cost an answer.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from typing import Any

from chatpool._protocol.results import ChatResult

from .preload import forks_wait

_logger = logging.getLogger("chatpool")


class Progress:
    """Counts what is done, and shows it if wanted."""

    def __init__(self, total: int | None, show: bool | None) -> None:
        self._failed = self._retries = 0
        self._bar: Any = None
        if show is None:
            show = _in_notebook() or _on_terminal()
        if show:
            self._try(self._open, total)

    @property
    def is_shown(self) -> bool:
        """Whether there is a bar to keep up to date."""
        return self._bar is not None

    def update(self, results: Sequence[ChatResult], *, are_resumed: bool = False) -> None:
        """Count these results in. Those from a journal do not count for the rate, nor do their retries."""
        if self._bar is None or not results:
            return
        self._failed += sum(not result.ok for result in results)
        if are_resumed:
            self._bar.initial += len(results)
        else:
            self._retries += sum(max(0, result.attempts - 1) for result in results)
        self._try(self._draw, len(results))

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        if self._bar is not None:
            self._try(self._bar.close)
            self._bar = None

    def _open(self, total: int | None) -> None:
        self._bar = _bar_class()(total=total, unit=" prompts", dynamic_ncols=True, file=sys.stderr)
        self._draw(0)

    def _draw(self, done: int) -> None:
        counts = {"failed": self._failed, "retries": self._retries}
        self._bar.set_postfix({name: count for name, count in counts.items() if count}, refresh=False)
        self._bar.update(done)

    def _try(self, draw: Any, *args: Any) -> None:
        try:
            draw(*args)
        except Exception as error:  # noqa: BLE001 - a closed stderr, a broken widget: anything but a lost answer
            self._bar = None
            _logger.warning("the progress bar was dropped: %s", type(error).__name__)


def _on_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # pythonw has no stderr; a closed one refuses
        return False


def _in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel. Looks only at what is imported already."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _bar_class() -> Any:
    with forks_wait():
        from tqdm import std  # noqa: PLC0415 - not needed unless a bar is drawn

        base: Any = std.tqdm
        if _in_notebook():
            from tqdm import notebook  # noqa: PLC0415 - likewise

            if getattr(notebook, "IProgress", None) is not None:  # without ipywidgets it draws with text
                base = notebook.tqdm

    class Bar(base):  # type: ignore[misc]  # the base is chosen at run time
        monitor_interval = 0  # no monitor thread, which would outlive the bar

        def __del__(self) -> None:
            """Do nothing. tqdm's closes the bar, for which it waits for the lock: in whichever thread the collector
            runs, and for ever, where a draw that failed has left it locked (as tqdm 4.60 does)."""

    # tqdm's own lock holds a multiprocessing lock, which a fork may copy while it is held.
    Bar.set_lock(threading.RLock())
    return Bar
