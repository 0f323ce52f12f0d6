"""The page on the command: its files, commands and outputs belong together."""

from __future__ import annotations

import re
import shlex

import pytest

from chatpool._cli.main import main
from chatpool.testing import Reply
from tests.snippets import ROOT, snippets

PAGE = ROOT / "docs" / "command.md"
_FILE = re.compile(r"`(\S+)`(:| is the same table.*?:)\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REPLIES = {
    "Translate into French: Great food": "Bonne cuisine",
    "Translate into German: Slow, and cold": "Langsam und kalt",
    "Mood of: Great food": '{"mood": "good", "about": ["food"]}',
    "Mood of: Slow, and cold": '{"mood": "bad", "about": ["service", "food"]}',
    "Name a river in Peru.": "The Amazon.",
    "Name a river in Chad.": "The Chari.",
}


def test_commands_of_the_page_run(named_server, tmp_path, monkeypatch, capsys):
    """Each reads the files above it, and writes the file that is shown below it."""
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    for prompt, reply in REPLIES.items():
        named_server.script(prompt, *[Reply(reply)] * 2)
    text = PAGE.read_text(encoding="utf-8")
    shown = {name: content for name, kind, content in _FILE.findall(text) if kind != ":"}
    for name, kind, content in _FILE.findall(text):
        if kind == ":":
            (tmp_path / name).write_text(content, encoding="utf-8")
    batch, join = snippets(PAGE)
    batch.run({})
    (tmp_path / "prompts.txt").write_text("Name a river in Peru.\n", encoding="utf-8")
    commands = [line for block in _COMMANDS.findall(text) for line in block.replace("\\\n", "").splitlines()]
    assert len(commands) == 6
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert list(shown) == ["answers.csv", "moods.csv"]
    for name, content in shown.items():
        assert (tmp_path / name).read_text(encoding="utf-8") == content
    capsys.readouterr()
    join.run({})
    assert capsys.readouterr().out == join.output


def test_options_of_the_page_exist(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"(?<=[` ])--[a-z-]+", PAGE.read_text(encoding="utf-8"))) <= options | {"--help"}
