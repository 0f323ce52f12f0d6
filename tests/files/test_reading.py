"""Files of all kinds become rows of prompts, or are refused with the option that decides. Nothing is lost in silence."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pytest

from chatpool._files.choosing import Choice
from chatpool._files.inputs import Input, InputError
from chatpool._files.templates import Template
from chatpool._protocol.requests import CHAT_PATH
from chatpool.errors import ConfigurationError

ROWS = [{"prompt": "a"}, {"prompt": "b\nb"}, {"prompt": "ü {c}"}]
PROMPTS = ["a", "b\nb", "ü {c}"]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
MESSAGES = [{"role": "user", "content": "a"}]
CSV = 'id,prompt\n1,a\n2,"b\nb"\n3,ü {c}\n'


@pytest.fixture
def read(tmp_path):
    """Return a function that writes a file and returns what is read from it."""

    def read(content, name="input", kind=None, *, encoding=None, **choice):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        prompts = Input([str(path)], kind, choice=Choice(**choice), encoding=encoding)
        try:
            prompts.check(lambda request: json.dumps(request.prompt))
            read.notes = prompts.notes()
            read.requests = list(prompts)
            return [request.prompt for request in read.requests]
        finally:
            prompts.close()

    return read


def refusal(read, *arguments, **options):
    with pytest.raises(ConfigurationError) as caught:
        read(*arguments, **options)
    return str(caught.value)


LAYOUTS = {
    "lines": LINES,
    "lines with CRLF": LINES.replace("\n", "\r\n"),
    "lines without a last newline": LINES.rstrip(),
    "objects on one line": LINES.replace("\n", ""),
    "objects on one line with spaces": LINES.replace("\n", "  "),
    "array": json.dumps(ROWS),
    "array with a last newline": json.dumps(ROWS) + "\n",
    "pretty array": json.dumps(ROWS, indent=2),
    "pretty array without indents": json.dumps(ROWS, indent=0),
    "array with a row a line": "[\n" + ",\n".join(json.dumps(row) for row in ROWS) + "\n]\n",
    "pretty objects, as jq writes them": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "pretty objects, indented by tabs": "\n\n".join(json.dumps(row, indent="\t") for row in ROWS),
    "strings in an array": json.dumps(PROMPTS),
    "strings in a pretty array": json.dumps(PROMPTS, indent=4),
    "strings, one a line": "".join(json.dumps(prompt) + "\n" for prompt in PROMPTS),
}


@pytest.mark.parametrize("name", ["input", "input.json", "input.jsonl"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_json(read, layout, name):
    """The layout does not matter, and neither does the file's name."""
    assert read(LAYOUTS[layout], name) == PROMPTS
    assert read("\ufeff" + LAYOUTS[layout], name) == PROMPTS


@pytest.mark.parametrize("size", [10, 70_000, 300_000])
def test_long_rows_of_an_array(read, size):
    """Rows are read piece by piece, whatever their length."""
    prompts = [f"{number}{'x' * size}" for number in range(8)]
    assert read(json.dumps(prompts)) == prompts
    assert read(json.dumps([{"prompt": prompt} for prompt in prompts], indent=1)) == prompts


def test_list_of_messages_is_one_prompt(read):
    """In a line, in an array of lists, and as a whole file."""
    assert read(json.dumps(MESSAGES)) == [MESSAGES]
    assert read(json.dumps(MESSAGES, indent=2)) == [MESSAGES]
    assert read(f"{json.dumps(MESSAGES)}\n{json.dumps(MESSAGES)}\n") == [MESSAGES] * 2
    assert read(json.dumps([MESSAGES, MESSAGES])) == [MESSAGES] * 2


def test_array_of_batch_requests(read):
    body = {"model": "m", "messages": MESSAGES}
    lines = [{"custom_id": f"r{n}", "method": "POST", "url": CHAT_PATH, "body": body} for n in range(3)]
    assert read(json.dumps(lines)) == [body] * 3
    assert [request.custom_id for request in read.requests] == ["r0", "r1", "r2"]


