"""``chatpool report``: a journal as one self-contained HTML page."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys

import pytest

from chatpool import ChatPool
from chatpool._cli import charts
from chatpool._cli.main import main
from chatpool._files.history import History, Intervals, TimeSeries, read_history
from chatpool.testing import Reply
from tests.snippets import ROOT, snippets

NASTY = "</script><script>document.title='hacked'</script>"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-component-update",
]
QUIET = ["--disable-background-networking", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"]


def line(began, elapsed, *, tries=(), error=None, usage=None, **ours):
    """Return the parsed line of one call."""
    body = {"usage": usage} if usage else None
    timed = {"started": began, "elapsed": elapsed, "attempts": len(tries) or 1}
    if len(tries):
        timed["tries"] = tries
    return {"custom_id": "x", "response": {"body": body}, "error": error, "chatpool": {**timed, **ours}}


def history_of(*lines):
    history = History()
    for document in lines:
        history.add(document, counts=True)
    return history


@pytest.fixture
def journal(server, pool, tmp_path):
    """Forty prompts: 36 answered, two of them after a retry; four failed, for three causes."""
    path = tmp_path / "run.jsonl"
    server.script("p1", Reply(status=429, headers={"Retry-After": "0"}), Reply("late"))
    server.script("p2", Reply(status=500), Reply("late"))
    server.script("p3", Reply(status=400, code="too_long"))
    server.script("p4", Reply(status=400, code="too_long"))
    server.script("p5", Reply(status=400, body={"error": {"code": NASTY, "message": NASTY}}))
    server.script("p6", Reply(finish_reason="content_filter", text=""))
    pool.map([f"p{number}" for number in range(40)], journal=path)
    return path


def test_intervals_are_counted_over_time():
    """The mean number of intervals in each bin, and their total length."""
    intervals = Intervals()
    for began, ended in [(0, 4), (1, 2), (3, 7)]:
        intervals.add(1.7e9 + began, 1.7e9 + ended)
    edges = [1.7e9 + second for second in range(9)]
    assert intervals.means(edges) == pytest.approx([1, 2, 1, 2, 1, 1, 1, 0])
    assert intervals.total == pytest.approx(9)


def test_a_long_gap_separates_two_runs():
    """Minutes or days without a call are left out; a second is not."""
    intervals = Intervals()
    for began, ended in [(100, 101), (102, 103), (5000, 5001), (99, 100.5)]:
        intervals.add(began, ended)
    assert intervals.merged() == [(99, 103), (5000, 5001)]


def test_amounts_are_summed_between_edges():
    """An amount on an edge belongs to the bin that begins there."""
    series = TimeSeries()
    for instant, amount in [(5, 2), (0, 1), (1, 10)]:
        series.add(instant, amount)
    assert series.sums([0, 1, 5, 6]) == [1, 10, 2]
    assert series.total == 13


def test_bins_cover_every_run():
    """However long the runs are, there are about 150 bins at most, and no call lies outside of them."""
    for length in (0.0, 0.3, 7.0, 1000.0, 4e5):
        history = history_of(
            *(line(1e9 + part * length, length / 9, usage={"prompt_tokens": 1}) for part in (0, 0.5, 1))
        )
        edges = [edge for run in history.edges() for edge in run]
        assert len(edges) < 170
        assert edges == sorted(set(edges))
        assert sum(history.tokens_in.sums(edges)) == 3


def test_history_counts_attempts_rate_limits_and_tokens():
    """The waits between a call's attempts are not counted as in flight."""
    tries = [[0, 1, "RateLimitError"], [3, 4, "InternalServerError"], [9, 10, None]]
    history = history_of(
        line(1000, 10, tries=tries, usage={"prompt_tokens": 3, "completion_tokens": 4}),
        line(1000, 2, usage={"input_tokens": 5, "output_tokens": 6}),  # from the Responses API
        line(1000, 1, error={"code": "too_long", "message": "m"}, tries=[[0, 1, "BadRequestError"]], status_code=400),
    )
    assert history.spent.attempts == 5
    assert history.attempts.total == pytest.approx(6)
    assert (history.tokens_in.total, history.tokens_out.total) == (8, 10)
    assert history.rate_limited.sums([1000, 1001, 1002]) == [0, 1]
    assert history.failed_attempts == {"RateLimitError": 1, "InternalServerError": 1, "BadRequestError": 1}
    assert list(history.latencies) == [10, 2]


def test_line_that_counts_gives_the_outcome(server, pool, tmp_path):
    """A prompt that a later run answered is not a failure; its failed request is still counted."""
    path = tmp_path / "run.jsonl"
    server.script("b", Reply(status=400), Reply("better"))
    pool.map(["a", "b"], journal=path)
    assert sum(read_history(path).failures.values()) == 1
    pool.map(["a", "b"], journal=path)
    history = read_history(path)
    assert (history.prompts, len(history.latencies), history.spent.attempts) == (2, 2, 3)
    assert not history.failures


