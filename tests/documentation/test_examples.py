"""What the README and the examples say is run, against the fake server."""

from __future__ import annotations

import gc
import json
import re
import runpy
import shlex
import sys

import pytest

from chatpool._cli.main import main
from tests.snippets import ROOT, run_tests, snippets

README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = snippets(ROOT / "README.md")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NEEDS = {"pandas_column": "pandas", "pydantic_answers": "pydantic"}  # what an example imports beyond the package's own


@pytest.fixture
def server(named_server):
    """A server that the environment names, as a user's would."""
    return named_server


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_readme_snippet(server, number, tmp_path, monkeypatch):
    """Each runs as it stands; what it defines is called."""
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "__readme__"}
    SNIPPETS[number].run(space)
    if "view" in space:
        assert space["view"](["a", "b"]) == ["a", "b"]
        assert space["pool"].close() is None
    run_tests(space)
    for name in ("answers", "people"):
        if name in space:
            assert None not in space[name]


def test_readme_commands(server, tmp_path, monkeypatch, capsys):
    """Each command line of ``chatpool run`` runs as it stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    (tmp_path / "table.csv").write_text("prompt\none\n")
    body = {"model": "m", "messages": [{"role": "user", "content": "one"}]}
    line = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "batch.jsonl").write_text(json.dumps(line) + "\n")
    commands = re.findall(r"^chatpool (run .*?)(?: > \S+)?   ", README, flags=re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err


def test_readme_names_every_option():
    """The table of options is the constructor's."""
    import inspect

    from chatpool import ChatPool

    table = README.split("## Options")[1].split("## ")[0]
    assert set(inspect.signature(ChatPool).parameters) <= set(re.findall(r"`(\w+)`", table))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(server, path, tmp_path, monkeypatch, capsys):
    """Every example runs and prints or writes answers."""
    pytest.importorskip(NEEDS.get(path.stem, "chatpool"))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n\ntwo\n")
    arguments = {
        "file_of_prompts": [str(prompts), str(tmp_path / "answers.jsonl")],
        "local_server": [server.url, "tiny"],
    }
    monkeypatch.setattr(sys, "argv", [str(path), *arguments.get(path.stem, [])])
    runpy.run_path(str(path), run_name="__main__")
    gc.collect()  # a module's functions and globals hold each other, and an example its unclosed pool
    told = capsys.readouterr().out
    if path.stem == "file_of_prompts":
        assert sorted(told.split()) == ["0", "1", "one", "two"]
        assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2
    expected = {
        "plain_script": "50 answered, 0 failed",
        "structured_answers": "City(name='Lima'",
        "local_server": "Say hello.",
        "pandas_column": "Name a river in Laos.",
        "pydantic_answers": "name='Lima' population=10000000",
    }
    assert expected.get(path.stem, "") in told
    assert len(server.requests) > 1