BROKEN = {
    "comma after each object": (
        '{"prompt": "a"},\n{"prompt": "b"},\n',
        ["line 1: not valid JSON", "line 2: not valid"],
    ),
    "damaged first line": ('{"prompt": "a\n{"prompt": "b"}\n{"prompt": "c"}\n', ["line 1: not valid JSON"]),
    "damaged row of an array": ('[\n{"prompt": "a"},\n{"prompt": b},\n{"prompt": "c"}\n]', ["line 3: not valid JSON"]),
    "comma at the end of an array": ('["a",\n"b",\n]', ["line 3: not valid JSON"]),
    "array without an end": ('["a",\n"b"\n', ["not valid JSON"]),
    "two arrays": ('[{"prompt": "a"}]\n\n"b"', ["line 1: a list prompt must be"]),
    "something after a pretty array": ('[\n"a"\n]\n"b"', ["line 4: something follows the end of the array"]),
    "braces that are not JSON": ("{name} is a river\n{name} is a lake\n", ["line 1: not valid JSON"]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_damaged_json_is_refused_with_its_line(read, kind):
    """It is never sent as text."""
    content, parts = BROKEN[kind]
    message = refusal(read, content)
    assert "nothing was sent" in message
    for part in parts:
        assert part in message


DOUBTFUL = {
    "a table": (
        "question,answer\nWhat is 1+1?,2\nWhat is 2+2?,4\n",
        "columns question, answer; pass --prompt-field ques",
    ),
    "a table with tabs": ("question\tanswer\nWhat?\t2\n", "columns question, answer; pass --prompt-field question"),
    "a table with semicolons": ("id;text\n1;What?\n2;Who?\n", "columns id, text; pass --prompt-field text"),
    "text and then JSON": (
        'header\n{"prompt": "a"}\n{"prompt": "b"}\n',
        "looks like JSON (its line 2); pass --input-format",
    ),
    "strings with commas after them": ('"a",\n"b",\n', "looks like JSON (its line 1); pass --input-format jsonl"),
    "binary data": (b"\0\1\2", "is not text"),
}


@pytest.mark.parametrize("kind", DOUBTFUL)
@pytest.mark.parametrize("name", ["input", "input.txt"])
def test_doubtful_file_is_refused_with_the_option_that_decides(read, kind, name):
    content, message = DOUBTFUL[kind]
    assert message in refusal(read, content, name)
    if isinstance(content, str):
        assert read(content, name, "text") == content.splitlines()


TEXTS = [
    "Hello, world\nGood, morning, moon\n",
    "Say: a;b\nSay: c\n",
    "[INST] Name a river [/INST]\n[INST] Name a lake [/INST]\n",
    '"To be or not to be": who said it?\nWho?\n',
    "7\n8\n",
    "one line, with a comma",
]


@pytest.mark.parametrize("content", TEXTS)
def test_text(read, content):
    """One prompt a line, if it looks neither like JSON nor like a table."""
    assert read(content) == content.splitlines()


def test_blank_lines_of_a_text_are_rows_without_a_prompt(read):
    assert read("a\n\n  \nb\n") == ["a", "b"]
    assert read.notes == ["2 rows have no prompt, and nothing is sent for them: line 2, line 3"]


TABLES = {
    "commas": CSV,
    "CRLF": CSV.replace("\n1", "\r\n1").replace("\n2", "\r\n2").replace("\n3", "\r\n3"),
    "semicolons": CSV.replace(",", ";"),
    "tabs": CSV.replace(",", "\t"),
    "bars": CSV.replace(",", "|"),
    "sep=": "sep=;\n" + CSV.replace(",", ";"),
    "sep= with quotes": '"sep=,"\r\n' + CSV,
    "a blank line": CSV.replace("3", "\n3"),
    "Prompt": CSV.replace("prompt", "Prompt"),
    "a space after the separator": CSV.replace(",prompt", ", prompt"),
    "prompt and Prompt": CSV.replace("id,prompt", "Prompt,prompt"),
}


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t"])
@pytest.mark.parametrize("kind", TABLES)
def test_tables(read, kind, name):
    """The separator is found by the file's content, and so is the column, whatever its case."""
    assert read(TABLES[kind], name) == PROMPTS


@pytest.mark.parametrize("content", ["prompt\na\nb\n", '"Prompt"\n"a"\n"b"\n', 'prompt\r\na\r\n"b"\r\n'])
def test_single_column_is_a_table_if_it_is_named_prompt(read, content):
    """Its name is not sent."""
    assert read(content, "t.csv") == read(content) == ["a", "b"]
    assert "looks like a table with the columns" in refusal(read, content, "t.txt")


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("content", [CSV, LINES, json.dumps(ROWS, indent=2)], ids=["CSV", "JSON lines", "JSON"])
def test_encodings_with_a_mark(read, encoding, content):
    assert read(content.encode(encoding)) == PROMPTS


def test_named_encoding(read):
    """Without its name, the bad lines are reported with the option that names it."""
    content = "prompt\nplain\ncaf\u00e9\n\u20ac\n".encode("cp1252")
    assert read(content, "t.csv", encoding="cp1252") == ["plain", "caf\u00e9", "\u20ac"]
    message = refusal(read, content, "t.csv")
    assert (
        "t.csv has 2 bad lines; nothing was sent:\n  line 3: not UTF-8; if it has another encoding, name it" in message
    )
    assert "--encoding cp1252" in message
    assert "line 4: not UTF-8" in message
    assert "--encoding utf-16-le" in refusal(read, "a\n".encode("utf-16-le"))
    assert read("a\n".encode("utf-16-le"), encoding="utf-16-le") == ["a"]
    assert "--encoding: Python knows no encoding 'cp-1'" in refusal(read, "a", encoding="cp-1")


COMPRESSIONS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("stem", ["t.csv", "t"])
def test_compressed_files(read, name, stem):
    """They are recognized by their content; the name without the compression's ending still counts."""
    assert read(COMPRESSIONS[name](CSV.encode()), f"{stem}.{name}") == PROMPTS
    assert read(COMPRESSIONS[name](CSV.encode()), stem) == PROMPTS


def test_zstd(read):
    zstandard = pytest.importorskip("zstandard")
    content = zstandard.ZstdCompressor().compress(CSV.encode())
    assert read(content * 1, "t.csv.zst") == PROMPTS
    twice = zstandard.ZstdCompressor().compress(b"4,d\n")
    assert read(content + twice, "t.csv.zst") == [*PROMPTS, "d"]


def test_incomplete_gzip(read):
    content = gzip.compress(("prompt\n" + "".join(f"{n * 7919}\n" for n in range(10_000))).encode())
    assert "t.csv.gz: Compressed file ended before" in refusal(read, content[:-100], "t.csv.gz")


FOREIGN = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n": "Git LFS pointer",
    b"PK\x03\x04rest": "an Excel workbook",
    b"\xd0\xcf\x11\xe0rest": "an old Excel workbook",
    b"%PDF-1.7": "a PDF",
}


@pytest.mark.parametrize("content", FOREIGN)
@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.csv", "t.txt", "t"])
def test_other_kinds_of_files_are_refused_in_one_sentence(read, content, name):
    message = refusal(read, content, name)
    assert FOREIGN[content] in message
    assert "\n" not in message


def test_parquet(read, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"prompt": [*PROMPTS, None, " "], "n": [1, 2, None, 4, 5]}), tmp_path / "t")
    content = (tmp_path / "t").read_bytes()
    assert read(content) == PROMPTS
    assert read.notes == ["columns not sent: n", "2 rows have no prompt, and nothing is sent for them: row 4, row 5"]
    assert read(content, "p.csv", template=Template("{n}: {prompt}")) == ["1: a", "2: b\nb"]
    assert "not a valid Parquet file" in refusal(read, content[:50], "p.parquet")


