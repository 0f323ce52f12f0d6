"""Random tables: after failures, cuts, edits and reorderings, every row has its own answer, and nothing is asked twice.

The seeds are few, for speed; the same function has checked many more.
"""

from __future__ import annotations

import csv
import json
import os
import random
import threading
from collections import Counter

import pytest

from chatpool._cli.main import main
from chatpool.testing import FakeChatServer, Reply

TABLES = 40  # of up to 25 rows, four runs each
PIECES = [
    *"abcxyz019 ,;|\t'\"#{}[]\\/=+-@", '""', '"a"', "\n", "\r", "\r\n", "\n\n", "é", "漢字", "🎉", "\u2028", "\u0085", "\ufeff",
    "\u00a0", "e\u0301", "NA", "nan", "None", "null", "true", "{x}", "{{y}}", "sep=;", "prompt", "=1+1", " ", "  ", "\u200b",
]  # fmt: skip
BLANKS = ["", " ", "\n", "\t "]


class Server:
    """Answers a prompt with itself in angle brackets; fails some, until they are repaired."""

    def __init__(self, rng):
        self.rng, self.is_repaired = rng, False
        self.answered = Counter()
        self._lock = threading.Lock()

    def reply(self, request):
        with self._lock:
            if not self.is_repaired and self.rng.random() < 0.2:
                return Reply(status=self.rng.choice([400, 404, 422]))
            self.answered[request.prompt] += 1
        return Reply(f"<{request.prompt}>")


def cell(rng):
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(8)))


def prompt(rng):
    if rng.random() < 0.15:
        return rng.choice(BLANKS)
    return cell(rng) + rng.choice("abc") + (cell(rng) if rng.random() < 0.7 else "")


def make_rows(rng, count):
    return [[prompt(rng), cell(rng), cell(rng)] for _ in range(count)]


def edit(rng, rows):
    """Reorder, drop, repeat, change and add rows."""
    rows = [list(row) for row in rows]
    rng.shuffle(rows)
    rows = rows[rng.randrange(3) :]
    rows += [list(rng.choice(rows)) for _ in range(rng.randrange(3)) if rows]
    for row in rows:
        if rng.random() < 0.15:
            row[rng.randrange(3)] = prompt(rng)
    return make_rows(rng, rng.randrange(1, 3)) + rows


def write(path, rows, header, how):
    with open(path, "w", encoding=how["encoding"], newline="") as file:
        writer = csv.writer(file, delimiter=how["separator"], lineterminator=how["line_end"], quoting=how["quoting"])
        writer.writerows([header, *rows])


def read(path, separator):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file, delimiter=separator))


def wrong_rows(written, rows, header):
    """Return the rows that are not the input's with the right answer or an error."""
    if written[0] != [*header, "answer", "error"] or len(written) != len(rows) + 1:
        return [written[0], len(written), len(rows) + 1]
    return [pair for pair in zip(rows, written[1:]) if not is_right(*pair)]


def is_right(row, out):
    if out[:3] != row:
        return False
    answer, error = out[3:]
    if not row[0].strip():
        return (answer, error) == ("", "no prompt in this row")
    return (answer == f"<{row[0]}>" and error == "") or (answer == "" and error != "")


def check_table(seed, folder):
    """Run the command on a random table four times, with changes in between; return the number of rows checked."""
    rng = random.Random(seed)
    separator = rng.choice(",;\t|")
    how = {
        "separator": separator,
        "encoding": rng.choice(["utf-8", "utf-8-sig", "utf-16"]),
        **rng.choice(
            [{"line_end": "\r\n", "quoting": csv.QUOTE_MINIMAL}, {"line_end": "\n", "quoting": csv.QUOTE_ALL}]
        ),
    }  # with "\n" alone, Python's writer leaves a lone "\r" without quotes
    name = "out.tsv" if separator == "\t" else "out.csv"
    path, out = os.path.join(folder, "in.csv"), os.path.join(folder, name)
    header, rows = ["prompt", "x", rng.choice(["y", "x", "id", "Y y"])], make_rows(rng, rng.randrange(1, 25))
    options = ["--dedupe"] if rng.random() < 0.3 else []
    server, checked, most, lost = Server(rng), 0, Counter(), Counter()
    with FakeChatServer(reply=server.reply) as fake:
        for step in range(4):
            server.is_repaired = step == 3
            if not any(row[0].strip() for row in rows):
                rows.append(["something", "", ""])
            write(path, rows, header, how)
            needed = Counter(row[0] for row in rows if row[0].strip())
            most |= Counter(dict.fromkeys(needed, 1)) if options else needed
            command = ["run", path, "-o", out, "--base-url", fake.url, "--no-progress", "--max-tries", "1", *options]
            code = main(command)
            written = read(out, separator)
            wrong = wrong_rows(written, rows, header)
            assert not wrong, (seed, step, wrong[:3])
            failed = sum(bool(row[0].strip()) and not line[3] for row, line in zip(rows, written[1:]))
            assert code == (1 if failed else 0), (seed, step)
            assert not (server.is_repaired and failed), (seed, step)
            asked_again = server.answered - most - lost
            assert not asked_again, (seed, step, asked_again)
            checked += len(rows)
            if rng.random() < 0.3:  # a torn last line, as after kill -9
                journal = f"{out}.chatpool.jsonl"
                with open(journal, "rb+") as file:
                    lines = file.readlines()
                    if len(lines) > 1:
                        lost[prompt_of(lines[-1])] += 1
                        file.truncate(sum(map(len, lines)) - rng.randrange(1, len(lines[-1])))
            rows = edit(rng, rows) if rng.random() < 0.8 else rows
    return checked


def prompt_of(line):
    """Return the prompt whose answer is in a line of the journal."""
    document = json.loads(line)
    if document["response"]["status_code"] != 200:
        return None
    return document["response"]["body"]["choices"][0]["message"]["content"][1:-1]


@pytest.mark.parametrize("seed", range(TABLES))
def test_random_table(seed, tmp_path, capsys):
    assert check_table(seed, str(tmp_path))