def test_report_is_one_self_contained_page(journal):
    """The text has the figures, nothing is loaded from elsewhere, and only the owner can read the file."""
    pytest.importorskip("plotly")
    assert main(["report", str(journal)]) == 0
    path = journal.with_suffix(".html")
    page = path.read_text()
    assert "40 prompts: 36 answered, 4 failed" in page
    assert "42 requests in" in page
    assert "in 1 run from" in page
    assert "1 rate-limited (429)" in page
    assert "InvalidResponseError 200 content_filter" in page
    assert page.count("<td>BadRequestError 400 too_long</td>") == 2
    assert re.search(r"<span>answers a second</span><b>\d", page)
    assert re.search(r"<span>latency, p95</span><b>\d", page)
    assert "<span>model</span><b>gpt-6-luna</b>" in page
    assert "<span>truncated answers</span><b>0</b>" in page
    assert "<td>finished</td>" in page
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_text_of_the_server_is_escaped(journal, tmp_path):
    """Neither a code nor a message can add a tag to the page or to a chart."""
    pytest.importorskip("plotly")
    main(["report", str(journal), "-o", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    assert "hacked" in page
    assert NASTY not in page
    assert "<script>document" not in page


def test_report_during_a_run(server, pool, tmp_path):
    """The journal is locked, and its last line may be incomplete; the report shows the finished calls."""
    pytest.importorskip("plotly")
    path = tmp_path / "run.jsonl"
    results = pool.imap([str(number) for number in range(200)], journal=path)
    next(results)
    assert main(["report", str(path)]) == 0
    results.close()
    assert re.search(r"<b>\d+ prompts?: ", path.with_suffix(".html").read_text())


def test_report_of_an_empty_journal(tmp_path):
    """A run that was interrupted at once leaves one; the page says so."""
    pytest.importorskip("plotly")
    (tmp_path / "run.jsonl").touch()
    assert main(["report", str(tmp_path / "run.jsonl")]) == 0
    assert "No call is finished yet." in (tmp_path / "run.html").read_text()


def test_report_without_an_answer(server, tmp_path):
    """There are no latencies and no tokens to show."""
    pytest.importorskip("plotly")
    path = tmp_path / "run.jsonl"
    server.script("a", Reply(status=400))
    with ChatPool(base_url=server.url) as pool:
        pool.map(["a"], journal=path)
    assert main(["report", str(path)]) == 0
    assert "1 prompt failed" in path.with_suffix(".html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl"], "cannot be opened: No such file"),
        (["other.txt"], "is not a chatpool journal: line 1"),
        (["run.jsonl", "-o", "run.jsonl"], "is the journal; choose another file"),
        (["run.jsonl", "-o", "missing/r.html"], "cannot write missing/r.html: No such file"),
    ],
)
def test_usage_error_is_a_sentence_and_exit_code_2(journal, monkeypatch, capsys, arguments, message):
    """Nothing is written, and the journal is unchanged."""
    pytest.importorskip("plotly")
    before = journal.read_bytes()
    monkeypatch.chdir(journal.parent)
    (journal.parent / "other.txt").write_text("hello\n")
    assert main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert journal.read_bytes() == before
    assert not list(journal.parent.glob("*.html"))


def test_without_plotly_the_message_says_what_to_install(journal):
    """It names a package that is on PyPI; the rest of the package does not need plotly."""
    program = (
        "import sys; sys.modules['plotly'] = None; from chatpool._cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", program, "report", str(journal)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "chatpool report needs plotly; pip install plotly" in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"started": float("nan")},
        {"started": 1e300},
        {"started": "today"},
        {"elapsed": -1},
        {"attempts": None},
        {"tries": [[0, 1]]},
        {"tries": {"a": 1}},
    ],
    ids=str,
)
def test_line_with_invalid_fields_is_reported_by_number(journal, capsys, change):
    """Somebody has edited chatpool's own fields."""
    pytest.importorskip("plotly")
    first, *others = journal.read_text().splitlines()
    document = json.loads(first)
    document["chatpool"].update(change)
    journal.write_text("\n".join([json.dumps(document), *others]) + "\n")
    assert main(["report", str(journal)]) == 2
    assert "run.jsonl: line 1 was edited, and its 'chatpool' fields are invalid" in capsys.readouterr().err


@pytest.mark.parametrize("odd", ["12", -1, [1], {"a": 1}, None, True, float("nan"), float("inf"), 10**400], ids=repr)
def test_odd_usage_is_ignored(odd):
    """Servers send all kinds of values there: the other field is counted, and so are the other lines.

    Digits as text are a number, to ``ChatResult.usage`` too.
    """
    history = history_of(
        line(1000, 1, usage={"prompt_tokens": odd, "completion_tokens": 4}),
        line(1000, 1, usage={"prompt_tokens": odd, "input_tokens": 5}),
        line(1000, 1, usage=odd),
        line(1000, 1, usage={"prompt_tokens": 3}),
    )
    tokens_in = 27 if odd == "12" else 8
    assert (history.prompts, history.tokens_in.total, history.tokens_out.total) == (4, tokens_in, 4)


