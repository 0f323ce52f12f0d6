"""``chatpool report``: shows a journal as one HTML page.

The page is self-contained, plotly.js included (about 5 MB), and loads nothing from the network. It quotes no prompt and
no answer, but a server's error messages may quote a prompt, so only its owner can read the file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from html import escape
from typing import Any

from chatpool._files.history import History, read_history
from chatpool._files.permissions import PRIVATE, make_private
from chatpool._limits.limits import SLOTS
from chatpool._protocol.prices import show_cost
from chatpool._protocol.results import PathLike
from chatpool._protocol.summary import plural
from chatpool._version import __version__
from chatpool.errors import ConfigurationError

from . import charts
from .charts import BLUE, GREEN, ORANGE

_PERCENTILES = {"median": 0.5, "p95": 0.95, "p99": 0.99}
_MIN_LATENCY = 0.001  # seconds, the start of the axis of the histogram
_MAX_CAUSES = 12  # in the chart
_MAX_RUNS = 20  # in the table
_EXAMPLE_LENGTH = 200  # characters of an error's message
_ENDINGS = {None: "no end: killed, or still going on", "GeneratorExit": "stopped by the program that read the answers"}
_STYLE = """:root{color-scheme:light dark;--ink:#1d2127;--dim:#68707c;--line:#dfe3e8;--tile:#f5f7f9;--page:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7eb;--dim:#98a1ad;--line:#343b45;--tile:#1f252d;--page:#14181d}}
*{box-sizing:border-box}body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1.2rem;
color:var(--ink);background:var(--page)}h1{font-size:1.4rem;margin:.4rem 0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2rem 0 .2rem}p{margin:.2rem 0}.dim,footer{color:var(--dim);font-size:.9rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:.6rem;margin:1rem 0}
.tiles div{background:var(--tile);border-radius:.5rem;padding:.6rem .8rem;overflow-wrap:anywhere}
.tiles b{display:block;font-size:1.25rem;line-height:1.3}.tiles span{color:var(--dim);font-size:.85rem}
.table,.js-plotly-plot{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;width:100%}
td,th{text-align:left;padding:.3rem 1rem .3rem 0;vertical-align:top;border-bottom:1px solid var(--line)}
td{overflow-wrap:break-word;white-space:nowrap}td:last-child{white-space:normal;min-width:10rem;width:99%}footer{margin-top:2rem}
.js-plotly-plot text{fill:var(--ink)!important}.js-plotly-plot .legend .bg{fill:none!important}"""


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
    script = charts.plotly_js()
    sections = (_throughput, _held_back, _in_flight, _latencies, _tokens, _failures, _runs)
    body = "\n".join(section(history) for section in sections) if history.prompts else "<p>No call is finished yet.</p>"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(name)} – chatpool report</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><script>{script}</script></head>
<body><h1>{escape(name)}</h1>
{_overview(history)}
{body}
<footer>chatpool {__version__}, {datetime.now():%Y-%m-%d %H:%M}; times are local; drag in a chart to zoom in,
double-click to zoom out</footer></body></html>
"""


def _overview(history: History) -> str:
    runs, answered = history.runs, len(history.latencies)
    began = f" from {_date(runs[0].began)} on" if runs else ""
    outcomes = f"{answered:,} answered, {history.prompts - answered:,} failed"
    tiles = "".join(f"<div><span>{name}</span><b>{value}</b></div>" for name, value in _tiles(history))
    return (
        f"<p><b>{plural(history.prompts, 'prompt')}: {outcomes}</b></p>"
        f'<p class="dim">{plural(history.spent.attempts, "request")} in {_seconds(history.seconds)}, '
        f"in {plural(len(runs), 'run')}{began}</p>"
        f'<div class="tiles">{tiles}</div>'
    )


def _tiles(history: History) -> Iterator[tuple[str, str]]:
    ordered, spent = sorted(history.latencies), history.spent
    if history.models:
        names = [escape(name) for name, _ in history.models.most_common(3)]
        yield (
            ("model" if len(history.models) == 1 else "models"),
            ", ".join(names) + (", …" if len(history.models) > 3 else ""),
        )
    if history.seconds and ordered:
        yield "answers a second", f"{len(ordered) / history.seconds:,.3g}"
    if ordered:
        yield "latency, p95", _seconds(_percentile(ordered, 0.95))
    if history.first_tokens:
        yield "first token, median", _seconds(_percentile(sorted(history.first_tokens), 0.5))
    if spent.cost is not None:
        yield "cost", show_cost(spent.cost)
    if spent.usage.total_tokens:
        yield "tokens", f"{spent.usage.total_tokens:,}"
    yield "truncated answers", f"{history.truncated:,}"
    yield "failed attempts", f"{sum(history.failed_attempts.values()):,}"
    if spent.unanswered:
        yield "unanswered, perhaps charged", plural(spent.unanswered, "request")


def _throughput(history: History) -> str:
    runs, edges = history.edges(), _flat(history.edges())
    answers = {"answers": (GREEN, _rates(history.answers.sums(edges), edges))}
    figure = charts.over_time(runs, answers, "answers a second")
    rate = len(history.latencies) / history.seconds if history.seconds else 0.0
    return _section("Answers a second", f"{rate:,.3g} on average.", figure)


