"""A newcomer's first programs: the README's first example, a data frame, a web view, Azure, a classified CSV.

Each is under ten lines, and runs.
"""

from __future__ import annotations

import csv
import enum
import sys
import types

import pytest

from chatpool import ChatPool
from chatpool.testing import FakeChatServer, Reply
from tests.snippets import ROOT, snippets

README = ROOT / "README.md"
LINES = 10


def snippet_with(text):
    """Return the snippet of the README that has this in it."""
    (found,) = [snippet for snippet in snippets(README) if text in snippet.code]
    return found


PANDAS = """
import pandas as pd
from chatpool import ChatPool

df = pd.read_csv("reviews.csv")
with ChatPool(max_workers=20) as pool:
    answers = pool.map("Good or bad? " + df["review"], journal="answers.jsonl")
table = pd.concat([df, pd.DataFrame(answers.to_records())], axis=1)
table.to_csv("classified.csv")
"""

AZURE = """
from azure.identity import DefaultAzureCredential, get_bearer_token_provider
from chatpool import ChatPool

scope = "https://ai.azure.com/.default"
token = get_bearer_token_provider(DefaultAzureCredential(), scope)
with ChatPool(base_url=URL, api_key=token, model="DEPLOYMENT") as pool:
    answers = pool.map(["ping", "pong"])
"""


def lines_of(code):
    return [line for line in code.splitlines() if line.strip()]


def test_each_is_under_ten_lines():
    readme = [snippets(README)[0].code, *(snippet_with(text).code for text in ("pandas", "flask", "csv"))]
    for code in (*readme, PANDAS, AZURE):
        assert len(lines_of(code)) < LINES, code


def test_first_example_of_the_readme(named_server, capsys):
    snippets(README)[0].run({})
    assert "3 prompts: 3 answered" in capsys.readouterr().out


def test_data_frame(named_server, tmp_path, monkeypatch):
    """Run twice, it sends nothing twice; the table has answers, tokens and errors as plain columns."""
    pandas = pytest.importorskip("pandas")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews.csv").write_text("id,review\n7,nice\n8,awful\n")
    for _ in range(2):
        exec(PANDAS, {})
    table = pandas.read_csv("classified.csv")
    assert table["id"].tolist() == [7, 8]
    assert table["answer"].tolist() == ["Good or bad? nice", "Good or bad? awful"]
    assert table["error"].isna().all()
    assert len(named_server.requests) == 2


def test_web_view(named_server):
    pytest.importorskip("flask")
    space = {"__name__": "app"}
    snippet_with("flask").run(space)
    reply = space["app"].test_client().post("/ask", json=["ping", "pong"])
    assert reply.json == {"answers": ["ping", "pong"]}
    space["pool"].close()


def test_azure(server, monkeypatch):
    azure = types.SimpleNamespace(
        DefaultAzureCredential=lambda: "a-token-for-",
        get_bearer_token_provider=lambda credential, scope: lambda: credential + scope,
    )
    monkeypatch.setitem(sys.modules, "azure", types.SimpleNamespace(identity=azure))
    monkeypatch.setitem(sys.modules, "azure.identity", azure)
    space = {"URL": server.url}
    exec(AZURE, space)
    assert space["answers"] == ["ping", "pong"]
    assert {request.headers["authorization"] for request in server.requests} == {
        "Bearer a-token-for-https://ai.azure.com/.default"
    }


def test_classify_500_rows_with_costs(tmp_path, monkeypatch, capsys):
    """The scene of the issue: an Enum, the costs in the summary, and some answers that need a second attempt."""
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "reviews.csv").open("w") as file:
        csv.writer(file).writerows([["review"], *([f"review {number}"] for number in range(500))])

    def reply(request):
        is_second = len(request.body["messages"]) > 2
        return Reply('{"value": "bad"}' if is_second or hash(request.prompt) % 10 else "I cannot say.")

    with FakeChatServer(reply=reply) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        space = {}
        snippet_with("csv").run(space)
    assert set(space["moods"]) == {space["Mood"].BAD}
    out = capsys.readouterr().out
    assert "500 prompts: 500 answered, 0 failed" in out
    assert "cost: $" in out


def test_enum_of_the_page_on_structured_answers():
    (snippet,) = [s for s in snippets(ROOT / "docs/structured.md") if "Mood(Enum)" in s.code]
    with FakeChatServer(reply=lambda request: Reply('{"value": "good"}')) as server:
        space = {"pool": ChatPool(base_url=server.url)}
        snippet.run(space)
        space["pool"].close()
    assert [mood.value for mood in space["moods"]] == ["good"]
    assert isinstance(space["moods"][0], enum.Enum)