def test_quotes_as_pandas_reads_them(read):
    """A quote after the closing one is a character; a row's line is its first one."""
    assert read('prompt,l\n"a",1\n"b\nb",2\n"c" ,3\nd "e" f,4\n', "t.csv") == ["a", "b\nb", "c ", 'd "e" f']
    message = refusal(read, 'prompt,l\n"a\na",1\nb,2,3\n\n"c" ,1\nd,1,1\n', "t.csv")
    assert "  line 4: more cells than columns (3 and 2)" in message
    assert "  line 7: more cells than columns (3 and 2)" in message
    assert "  line 3: the quote that begins in this row is never closed" in refusal(
        read, 'prompt\na\n"b\nc\nd\n', "t.csv"
    )
    assert read("prompt,l\na\n", "t.csv") == ["a"]


def test_pandas_reads_the_same_rows(read):
    pd = pytest.importorskip("pandas")
    import io

    content = 'prompt,x\n"a" b,1\n c ,2\n"d""e",3\n"f\r\ng",4\n"h",\n'
    expected = pd.read_csv(io.StringIO(content, newline=""))["prompt"].tolist()
    assert read(content, "t.csv") == expected


# Choosing what is sent.


def test_fields_that_are_not_sent_are_named(read):
    assert read('{"prompt": "a", "system_prompt": "x", "label": 3}\n{"prompt": "b", "user": "u"}\n') == ["a", "b"]
    assert read.notes == ["fields not sent: system_prompt, label, user"]
    read("prompt,model,system\na,m,s\n", "t.csv")
    assert read.notes == ["columns not sent: model, system"]


