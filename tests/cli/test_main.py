"""The command."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from chatpool import __version__
from chatpool._cli.main import main


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "chatpool", *arguments], capture_output=True, text=True, timeout=60)


def test_demo_shows_answers_a_failure_and_the_next_step():
    """With latency, 429s, 500s and a stall; one prompt fails, and the demo shows why. No bar on stderr in a log."""
    done = run("demo")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "['0 times 0 is 0', '1 times 1 is 1', None, '3 times 3 is 9']" in done.stdout
    assert "BadRequestError(\"400: this prompt is longer than the model's context" in done.stdout
    assert ">>> answers.results[40].attempts  # timed out after 1 s, then sent again\n2" in done.stdout
    assert "300 prompts: 299 answered, 1 failed" in done.stdout
    assert "chatpool run prompts.txt --text" in done.stdout.splitlines()[-2]
    retries = int(re.search(r"requests: \d+, (\d+) retries", done.stdout)[1])
    assert retries > 5


def test_demo_on_an_ascii_terminal():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "chatpool", "demo"], capture_output=True, text=True, timeout=60, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_usage_errors_are_exit_code_2(capsys):
    for arguments in ([], ["nonsense"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "usage: chatpool" in capsys.readouterr().err


def test_version_and_help(capsys):
    for option, text in (("--version", f"chatpool {__version__}"), ("--help", "demo")):
        with pytest.raises(SystemExit) as caught:
            main([option])
        assert caught.value.code == 0
        assert text in capsys.readouterr().out
