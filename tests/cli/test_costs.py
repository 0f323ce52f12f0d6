"""What a run costs: --price, --cost-budget, and the sentences of --dry-run. And the command's words for settings."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from chatpool._cli.main import main
from chatpool._cli.words import in_command_words
from chatpool.testing import FakeChatServer, Reply
from tests.snippets import ROOT

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
PRICE = ["--price", "gpt-6-luna=1,10"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The arguments of a run of ten prompts, each of which costs 60 millionths of a dollar."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("".join(f"question {number}\n" for number in range(10)))
    with FakeChatServer(reply=lambda request: Reply("a", usage=USAGE)) as server:
        yield ["run", "in.txt", "-o", "out.jsonl", "--base-url", server.url, "--workers", "1"]


def test_summary_shows_the_cost(command, capsys):
    assert main([*command, *PRICE]) == 0
    assert "cost: $0.0006" in capsys.readouterr().err


def test_cost_budget_stops_the_run(command, capsys):
    """Four of the ten prompts fit; the others are not sent, and the message names the option."""
    limit = ["--param", "max_tokens=5", "--cost-budget", "0.0004"]
    assert main([*command, *PRICE, *limit]) == 1
    err = capsys.readouterr().err
    assert "--cost-budget=0.0004 of this run is spent" in " ".join(err.split())
    assert "cost_budget" not in err


def test_cost_budget_without_a_price_names_the_option(command, capsys):
    assert main([*command, "--cost-budget", "1"]) == 2
    err = capsys.readouterr().err
    assert "--cost-budget needs a price for the model 'gpt-6-luna'; pass --price gpt-6-luna=IN,OUT" in err
    assert err.startswith("chatpool: prompt 1: ")


def test_dry_run_counts_answers_only_if_they_have_a_limit(command, capsys):
    assert main([*command, *PRICE, "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "10 prompts: 0 already done, 10 to send"
    assert out[1].endswith(
        "tokens of prompts; 10 answers have no limit, and no estimate: set one with --param max_tokens=N"
    )
    assert out[2].endswith(" for the prompts alone")


def test_dry_run_with_limits_gives_the_most_tokens_and_dollars(command, capsys):
    assert main([*command, *PRICE, "--param", "max_tokens=100", "--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].endswith("tokens of prompts, and at most 1,000 of answers")
    assert out[2].startswith("about $0.01")
    assert out[2].endswith(" at most")


def test_dry_run_of_a_run_that_is_done(command, capsys):
    assert main([*command, *PRICE]) == 0
    capsys.readouterr()
    assert main([*command, *PRICE, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "10 prompts: 10 already done, 0 to send",
        "so far: 10 requests, 150 tokens, $0.0006",
    ]


@pytest.mark.parametrize("price", ["gpt-6-luna", "gpt-6-luna=1", "=1,2", "m=1,x", "m=-1,2", "m=1,2,3,4", "m=nan,1"])
def test_a_price_that_is_not_one_is_a_usage_error(command, capsys, price):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--price", price])
    assert caught.value.code == 2
    assert f"'{price}' is not MODEL=IN,OUT, in dollars for a million tokens" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "usage"), [(["run", "x", "--worker-count", "3"], "usage: chatpool run ")])
def test_an_unknown_option_prints_the_usage_of_its_command(capsys, arguments, usage):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(usage)
    assert "chatpool run: error: unrecognized arguments: --worker-count 3" in err


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("max_workers must be a whole number", "--workers must be a whole number"),
        ("not sent: token_budget=5 of this run is spent", "not sent: --token-budget=5 of this run is spent"),
        ("timeout must be a number", "--timeout must be a number"),
        ("the read timeout of 5 s has passed", "the read timeout of 5 s has passed"),
        ("model must be a str", "--model must be a str"),
        ("the model does not exist", "the model does not exist"),
        ("prompt 4: too long", "prompt 5: too long"),
        (
            "no API key: set the environment variable OPENAI_API_KEY or pass api_key=…",
            "no API key: set the environment variable OPENAI_API_KEY or pass --header 'NAME: VALUE'",
        ),
        ("max_workers_2 and 'max_workers'", "max_workers_2 and 'max_workers'"),
    ],
)
def test_messages_name_options_in_place_of_settings(message, words):
    assert in_command_words(message) == words


def test_documented_line_takes_a_price_from_litellms_file(tmp_path):
    """The line of the page on the command, with an excerpt of LiteLLM's file."""
    if shutil.which("jq") is None:
        pytest.skip("needs jq")
    page = (ROOT / "docs" / "command.md").read_text()
    line = re.search(r"^jq .*\n .*$", page, re.MULTILINE)[0]
    (tmp_path / "model_prices_and_context_window.json").write_text(
        '{"gpt-6-luna": {"input_cost_per_token": 1e-07, "output_cost_per_token": 5e-07}}'
    )
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [float(price) for price in done.stdout.split(",")] == pytest.approx([0.1, 0.5])
