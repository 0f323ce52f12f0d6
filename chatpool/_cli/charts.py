"""The charts of ``chatpool report``. The only module that uses plotly (extra ``report``)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from chatpool.errors import ConfigurationError

# Readable on white and on black.
BLUE, ORANGE, RED, GREEN, VIOLET, GREY = "#3b7dd8", "#dd8800", "#d63c50", "#2c9c6a", "#8a63d2", "#808080"
_STACK = (ORANGE, VIOLET, BLUE, GREEN, GREY)
_GRID = "rgba(128,128,128,0.25)"

_BINS_PER_DECADE = 20  # of the histogram; on a linear axis one slow call would squeeze the others together
_CHART_OPTIONS = {"displayModeBar": False, "responsive": True}  # drag to zoom in, double-click to zoom out


def plotly_js() -> str:
    """Return the script that draws the charts. Raises ConfigurationError if plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 - loaded only when a report is made
    except ImportError:
        raise ConfigurationError("chatpool report needs plotly; pip install plotly") from None
    return str(get_plotlyjs())


def to_html(figure: Any) -> str:
    """Return the part of a page that is a chart."""
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=_CHART_OPTIONS))


def latencies(ordered: Sequence[float], marks: Mapping[str, float]) -> Any:
    """Return a histogram of sorted seconds, with a line at each mark."""
    figure = _figure([_steps(*_histogram(ordered), "answers", BLUE)], "seconds", "answers")
    ticks = _ticks(ordered[0], ordered[-1])
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    for number, (name, seconds) in enumerate(marks.items()):
        figure.add_vline(x=seconds, line_dash="dot", line_width=1, line_color=GREY)
        # On two levels, as the names of near marks would overlap.
        place = {"yref": "paper", "y": 1 + 0.09 * (number % 2), "yanchor": "bottom"}
        figure.add_annotation(x=math.log10(seconds), text=name, showarrow=False, **place)
    return figure


def over_time(
    runs: Sequence[Sequence[float]], lines: Mapping[str, tuple[str, Sequence[float]]], y: str, *, is_stack: bool = False
) -> Any:
    """Return a chart of values between the edges of runs, without the time between the runs.

    ``lines``: a colour and the values, by name. The values of all runs follow each other, with one between two runs.
    """
    times = _times(edge for edges in runs for edge in edges)
    stack = {"stackgroup": "all"} if is_stack else {}
    figure = _figure([_steps(times, values, name, color, **stack) for name, (color, values) in lines.items()], None, y)
    # 1 ms later, because a point on the first bound is left out too.
    breaks = [_times([before[-1] + 0.001, after[0]]) for before, after in zip(runs, runs[1:])]
    figure.update_xaxes(rangebreaks=[{"bounds": bounds} for bounds in breaks])
    return figure


def stack_colors(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each name."""
    return {name: _STACK[number % len(_STACK)] for number, name in enumerate(names)}


def add_second_axis(figure: Any, runs: Sequence[Sequence[float]], name: str, values: Sequence[float]) -> None:
    """Add a red line, with an axis of its own at the right."""
    times = _times(edge for edges in runs for edge in edges)
    figure.add_trace(_steps(times, values, name, RED, yaxis="y2"))
    axis = {
        "overlaying": "y",
        "side": "right",
        "title": name,
        "rangemode": "tozero",
        "showgrid": False,
        "tickmode": "auto",
    }
    figure.update_layout(yaxis2=axis)


def bars(counts: Mapping[str, int]) -> str:
    """Return a horizontal bar for each name, in HTML alone: names are too long for the axis of a chart."""
    most = max(counts.values())
    bar = f"background:{RED};height:.6rem;border-radius:.2rem"
    rows = (
        f'<tr><td>{count:,}</td><td>{escape(name)}<div style="{bar};width:{100 * count / most:.1f}%"></div></td></tr>'
        for name, count in counts.items()
    )
    return f"<table><tr><th>prompts</th><th>cause</th></tr>{''.join(rows)}</table>"


def _histogram(ordered: Sequence[float]) -> tuple[list[float], list[int]]:
    """Return the edges of logarithmic bins, and the number of values in each."""
    first = math.floor(math.log10(ordered[0]) * _BINS_PER_DECADE)
    last = math.floor(math.log10(ordered[-1]) * _BINS_PER_DECADE) + 1
    edges = [10 ** (number / _BINS_PER_DECADE) for number in range(first, last + 1)]
    positions = [bisect_left(ordered, edge) for edge in [*edges[:-1], math.inf]]
    return edges, [late - early for early, late in zip(positions, positions[1:])]


def _ticks(least: float, most: float) -> list[float]:
    """Return the round numbers on a logarithmic axis: 1, 2 and 5, or 1 alone on a long one."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    digits = (1, 2, 5) if last - first <= 3 else (1,)
    return [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in digits]


def _steps(edges: Sequence[Any], values: Sequence[float], name: str, color: str, **more: Any) -> Any:
    """Return the outline of a histogram: each value from its edge to the next."""
    from plotly.graph_objects import Scatter  # noqa: PLC0415 - loaded only when a report is made

    fill = {} if "stackgroup" in more else {"fill": "tozeroy"}
    line = {"shape": "hv", "color": color, "width": 1.5}
    return Scatter(x=list(edges), y=[*values, 0], name=escape(name), mode="lines", line=line, **fill, **more)


def _figure(traces: Iterable[Any], x: str | None, y: str | None) -> Any:
    from plotly.graph_objects import Figure  # noqa: PLC0415 - loaded only when a report is made

    figure = Figure(list(traces))
    figure.update_layout(
        template="none",
        height=300,
        margin={"t": 40, "b": 40, "l": 50, "r": 50},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        xaxis={"title": x, "gridcolor": _GRID, "linecolor": _GRID, "automargin": True},
        yaxis={"title": y, "rangemode": "tozero", "gridcolor": _GRID, "zerolinecolor": _GRID, "automargin": True},
    )
    return figure


def _times(edges: Iterable[float]) -> list[str]:
    return [datetime.fromtimestamp(edge).isoformat(sep=" ", timespec="milliseconds") for edge in edges]
