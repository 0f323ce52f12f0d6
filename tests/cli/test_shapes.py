"""Files as people have them: each is read as its owner means it, or refused before anything is sent."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from chatpool._files.journal import Journal
from chatpool.testing import Reply

BODIES = [{"model": "m", "messages": [{"role": "user", "content": name}], "temperature": 0} for name in "ab"]
LONG = "x" * 200_000

# A file's name and content, and the prompts that are sent.
READ = {
    "pretty bodies": ("in.json", json.dumps(BODIES, indent=2), ["a", "b"]),
    "pretty bodies one after the other": ("in.json", "\n".join(json.dumps(body, indent=4) for body in BODIES), ["a", "b"]),
    "UTF-16 TSV": ("in.tsv", "id\tprompt\r\n1\té\r\n2\tü\r\n".encode("utf-16"), ["é", "ü"]),
    "UTF-16 CSV, big-endian": ("in.csv", b"\xfe\xff" + "id,prompt\n1,é\n".encode("utf-16-be"), ["é"]),
    "a line end in quotes, a short row": ("in.csv", 'id,prompt,x\r\n1,"a\r\nb",u\r\n2,c\r\n3,d,v,\r\n', ["a\r\nb", "c", "d"]),
    "cells over the csv module's limit": ("in.csv", f'id,prompt\n1,{LONG}\n2,"{LONG}\n"\n', [LONG, LONG + "\n"]),
    "old line ends, CSV": ("in.csv", "id,prompt\r1,a\r2,b\r", ["a", "b"]),
    "old line ends, text": ("in.txt", "a\rb\rc", ["a", "b", "c"]),
    "old line ends, JSON lines": ("in.jsonl", '{"prompt":"a"}\r{"prompt":"b"}\r', ["a", "b"]),
    "mixed line ends": ("in.csv", "id,prompt\n1,a\r\n2,b\r3,c\n", ["a", "b", "c"]),
    "empty lines at the end": ("in.csv", "id,prompt\n1,a\n\n\n", ["a"]),
    "sep= in quotes": ("in.csv", '"sep=;"\r\nid;prompt\r\n1;a,b\r\n', ["a,b"]),
    "gzip of several members": ("in.csv.gz", gzip.compress(b"id,prompt\n1,a\n") + gzip.compress(b"2,b\n"), ["a", "b"]),
    "plain text named .gz": ("in.csv.gz", "id,prompt\n1,a\n", ["a"]),
    "a mark before JSON": ("in.jsonl", b'\xef\xbb\xbf{"prompt":"a"}\n{"prompt":"b"}', ["a", "b"]),
    "an index column of pandas": ("in.csv", ",prompt\n0,a\n1,b\n", ["a", "b"]),
    "semicolons in cells": ("in.csv", 'id,prompt\n1,"a;b;c"\n2,"d;e;f"\n', ["a;b;c", "d;e;f"]),
    "conversations of a data set": ("in.jsonl", '{"messages": [{"role": "user", "content": "a"}], "label": 1}\n', ["a"]),
}  # fmt: skip

# A file's name and content, and a part of the message.
REFUSED = {
    "only a header": ("in.csv", "id,prompt\n", "in.csv contains no prompts"),
    "nothing": ("in.csv", "", "in.csv contains no prompts"),
    "only empty lines": ("in.jsonl", "\n\n", "in.jsonl contains no prompts"),
    "NUL bytes": ("in.csv", b"id,prompt\n1,a\x00b\n", "in.csv is not text"),
    "two columns named prompt": ("in.csv", "prompt,prompt\na,b\n", "2 columns are named 'prompt'"),
    "a custom_id used twice": ("in.csv", "custom_id,prompt\nx,a\nx,b\n", "line 3: duplicate custom_id 'x', first used in"),
    "a row of too many cells": ("in.csv", 'id,prompt\n1,"a\nb"\n2,b,c\n', "line 4: more cells than columns (3 and 2)"),
    "a damaged gzip": ("in.csv.gz", gzip.compress(os.urandom(5000))[:-40], "cannot read in.csv.gz: "),
    "a zip named .csv": ("in.csv", b"PK\x03\x04....", "is an Excel workbook or a zip archive; save it as CSV or Parquet"),
    "pandas' JSON of columns": ("in.json", '{"prompt": {"0": "a", "1": "b"}}', "use to_json(path, orient='records', lines="),
    "a web page": ("in.csv", "<html><body>404</body></html>", "no column 'prompt' among <html>"),
    "UTF-16 without a mark": ("in.csv", "id,prompt\n1,a\n".encode("utf-16-le"), "pass --encoding utf-16-le"),
}  # fmt: skip


def write(shell, name, content):
    shell.write(name, content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("shape", READ)
def test_shape_is_read(shell, shape):
    name, content, prompts = READ[shape]
    write(shell, name, content)
    assert shell.run(name, "-o", "out.csv") == 0, shell.err
    assert sorted(request.prompt for request in shell.server.requests) == sorted(prompts)


@pytest.mark.parametrize("shape", REFUSED)
def test_shape_is_refused(shell, shape):
    """Nothing is sent, and no output is left."""
    name, content, message = REFUSED[shape]
    write(shell, name, content)
    assert shell.run(name, "-o", "out.csv") == 2
    assert message in shell.err
    assert shell.server.requests == []
    assert os.listdir() == [name]


def test_cells_are_kept_as_they_were(shell):
    """Numbers with zeros before or after them, formulas, dates, quotes that are not needed."""
    table = "id,prompt,zip,f,n,d\n1,a,00123,=1+1,1.50,1e5\n2,b,0,+x,-0,2024-01-02\n3,c,,@y, ,NA\n"
    shell.write("in.csv", table.encode())
    assert shell.run("in.csv", "-o", "out.csv") == 0
    with open("out.csv") as file:
        written = [line.replace('" "', " ") for line in file.read().splitlines()]
    assert [line.rsplit(",", 2)[0] for line in written] == table.splitlines()


def test_nested_parquet_is_kept(shell):
    """Lists, structs, timestamps with a zone, decimals, dictionaries and nulls."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    import datetime
    import decimal

    zone = pa.array([1, None], pa.timestamp("us", "Europe/Berlin"))
    columns = {
        "prompt": ["a", "b"], "l": [[{"x": 1}], None], "t": zone, "n": pa.array([decimal.Decimal("1.50"), None]),
        "c": pa.array(["u", "u"]).dictionary_encode(), "day": [datetime.date(2024, 1, 2), None], "null": pa.nulls(2),
    }  # fmt: skip
    table = pa.table(columns)
    parquet.write_table(table, "in.parquet")
    assert shell.run("in.parquet", "-o", "out.parquet") == 0
    written = parquet.read_table("out.parquet")
    assert written.select(table.column_names).equals(table)
    assert written["answer"].to_pylist() == ["a", "b"]


