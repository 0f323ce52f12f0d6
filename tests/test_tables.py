"""``chatpool.table``: the same DataFrame with the answers, for pandas and polars."""

from __future__ import annotations

import pytest

import chatpool
from chatpool.testing import Reply

RIVERS = ["Amazon", None, "Chari", "  ", "Mekong"]


@pytest.fixture(params=["pandas", "polars"])
def library(request):
    return pytest.importorskip(request.param)


def values(frame, name):
    """Return a column as a list, with None for what is missing."""
    return [None if value is None or value != value else value for value in frame[name].to_list()]


def test_frame_comes_back_with_two_more_columns(library, server, pool):
    """Rows with an empty cell are not sent; failed rows say why."""
    server.script("River Chari of 3", Reply(status=400))
    frame = library.DataFrame({"name": RIVERS, "n": [1, 2, 3, 4, 5]})
    out = chatpool.table(frame, "River {name} of {n}", pool=pool)
    assert list(out.columns) == ["name", "n", "answer", "error"]
    assert list(frame.columns) == ["name", "n"]
    assert values(out, "n") == [1, 2, 3, 4, 5]
    assert values(out, "answer") == ["River Amazon of 1", None, None, None, "River Mekong of 5"]
    errors = values(out, "error")
    assert errors[0] is errors[4] is None
    assert errors[1] == errors[3] == "no prompt in this row"
    assert errors[2].startswith("BadRequestError: 400")
    assert len(server.requests) == 3


def test_index_of_pandas_is_kept(server, pool):
    """Repeated labels, too, and missing values of every kind."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"x": ["a", float("nan"), pd.NA, pd.NaT, "b"]}, index=[7, 7, "x", 7, "x"])
    out = chatpool.table(frame, "{x}", pool=pool)
    assert out.index.tolist() == [7, 7, "x", 7, "x"]
    assert values(out.fillna("-"), "answer") == ["a", "-", "-", "-", "b"]
    assert sorted(request.prompt for request in server.requests) == ["a", "b"]


def test_column_types_of_pandas(server, pool):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({0: pd.Series(["a", "b"], dtype="category"), "day": pd.to_datetime(["2024-01-02", None])})
    assert chatpool.table(frame, "{0}", pool=pool)["answer"].tolist() == ["a", "b"]
    assert chatpool.table(frame, "{day} {0}", pool=pool)["answer"].tolist()[0] == "2024-01-02 00:00:00 a"


def test_frame_without_rows_or_answers(library, pool):
    """The new columns are columns of text all the same."""
    assert list(chatpool.table(library.DataFrame({"x": []}), "{x}", pool=pool).columns) == ["x", "answer", "error"]
    out = chatpool.table(library.DataFrame({"x": [None, ""]}), "{x}", pool=pool)
    assert values(out, "answer") == [None, None]
    if library.__name__ == "polars":
        assert out.schema["answer"] == library.String


def test_options_of_map(library, server, pool, tmp_path):
    """Such as journal, parse and dedupe."""
    frame = library.DataFrame({"x": ["1", "2", "1"]})
    for _ in range(2):
        out = chatpool.table(frame, "{x}", pool=pool, journal=tmp_path / "j.jsonl", parse=int, dedupe=True)
        assert out["answer"].to_list() == [1, 2, 1]
    assert len(server.requests) == 2


def test_pool_of_the_environment(library, server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert chatpool.table(library.DataFrame({"x": ["a"]}), "{x}")["answer"].to_list() == ["a"]


def test_template_or_column_that_does_not_fit_is_refused(library, server, pool):
    frame = library.DataFrame({"x": ["a"], "answer": ["b"]})
    with pytest.raises(ValueError, match="has a column 'answer' already; drop it, or name others: answer="):
        chatpool.table(frame, "{x}", pool=pool)
    with pytest.raises(ValueError, match="no column 'y' among x, answer"):
        chatpool.table(frame, "{y}", pool=pool, answer="new")
    with pytest.raises(ValueError, match="names no column"):
        chatpool.table(frame, "x", pool=pool, answer="new")
    with pytest.raises(TypeError, match="not one of its columns"):
        chatpool.table(frame["x"], "{x}", pool=pool)
    assert server.requests == []
    assert list(chatpool.table(frame, "{x}", pool=pool, answer="new").columns) == ["x", "answer", "new", "error"]


@pytest.mark.parametrize("frame", [[{"x": "a"}], {"x": ["a"]}, "a", None])
def test_other_types_are_refused(frame, pool):
    with pytest.raises(TypeError, match="table takes a DataFrame of pandas or polars, not"):
        chatpool.table(frame, "{x}", pool=pool)


def test_lazy_frame_and_pyarrow_table_name_the_remedy(pool):
    pl = pytest.importorskip("polars")
    pa = pytest.importorskip("pyarrow")
    with pytest.raises(TypeError, match=r"collect\(\)"):
        chatpool.table(pl.DataFrame({"x": ["a"]}).lazy(), "{x}", pool=pool)
    with pytest.raises(TypeError, match=r"to_pandas\(\)"):
        chatpool.table(pa.table({"x": ["a"]}), "{x}", pool=pool)


def test_rows_and_pyarrow_columns_are_not_prompts(server, pool):
    """A list of rows looks like a list of messages, and pyarrow's columns yield scalars."""
    with pytest.raises(TypeError, match=r"prompt 0: .*needs 'messages'; if this is a row of a table.*chatpool\.table"):
        pool.map([{"text": "a"}])
    with pytest.raises(TypeError, match=r"prompt 0: each message of a list prompt needs a 'role'; if this is a row"):
        pool.map([[{"prompt": "a"}, {"prompt": "b"}]])
    pa = pytest.importorskip("pyarrow")
    for column in (pa.array(["a"]), pa.chunked_array([["a"]])):
        with pytest.raises(TypeError, match=r"a pyarrow \w+Array; pass prompts\.to_pylist\(\)"):
            pool.map(column)
    assert server.requests == []