def test_system_beside_prompt_is_sent(read):
    assert read('{"system": "s", "prompt": "a"}') == [
        [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    ]


def test_messages_with_columns_of_a_data_set(read):
    """Fields that no API has are not sent; those that a server may understand are."""
    row = {"id": 7, "source": "web", "messages": MESSAGES, "temperature": 0, "top_k": 5, "metadata": {"row": 1}}
    assert read(json.dumps(row)) == [{"messages": MESSAGES, "temperature": 0, "top_k": 5}]
    assert read.notes == ["fields not sent: source, metadata"]
    assert read(json.dumps({**row, "store": True}))[0]["metadata"] == {"row": 1}


@pytest.mark.parametrize("messages", [[], "hi", None, ["hi"], [{"content": "no role"}], {}])
def test_messages_that_are_none(read, messages):
    """On their own, and in the body of a Batch request."""
    for row in ({"messages": messages}, {"body": {"model": "m", "messages": messages}}):
        assert "line 1: 'messages' must be a non-empty list of objects, each with a 'role'" in refusal(
            read, json.dumps(row)
        )


def test_bare_bodies_of_other_endpoints(read):
    """By their fields, or by --endpoint."""
    body = {"model": "text-embedding-3-small", "input": "a"}
    assert read(json.dumps({**body, "metadata": {"row_id": 1}})) == [body]
    assert read.requests[0].path == "/v1/embeddings"
    assert read.notes == ["fields not sent: metadata"]
    read(json.dumps(body), endpoint="/v1/responses")
    assert read.requests[0].path == "/v1/responses"
    assert read(json.dumps({"model": "m", "prompt": "a"}), endpoint="/v1/completions") == [
        {"model": "m", "prompt": "a"}
    ]


def test_rows_of_a_data_set_with_input_are_not_embeddings(read):
    """Without a model, it is not a request's body."""
    message = refusal(read, '{"instruction": "Add", "input": "1, 2", "output": "3"}')
    assert "this one has instruction, input, output; pass --prompt-field instruction" in message
    template = Template("{instruction}: {input}")
    assert read('{"instruction": "Add", "input": "1, 2", "output": "3"}', template=template) == ["Add: 1, 2"]


def test_text_for_another_endpoint(read):
    assert read("a\nb\n", endpoint="/v1/embeddings", model="e") == [
        {"model": "e", "input": "a"},
        {"model": "e", "input": "b"},
    ]
    assert read("prompt\na\n", "t.csv", endpoint="/v1/completions", model="m") == [{"model": "m", "prompt": "a"}]
    assert "needs the name of its model: --model" in refusal(read, "a\n", endpoint="/v1/embeddings")


def test_azure_path(read):
    line = {
        "custom_id": "t",
        "method": "POST",
        "url": "/chat/completions",
        "body": {"model": "d", "messages": MESSAGES},
    }
    assert read(json.dumps(line)) == [line["body"]]


def test_prompt_field(read):
    """A named column makes a file without an extension a table; its case does not matter."""
    content = "Question,answer\nWhat is 1+1?,2\nWho, me?,3\n".replace("Who, me?", '"Who, me?"')
    for name in ("t.csv", "t", "t.txt"):
        assert read(content, name, prompt_field="question") == ["What is 1+1?", "Who, me?"]
    assert read('{"q": "a", "prompt": "b"}', prompt_field="q") == ["a"]
    assert "line 1: no column 'x' among Question, answer" in refusal(read, content, "t.csv", prompt_field="x")
    assert "line 2: no column 'q' among r" in refusal(read, '{"q": "a"}\n{"r": "b"}\n', prompt_field="q")


def test_template(read):
    """Every row has every field; a row with an empty one has no prompt."""
    template = Template("Translate into {lang}: {text} {{x}}")
    content = "text,lang,n\nhi {n},fr,1\nbye,,2\n"
    assert read(content, "t.csv", template=template) == ["Translate into fr: hi {n} {x}"]
    assert read.notes == ["columns not sent: n", "1 row has no prompt, and nothing is sent for it: line 3"]
    assert "no column 'lang' among text" in refusal(read, "text\na\n", "t.csv", template=template)
    message = refusal(read, '{"text": "a", "lang": "fr"}\n{"text": "b"}\n', template=template)
    assert "line 2: no column 'lang' among text" in message


@pytest.mark.parametrize("text", ["no field", "{text", "text}", "{text} }", "{{text}}"])
def test_template_that_names_nothing_is_refused(text):
    with pytest.raises(ValueError, match=r"brace|names no column|single"):
        Template(text)


def test_system_with_fields(read):
    system = Template('Answer in {lang} as {"a": 1}', is_lenient=True)
    assert read("prompt,lang\nhi,fr\n", "t.csv", system=system) == [
        [{"role": "system", "content": 'Answer in fr as {"a": 1}'}, {"role": "user", "content": "hi"}]
    ]
    assert Template('As {"a": {"b": 1}} or {{x}}', is_lenient=True).fields == []
    assert Template('As {"a": {"b": 1}} or {{x}}', is_lenient=True).fill({}) == 'As {"a": {"b": 1}} or {{x}}'


def test_id_field(read):
    """It names the rows, and must be unique and never empty."""
    read("key,prompt\nx,a\ny,a\n", "t.csv", id_field="key")
    assert [request.custom_id for request in read.requests] == ["x", "y"]
    assert "line 3: duplicate key 'x', first used in line 2" in refusal(
        read, "key,prompt\nx,a\nx,b\n", "t.csv", id_field="key"
    )
    assert "line 3: 'key' is empty" in refusal(read, "key,prompt\nx,a\n,b\n", "t.csv", id_field="key")
    read(json.dumps({"key": 7, "messages": MESSAGES}), id_field="key")
    assert read.requests[0].custom_id == "7"


def test_id_is_found_by_itself_where_it_is_unique(read):
    read('{"id": "r1", "prompt": "x"}\n{"id": 2, "prompt": "y"}\n')
    assert [request.custom_id for request in read.requests] == ["r1", "2"]
    read('{"id": "r1", "prompt": "x"}\n{"id": "r1", "prompt": "y"}\n')
    assert [request.custom_id for request in read.requests] == [None, None]
    read('{"id": "r1", "prompt": "x"}\n{"prompt": "y"}\n')
    assert [request.custom_id for request in read.requests] == [None, None]


def test_empty_prompts_are_rows_without_an_answer(read):
    """In every kind of file."""
    assert read('{"prompt": "a"}\n{"prompt": ""}\n{"prompt": "  "}\n{"prompt": null}\n') == ["a"]
    assert read.notes == ["3 rows have no prompt, and nothing is sent for them: line 2, line 3, line 4"]
    assert read("id,prompt\n1,a\n2,\n,\n", "t.csv") == ["a"]
    assert read.notes == ["2 rows have no prompt, and nothing is sent for them: line 3, line 4"]


# Several files.


def test_several_files_and_patterns(tmp_path):
    """In the order given, those of a pattern by name; bad lines are named with their file."""
    for name, content in {"b.csv": "prompt\nb\n", "a.jsonl": '"a"\n', "c.csv": "prompt,x\nc,1\n"}.items():
        (tmp_path / name).write_text(content)
    prompts = Input([str(tmp_path / "*.csv"), str(tmp_path / "a.jsonl")])
    prompts.check(lambda request: request.prompt)
    assert [request.prompt for request in prompts] == ["b", "c", "a"]
    prompts.close()
    (tmp_path / "d.csv").write_text("prompt\nd,e\n")
    prompts = Input([str(tmp_path / "*.csv")])
    with pytest.raises(InputError, match=r"3 files have one bad line.*\n  \S+d.csv, line 2: more cells"):
        prompts.check(lambda request: request.prompt)
    prompts.close()
    with pytest.raises(InputError, match="no file matches"):
        Input([str(tmp_path / "*.tsv")])
    with pytest.raises(InputError, match="is given twice"):
        Input([str(tmp_path / "*.csv"), str(tmp_path / "b.csv")])
