"""``chatpool run --dedupe``: equal prompts are sent once, and each has a line of its own in the output."""

from __future__ import annotations

import json
import random

import pytest

from chatpool._files.history import read_history
from chatpool.testing import FakeChatServer, Reply


def lines(name="out.jsonl"):
    """Return the lines by their custom_id, each of which has one."""
    with open(name, encoding="utf-8") as file:
        documents = [json.loads(line) for line in file]
    found = {document["custom_id"]: document for document in documents}
    assert len(found) == len(documents)
    return found


def answers():
    """Return the answers by custom_id; None for a failure."""
    return {
        name: line["response"]["body"]["choices"][0]["message"]["content"]
        if line["response"]["status_code"] == 200
        else None
        for name, line in lines().items()
    }


def write(shell, rows):
    """Write the input: a prompt for each name."""
    shell.write("in.jsonl", *(json.dumps({"custom_id": name, "prompt": prompt}) for name, prompt in rows.items()))


def run(shell, *more):
    return shell.run("in.jsonl", "-o", "out.jsonl", "--dedupe", *more)


def test_each_duplicate_has_its_own_line(shell):
    """It says that no request was sent for it, and the next run sends nothing."""
    write(shell, {"x": "a", "y": "b", "z": "a", "w": "a"})
    for _ in range(2):
        assert run(shell) == 0
        assert answers() == {"x": "a", "y": "b", "z": "a", "w": "a"}
        assert len(shell.server.requests) == 2
    attempts = {name: line["chatpool"]["attempts"] for name, line in lines().items()}
    assert attempts == {"x": 1, "y": 1, "z": 0, "w": 0}
    assert len({line["id"] for line in lines().values()}) == 4
    history = read_history("out.jsonl")
    assert (history.prompts, history.spent.attempts) == (4, 2)


def test_edit_of_one_duplicate(shell):
    """Of the first, which was sent, too: the others keep its answer, and only the new prompt is sent."""
    write(shell, {"x": "a", "y": "b", "z": "a"})
    run(shell)
    for rows in (
        {"x": "new", "y": "b", "z": "a"},
        {"x": "new", "y": "a", "z": "a"},
        {"v": "a", "x": "new", "y": "a", "z": "new"},
    ):
        write(shell, rows)
        assert run(shell) == 0
        assert {name: answers()[name] for name in rows} == rows
    assert sorted(request.prompt for request in shell.server.requests) == ["a", "b", "new"]


def test_failure_and_later_success_of_duplicates(shell):
    """All of them have the failure, and then the answer."""
    shell.server.script("a", Reply(status=400, code="bad"), Reply("better"))
    write(shell, {"x": "a", "y": "b", "z": "a"})
    assert run(shell) == 1
    assert answers() == {"x": None, "y": "b", "z": None}
    assert lines()["z"]["response"] == lines()["x"]["response"]
    assert run(shell) == 0
    assert answers() == {"x": "better", "y": "b", "z": "better"}
    assert len(shell.server.requests) == 3


def test_killed_before_the_duplicates_had_their_lines(shell):
    """The next run finds the answer by the prompt, even if the row that was sent has been edited since."""
    write(shell, {"x": "a", "z": "a"})
    run(shell, "--limit", "1")
    only = [line for name, line in lines().items() if name == "x"]
    shell.write("out.jsonl", *map(json.dumps, only))
    write(shell, {"x": "c", "z": "a"})
    assert run(shell) == 0
    assert answers() == {"x": "c", "z": "a"}
    assert [request.prompt for request in shell.server.requests] == ["a", "c"]


def test_rows_are_named_by_their_id(shell):
    """And rows without any name by a hash and a number, as without --dedupe."""
    shell.write("in.jsonl", '{"id": 1, "prompt": "a"}', '{"id": 2, "prompt": "a"}')
    assert run(shell) == 0
    assert answers() == {"1": "a", "2": "a"}
    shell.write("in.txt", "a", "b", "a", "a")
    for options in (["-o", "one.jsonl", "--dedupe"], ["-o", "two.jsonl"]):
        assert shell.run("in.txt", *options) == 0
    assert lines("one.jsonl").keys() == lines("two.jsonl").keys()
    assert len(lines("one.jsonl")) == 4


def test_without_dedupe_the_next_run_keeps_the_copies(shell):
    write(shell, {"x": "a", "z": "a"})
    run(shell)
    assert shell.run("in.jsonl", "-o", "out.jsonl") == 0
    assert answers() == {"x": "a", "z": "a"}
    assert len(shell.server.requests) == 1


def test_table_with_names_finds_the_answer_of_an_edited_duplicate(shell):
    shell.write("in.csv", "custom_id,prompt", "x,a", "z,a")
    assert shell.run("in.csv", "-o", "out.csv", "--dedupe") == 0
    shell.write("in.csv", "custom_id,prompt", "x,c", "z,a")
    assert shell.run("in.csv", "-o", "out.csv", "--dedupe") == 0
    with open("out.csv") as file:
        assert file.read() == "custom_id,prompt,answer,error\nx,c,c,\nz,a,a,\n"
    assert [request.prompt for request in shell.server.requests] == ["a", "c"]


@pytest.mark.parametrize("seed", range(15))
def test_random_edits(shell, seed):
    """After each run every name has one line: the right answer, or a failure; no good answer is asked for twice."""
    rng = random.Random(seed)
    rows = {f"n{number}": rng.choice("abcde") for number in range(12)}
    answered, is_repaired = [], False

    def reply(request):
        if not is_repaired and rng.random() < 0.3:
            return Reply(status=400)
        answered.append(request.prompt)
        return Reply(f"<{request.prompt}>")

    with FakeChatServer(reply=reply) as server:
        for step in range(5):
            is_repaired = step == 4
            write(shell, rows)
            code = run(shell, "--base-url", server.url, "--max-tries", "1")
            found = answers()
            assert {found[name] for name in rows} <= {None, *(f"<{prompt}>" for prompt in "abcdefgh")}
            assert all(found[name] in (None, f"<{prompt}>") for name, prompt in rows.items())
            assert code == (0 if all(found[name] for name in rows) else 1)
            assert len(answered) == len(set(answered)), "an answered prompt was sent again"
            for name in rng.sample(sorted(rows), 3):
                rows[name] = rng.choice(
                    [prompt for prompt in "abcdefgh" if prompt in rows.values() or prompt not in answered]
                )
        assert code == 0
