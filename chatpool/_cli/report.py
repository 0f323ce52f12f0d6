"""``chatpool report``: shows a journal as one HTML page. The only module that uses plotly (extra ``report``).

The page is self-contained, plotly.js included (about 5 MB), and loads nothing from the network. It quotes no prompt and
no answer, but a server's error messages may quote a prompt, so only its owner can read the file.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from typing import Any

from chatpool._files.history import Cause, History, read_history
from chatpool._files.permissions import PRIVATE, make_private
from chatpool._protocol.results import PathLike
from chatpool._protocol.summary import plural
from chatpool._version import __version__
from chatpool.errors import ConfigurationError

BLUE, ORANGE, RED = "#3366aa", "#dd8800", "#cc3344"

_PERCENTILES = {"median": 0.5, "95 %": 0.95, "99 %": 0.99}
_BINS_PER_DECADE = 20  # of the histogram; on a linear axis one slow call would squeeze the others together
_MIN_LATENCY = 0.001  # seconds, the start of that axis
_MAX_CAUSES = 12  # in the chart; the table below it lists all
_EXAMPLE_LENGTH = 200  # characters of an error's message
_CHART_OPTIONS = {"displayModeBar": False, "responsive": True}  # drag to zoom in, double-click to zoom out
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2rem 0 0}p{margin:.3rem 0}
table{border-collapse:collapse;font-size:.9rem}td,th{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top;
overflow-wrap:anywhere}footer{margin-top:2rem;color:#666;font-size:.85rem}"""


def write_report(journal: PathLike, output: PathLike) -> None:
    """Write the page for a journal, even while a run writes the journal.

    Raises JournalError if ``journal`` is not a journal, and ConfigurationError if plotly is not installed or ``output``
    cannot be written.
    """
    page = render(read_history(journal), os.path.basename(journal))
    if os.path.exists(output) and os.path.samefile(journal, output):
        raise ConfigurationError(f"{os.fspath(output)} is the journal; choose another file for the report")
    try:
        with open(output, "w", encoding="utf-8", errors="replace", opener=_open_private) as file:
            file.write(page)
    except OSError as error:
        raise ConfigurationError(f"cannot write {os.fspath(output)}: {error.strerror}") from None


def render(history: History, name: str) -> str:
    """Return the page. Raises ConfigurationError if plotly is not installed."""
    script = _plotly_js()
    sections = (_latencies, _in_flight, _tokens, _failures)
    body = "\n".join(section(history) for section in sections) if history.prompts else "<p>No call is finished yet.</p>"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(name)} – chatpool report</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><script>{script}</script></head>