def test_journal_with_odd_usage_has_a_report(journal):
    pytest.importorskip("plotly")
    document = json.loads(journal.read_text().splitlines()[0])
    document["response"] = {"body": {"usage": {"prompt_tokens": "12", "completion_tokens": float("nan")}}}
    with journal.open("a") as file:
        file.write(json.dumps(document) + "\n")
    assert main(["report", str(journal)]) == 0


@pytest.mark.skipif(os.name == "nt", reason="needs file modes")
def test_report_that_other_users_can_read_is_made_private(journal, capsys):
    """Before anything is written to it, and stderr says so. The journal, which is only read, is left unchanged."""
    pytest.importorskip("plotly")
    path = journal.with_suffix(".html")
    path.touch()
    for file in (path, journal):
        file.chmod(0o666)
    assert main(["report", str(journal)]) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.stat().st_mode) == 0o666
    assert capsys.readouterr().err.splitlines() == [
        f"chatpool: other users had access to {path} (mode 0666); its mode is now 0600",
        f"the report is in {path}",
    ]


def test_report_of_embeddings(server, tmp_path):
    """They have tokens but no text."""
    pytest.importorskip("plotly")
    body = {"object": "list", "data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 7, "total_tokens": 7}}
    server.script("hi", Reply(body=body))
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "hi"}}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    output = tmp_path / "out.jsonl"
    assert main(["run", str(tmp_path / "in.jsonl"), "-o", str(output), "--base-url", server.url]) == 0
    assert main(["report", str(output)]) == 0
    assert "7 in, 0 out, 7 total" in output.with_suffix(".html").read_text()


def test_documented_snippet(named_server, tmp_path, monkeypatch):
    """The documentation's snippets work unchanged."""
    pytest.importorskip("plotly")
    monkeypatch.chdir(tmp_path)
    for snippet in snippets(ROOT / "docs" / "report.md"):
        snippet.run({})
    assert "3 prompts: 3 answered" in (tmp_path / "report.html").read_text()


@pytest.fixture
def browse(tmp_path):
    """Open a page in a real Chromium without a network; return its text, and a screenshot."""
    pytest.importorskip("plotly")
    image = pytest.importorskip("PIL.Image")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")

    def browse(path):
        shot, common = tmp_path / "shot.png", [*FLAGS, *QUIET, f"--user-data-dir={tmp_path / 'profile'}"]
        common += ["--window-size=1000,2200", "--virtual-time-budget=10000", path.as_uri()]
        run = {"check": True, "timeout": 120, "stderr": subprocess.DEVNULL}
        text = subprocess.run([CHROMIUM, *common, "--dump-dom"], stdout=subprocess.PIPE, text=True, **run).stdout
        subprocess.run([CHROMIUM, *common, f"--screenshot={shot}"], stdout=subprocess.DEVNULL, **run)
        return text, image.open(shot).convert("RGB")

    return browse


def test_chromium_shows_the_page(server, pool, journal, browse):
    """Headings, axes and causes are readable, the charts are drawn in their colours, and no foreign script has run."""
    from chatpool import report

    for number in range(20):  # enough refusals to be seen, however long the run takes
        server.script(f"refused {number}", Reply(status=429, delay=0.05), Reply("late"))
    pool.map([f"refused {number}" for number in range(20)], journal=journal)
    report.write_report(journal, journal.with_suffix(".html"))
    text, picture = browse(journal.with_suffix(".html"))
    shown = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    words = re.sub(r"<[^>]+>", "\n", shown)
    for label in (
        "Time to an answer",
        "median",
        "In flight and rate-limited",
        "What held the run back",
        "429s a second",
        "tokens a second",
    ):
        assert f"\n{label}" in words
    assert words.count("BadRequestError 400 too_long") == 3  # once by cause, and for two prompts
    assert "run.jsonl – chatpool report" in text  # the title, unchanged by NASTY
    for color in (charts.BLUE, charts.ORANGE, charts.RED):
        assert _pixels_like(picture, color) > 500, color


def _pixels_like(picture, color):
    """Return the number of pixels with that colour, or with it half transparent over white."""
    solid = tuple(int(color[index : index + 2], 16) for index in (1, 3, 5))
    wanted = [solid, tuple((part + 255) // 2 for part in solid)]
    counted = picture.getcolors(picture.width * picture.height)
    return sum(n for n, seen in counted if any(max(map(abs, map(int.__sub__, seen, w))) < 4 for w in wanted))
