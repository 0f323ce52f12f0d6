"""The command."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from chatpool import __version__
from chatpool._cli.main import main


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "chatpool", *arguments], capture_output=True, text=True, timeout=60)


def test_demo_shows_answers_and_summary():
    """With latency, 429s, 500s and a stall, every prompt is answered; exit code 0, and no bar on stderr in a log."""
    done = run("demo")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "answers[:3] == ['0 × 0 = 0', '1 × 1 = 1', '2 × 2 = 4']" in done.stdout
    assert "300 prompts: 300 answered, 0 failed" in done.stdout
    assert "s: at the second attempt" in done.stdout  # the stalled request timed out, and was retried
    retries = int(re.search(r"requests: \d+, (\d+) retries", done.stdout)[1])
    assert retries > 5


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
