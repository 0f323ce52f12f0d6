"""The README's snippets and commands and the examples run against the fake server."""

from __future__ import annotations

import gc
import json
import re
import runpy
import shlex
import sys

import pytest

from chatpool._cli.main import main
from chatpool.testing import Reply
from tests.snippets import ROOT, run_tests, snippets

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = snippets(ROOT / "README.md")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {"pandas_column": "pandas", "pydantic_answers": "pydantic"}


@pytest.fixture
def server(named_server):
    """A server whose address is in the environment."""
    return named_server


def test_readme_is_short():
    """Anything longer belongs in docs/."""
    assert len(README.encode()) < 8000


def test_readme_sets_up_with_two_commands():
    """.ci/run takes these lines out of the README and runs them."""
    commands = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert commands == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/chatpool demo",
        "python3 -m venv .venv-test && .venv-test/bin/pip install -e '.[test]' && .venv-test/bin/python -m pytest",
    ]


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_readme_snippet_runs(server, number, tmp_path, monkeypatch):
    """Functions and tests that it defines are called."""
    snippet = SNIPPETS[number]
    if snippet.run_by:
        pytest.skip(f"run by {snippet.run_by}")
    if snippet.missing():
        pytest.skip(f"not installed: {', '.join(snippet.missing())}")
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "__readme__"}
    snippet.run(space)
    if "app" in space:
        reply = space["app"].test_client().post("/ask", json=["a", "b"])
        assert reply.json == {"answers": ["a", "b"]}
        assert space["pool"].close() is None
    run_tests(space)
    for name in ("answers", "people"):
        if name in space:
            assert None not in space[name]


def test_readme_shows_the_output_of_its_first_snippet(server, capsys):
    """But for times, which differ from run to run."""
    for country, river, seconds in [("Peru", "Amazon", 0.05), ("Chad", "Chari", 0.06), ("Laos", "Mekong", 0.07)]:
        server.script(f"Name a river in {country}.", Reply(f"The {river}.", delay=seconds))
    SNIPPETS[0].run({})
    assert without_times(capsys.readouterr().out) == without_times(SNIPPETS[0].output)


def without_times(text):
    return re.sub(r"\d+\.\d+|[\d,]+(?= a minute)", "TIME", text)


def test_run_commands_of_readme(server, tmp_path, monkeypatch, capsys):
    """Each command line of ``chatpool run`` runs unchanged; test_command_page.py runs those of the page."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    (tmp_path / "table.csv").write_text("review\nnice\n")
    body = {"model": "m", "messages": [{"role": "user", "content": "one"}]}
    line = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "batch.jsonl").write_text(json.dumps(line) + "\n")
    commands = re.findall(r"^chatpool (run [^>\n]*)", README, flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(server, path, tmp_path, monkeypatch, capsys):
    """Every example runs and prints or writes answers."""
    pytest.importorskip(NEEDS.get(path.stem, "chatpool"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n\ntwo\n")
    (tmp_path / "reviews.csv").write_text("id,review\n7,nice\n8,awful\n")
    arguments = {
        "classify_csv": [str(tmp_path / "reviews.csv"), str(tmp_path / "classified.csv")],
        "file_of_prompts": [str(prompts), str(tmp_path / "answers.jsonl")],
        "local_server": [server.url, "tiny"],
    }
    monkeypatch.setattr(sys, "argv", [str(path), *arguments.get(path.stem, [])])
    runpy.run_path(str(path), run_name="__main__")
    gc.collect()  # a module's functions and globals hold each other, and an example its unclosed pool
    printed = capsys.readouterr().out
    if path.stem == "file_of_prompts":
        assert sorted(printed.split()) == ["0", "1", "one", "two"]
        assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2
    if path.stem == "classify_csv":
        assert re.match(r"id,review,mood\n7,nice,\w+\n8,awful,\w+\n$", (tmp_path / "classified.csv").read_text())
    expected = {
        "classify_csv": "2 prompts: 2 answered, 0 failed",
        "plain_script": "50 answered, 0 failed",
        "structured_answers": "City(name='Lima'",
        "local_server": "Say hello.",
        "pandas_column": "Name a mountain in Laos.",
        "pydantic_answers": "name='Lima' population=10000000",
    }
    assert expected.get(path.stem, "") in printed
    assert len(server.requests) > 1