def test_output_that_cannot_be_written_is_refused_before_anything_is_sent(shell, monkeypatch):
    """No such folder, or a read-only one in which a table cannot be replaced."""
    shell.write("in.csv", "prompt", "a")
    for output in ("none/out.csv", "none/out.jsonl"):
        assert shell.run("in.csv", "-o", output) == 2
        assert "the folder none of the output does not exist; create it first" in shell.err
    monkeypatch.setattr("chatpool._files.tables.os.access", lambda folder, mode: False)  # root may write everywhere
    assert shell.run("in.csv", "-o", "out.csv") == 2
    assert "the table out.csv cannot be written: the folder" in shell.err
    assert shell.server.requests == []


def test_two_runs_on_one_table(shell):
    """The second is refused while the first one sends, and while it writes the table."""
    pytest.importorskip("fcntl")
    shell.write("in.csv", "prompt", "a", "b")
    assert shell.run("in.csv", "-o", "out.csv") == 0
    shell.write("in.csv", "prompt", "a", "b", "c")
    with Journal("out.csv.chatpool.jsonl"):
        assert shell.run("in.csv", "-o", "out.csv") == 2
    assert "is in use by another run" in shell.err
    codes = []

    def run_again(path, pieces):
        codes.append(shell.run("in.csv", "-o", "out.csv"))
        codes.append(shell.err)
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("chatpool._files.tables.replace_file", run_again)
        assert shell.run("in.csv", "-o", "out.csv") == 1
    code, message = codes
    assert code == 2
    assert "is in use by another run" in message
    shell.server.script("c", Reply("never asked again"))
    assert shell.run("in.csv", "-o", "out.csv") == 0
    assert len(shell.server.requests) == 3