<body><h1>{escape(name)}</h1>
{_overview(history)}
{body}
<footer>chatpool {__version__}, {datetime.now():%Y-%m-%d %H:%M}; times are local</footer></body></html>
"""


def _overview(history: History) -> str:
    runs, answered = history.calls.merged(), len(history.latencies)
    began = f" from {datetime.fromtimestamp(runs[0][0]):%Y-%m-%d %H:%M} on" if runs else ""
    outcomes = f"{answered:,} answered, {history.prompts - answered:,} failed"
    return (
        f"<p><b>{plural(history.prompts, 'prompt')}: {outcomes}</b></p>"
        f"<p>{plural(history.requests, 'request')} in {_seconds(history.calls.covered)}, "
        f"in {plural(len(runs), 'run')}{began}</p>"
    )


def _latencies(history: History) -> str:
    ordered = sorted(max(_MIN_LATENCY, seconds) for seconds in history.latencies)
    if not ordered:
        return ""
    figure = _figure([_steps(*_histogram(ordered), "answers", BLUE)], "seconds, logarithmic", "answers")
    figure.update_xaxes(type="log")
    marks = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in _PERCENTILES.items()}
    for name, seconds in marks.items():
        figure.add_vline(x=seconds, line_dash="dot", line_width=1)
        figure.add_annotation(x=math.log10(seconds), y=1, yref="paper", yanchor="bottom", text=name, showarrow=False)
    values = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in marks.items())
    return _section("Time to an answer", f"From the first attempt, waits included: {values}.", figure)


def _histogram(ordered: Sequence[float]) -> tuple[list[float], list[int]]:
    """Return the edges of logarithmic bins, and the number of values in each."""
    first = math.floor(math.log10(ordered[0]) * _BINS_PER_DECADE)
    last = math.floor(math.log10(ordered[-1]) * _BINS_PER_DECADE) + 1
    edges = [10 ** (number / _BINS_PER_DECADE) for number in range(first, last + 1)]
    positions = [bisect_left(ordered, edge) for edge in [*edges[:-1], math.inf]]
    return edges, [late - early for early, late in zip(positions, positions[1:])]


def _in_flight(history: History) -> str:
    edges = _flat(history.edges())
    times, name = _times(edges), "429s a second"
    traces = [_steps(times, history.attempts.means(edges), "requests in flight", BLUE)]
    if history.rate_limited.total:
        traces.append(_steps(times, _rates(history.rate_limited.sums(edges), edges), name, RED, yaxis="y2"))
    figure = _over_time(history, traces, "in flight")
    axis = {"overlaying": "y", "side": "right", "title": name, "rangemode": "tozero", "tickmode": "auto"}
    figure.update_layout(yaxis2=axis)
    mean = f"{history.attempts.total / history.calls.covered:.1f} requests in flight on average"
    return _section("In flight and rate-limited", f"{mean}, {history.rate_limited.total:,} rate-limited (429).", figure)


def _tokens(history: History) -> str:
    total_in, total_out = history.tokens_in.total, history.tokens_out.total
    if not total_in + total_out:
        return ""
    edges = _flat(history.edges())
    traces = [
        _steps(_times(edges), _rates(series.sums(edges), edges), name, color)
        for series, name, color in ((history.tokens_in, "in", BLUE), (history.tokens_out, "out", ORANGE))
    ]
    text = f"{total_in:,} in, {total_out:,} out, {total_in + total_out:,} total, as counted by the server."
    return _section("Tokens", text, _over_time(history, traces, "tokens a second"))


def _failures(history: History) -> str:
    failed = ", ".join(f"{count:,} × {escape(name)}" for name, count in history.failed_attempts.most_common())
    attempts = f"Failed attempts: {failed}." if failed else "No attempt failed."
    causes = history.failures.most_common()
    if not causes:
        return _section("Failures", f"No prompt failed. {attempts}")
    table = "".join(_row(count, cause, history.examples[cause]) for cause, count in causes)
    text = f"{plural(sum(history.failures.values()), 'prompt')} failed. {attempts}"
    return (
        _section("Failures by cause", text, _bars(causes[:_MAX_CAUSES]))
        + f"<table><tr><th>prompts</th><th>cause</th><th>example</th></tr>{table}</table>"
    )


def _row(count: int, cause: Cause, example: str) -> str:
    if len(example) > _EXAMPLE_LENGTH:
        example = example[: _EXAMPLE_LENGTH - 1] + "…"
    return f"<tr><td>{count:,}</td><td>{escape(str(cause))}</td><td>{escape(example)}</td></tr>"


def _bars(causes: Sequence[tuple[Cause, int]]) -> Any:
    from plotly.graph_objects import Bar  # noqa: PLC0415 - loaded only when a report is made

    names, counts = [escape(str(cause)) for cause, _ in causes], [count for _, count in causes]
    bar = Bar(x=counts, y=names, text=counts, orientation="h", marker_color=RED)
    figure = _figure([bar], "prompts", None)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(height=120 + 30 * len(causes))
    return figure


def _steps(edges: Sequence[Any], values: Sequence[float], name: str, color: str, **more: Any) -> Any:
    """Return the outline of a histogram: each value from its edge to the next."""
    from plotly.graph_objects import Scatter  # noqa: PLC0415 - loaded only when a report is made

    line = {"shape": "hv", "color": color, "width": 1.5}
    return Scatter(x=list(edges), y=[*values, 0], name=name, mode="lines", line=line, fill="tozeroy", **more)


def _figure(traces: Iterable[Any], x: str | None, y: str | None) -> Any:
    from plotly.graph_objects import Figure  # noqa: PLC0415 - loaded only when a report is made

    figure = Figure(list(traces))
    figure.update_layout(
        template="simple_white",
        height=320,
        margin={"t": 30, "b": 40, "l": 60, "r": 60},
        legend={"orientation": "h", "y": 1.1},
        xaxis={"title": x},
        yaxis={"title": y, "rangemode": "tozero"},
    )
    return figure


def _over_time(history: History, traces: Iterable[Any], y: str) -> Any:
    """Return a chart over time, without the time between the runs."""
    runs = history.edges()
    figure = _figure(traces, None, y)
    # 1 ms later, because a point on the first bound is left out too.
    breaks = [_times([before[-1] + 0.001, after[0]]) for before, after in zip(runs, runs[1:])]
    figure.update_xaxes(rangebreaks=[{"bounds": bounds} for bounds in breaks])
    return figure


def _section(title: str, text: str, figure: Any = None) -> str:
    chart = "" if figure is None else figure.to_html(full_html=False, include_plotlyjs=False, config=_CHART_OPTIONS)
    return f"<h2>{title}</h2><p>{text}</p>{chart}"


def _flat(runs: Sequence[Sequence[float]]) -> list[float]:
    """Return the edges of all runs in one list, in which an empty bin lies between two runs."""
    return [edge for edges in runs for edge in edges]


def _times(edges: Iterable[float]) -> list[str]:
    return [datetime.fromtimestamp(edge).isoformat(sep=" ", timespec="milliseconds") for edge in edges]


def _rates(sums: Sequence[float], edges: Sequence[float]) -> list[float]:
    return [amount / (late - early) for amount, early, late in zip(sums, edges, edges[1:])]


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _plotly_js() -> str:
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 - loaded only when a report is made
    except ImportError:
        raise ConfigurationError("chatpool report needs plotly; pip install 'chatpool[report]'") from None
    return str(get_plotlyjs())


def _open_private(path: str, flags: int) -> int:
    fd = os.open(path, flags, PRIVATE)
    make_private(fd, path)
    return fd