def _in_flight(history: History) -> str:
    runs, edges = history.edges(), _flat(history.edges())
    figure = charts.over_time(runs, {"requests in flight": (BLUE, history.attempts.means(edges))}, "in flight")
    if history.rate_limited.total:
        rates = _rates(history.rate_limited.sums(edges), edges)
        charts.add_second_axis(figure, runs, "429s a second", rates)
    mean = history.attempts.total / history.seconds if history.seconds else 0.0
    text = f"{mean:.1f} requests in flight on average, {history.rate_limited.total:,} rate-limited (429)."
    return _section("In flight and rate-limited", text, figure)


def _held_back(history: History) -> str:
    runs = history.edges()
    shares = history.held_back(runs)
    title = "What held the run back"
    if not shares:
        return _section(title, "No call had to wait, or an older version wrote the journal.")
    colors = charts.stack_colors(shares)
    layers = {_cause(cause): (colors[cause], values) for cause, values in shares.items()}
    figure = charts.over_time(runs, layers, "share of the time", is_stack=True)
    figure.update_yaxes(tickformat=".0%", range=[0, 1.05])
    return _section(title, _causes(history), figure)


def _causes(history: History) -> str:
    """Return a sentence about what held the runs back, for which share of their time."""
    waits = sum((Counter(run.waits) for run in history.runs), Counter())
    shares = [(cause, seconds / max(history.seconds, seconds)) for cause, seconds in waits.most_common()]
    parts = [f"{escape(_cause(cause))} {share:.0%} of the time" for cause, share in shares if share >= 0.005]
    return f"Calls waited for: {', '.join(parts)}." if parts else "Calls hardly waited."


def _cause(cause: str) -> str:
    return f"{SLOTS} (every slot in use)" if cause == SLOTS else cause


def _latencies(history: History) -> str:
    ordered = sorted(max(_MIN_LATENCY, seconds) for seconds in history.latencies)
    if not ordered:
        return ""
    marks = {name: _percentile(ordered, share) for name, share in _PERCENTILES.items()}
    values = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in marks.items())
    text = f"From the first attempt, waits included: {values}."
    return _section("Time to an answer", text, charts.latencies(ordered, marks))


def _tokens(history: History) -> str:
    usage = history.spent.usage
    if not usage.total_tokens:
        return ""
    runs, edges = history.edges(), _flat(history.edges())
    layers = {
        name: (color, _rates(series.sums(edges), edges))
        for series, name, color in ((history.tokens_in, "in", BLUE), (history.tokens_out, "out", ORANGE))
    }
    text = f"{usage.prompt_tokens:,} in, {usage.completion_tokens:,} out, {usage.total_tokens:,} total"
    for count, name in ((usage.cached_tokens, "cached"), (usage.reasoning_tokens, "reasoning")):
        text += f", {count:,} {name}" if count else ""
    cost = "" if history.spent.cost is None else f" Cost: {show_cost(history.spent.cost)}."
    figure = charts.over_time(runs, layers, "tokens a second", is_stack=True)
    return _section("Tokens", f"{text}, of all attempts, as counted by the server.{cost}", figure)


def _failures(history: History) -> str:
    failed = ", ".join(f"{count:,} × {escape(name)}" for name, count in history.failed_attempts.most_common())
    attempts = f"Failed attempts: {failed}." if failed else "No attempt failed."
    causes = history.failures.most_common()
    if not causes:
        return _section("Failures", f"No prompt failed. {attempts}")
    count = sum(history.failures.values())
    rows = [(one.name, str(one.cause), _shorten(one.message)) for one in history.failed]
    more = f'<p class="dim">and {count - len(rows):,} more</p>' if count > len(rows) else ""
    return (
        _section("Failures by cause", f"{plural(count, 'prompt')} failed. {attempts}")
        + charts.bars({str(cause): number for cause, number in causes[:_MAX_CAUSES]})
        + f"<h2>Failed prompts</h2>{_table(('custom_id', 'cause', 'message'), rows)}{more}"
    )


def _runs(history: History) -> str:
    runs = history.runs
    rows = [
        (f"{datetime.fromtimestamp(run.began):%Y-%m-%d %H:%M:%S}", _seconds(run.ended - run.began), _ending(run.how))
        for run in runs[-_MAX_RUNS:]
    ]
    return f"<h2>Runs</h2>{_table(('began', 'length', 'end'), rows)}"


def _ending(how: str | None) -> str:
    return _ENDINGS.get(how) or (how if how in ("finished", "interrupted") else f"ended with {how}")


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><tr>{head}</tr>{body}</table></div>'


def _section(title: str, text: str, figure: Any = None) -> str:
    return f"<h2>{title}</h2><p>{text}</p>{'' if figure is None else charts.to_html(figure)}"


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _shorten(message: str) -> str:
    return message if len(message) <= _EXAMPLE_LENGTH else message[: _EXAMPLE_LENGTH - 1] + "…"


def _flat(runs: Sequence[Sequence[float]]) -> list[float]:
    """Return the edges of all runs in one list, in which an empty bin lies between two runs."""
    return [edge for edges in runs for edge in edges]


def _rates(sums: Sequence[float], edges: Sequence[float]) -> list[float]:
    return [amount / (late - early) if late > early else 0.0 for amount, early, late in zip(sums, edges, edges[1:])]


def _date(instant: float) -> str:
    return f"{datetime.fromtimestamp(instant):%Y-%m-%d %H:%M}"


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _open_private(path: str, flags: int) -> int:
    fd = os.open(path, flags, PRIVATE)
    make_private(fd, path)
    return fd
