"""The command, run in this process."""

from __future__ import annotations

import json

import pytest

from chatpool._cli.main import main


class Shell:
    """Runs the command in this process, against the server, in an empty folder."""

    def __init__(self, server, folder, capsys, monkeypatch):
        self.server, self._capsys, self._monkeypatch = server, capsys, monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)

    def write(self, name, *lines):
        with open(name, "wb") as file:
            file.write(b"".join(line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines))

    def run(self, *arguments):
        """Return the exit code; what was printed is in ``out`` and ``err``."""
        try:
            code = main(["run", *arguments])
        except SystemExit as error:
            code = error.code
        self.out, self.err = self._capsys.readouterr()
        return code

    def answers(self, name="out.jsonl"):
        """Return the texts of the good lines, sorted."""
        with open(name, encoding="utf-8") as file:
            documents = [json.loads(line) for line in file]
        return sorted(
            document["response"]["body"]["choices"][0]["message"]["content"]
            for document in documents
            if document["error"] is None and document["response"]["status_code"] == 200
        )


@pytest.fixture
def shell(server, tmp_path, capsys, monkeypatch):
    return Shell(server, tmp_path, capsys, monkeypatch)
