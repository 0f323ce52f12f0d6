"""Columns of prompts from pandas, NumPy and polars, and answers as pydantic models."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from chatpool import ChatPool, ParseError
from chatpool.testing import Reply

EXAMPLES = Path(__file__).parents[2] / "examples"
RIVERS = ["Amazon", "Chari", "Größe 河"]


@pytest.fixture
def environment(server, monkeypatch):
    """Point the environment variables to the server."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")


def prompts_sent(server):
    return [request.prompt for request in server.requests]


PANDAS_COLUMNS = {
    "default": {},
    "object": {"dtype": "object"},
    "StringDtype": {"dtype": "string"},
    "Categorical": {"dtype": "category"},
    "odd index": {"index": [7, 7, "x"]},
}


@pytest.mark.parametrize("how", PANDAS_COLUMNS.values(), ids=PANDAS_COLUMNS)
def test_pandas_column(server, pool, how):
    """Answers become a new column, in the order of the rows, for every type of column."""
    pd = pytest.importorskip("pandas")
    df = pd.DataFrame({"prompt": pd.Series(RIVERS, **how)})
    df["answer"] = pool.map(df["prompt"])
    assert df["answer"].tolist() == RIVERS
    assert sorted(prompts_sent(server)) == sorted(RIVERS)


def numpy_strings(np):
    return np.array(RIVERS)


def numpy_objects(np):
    return np.array(RIVERS, dtype=object)


def numpy_matrix_row(np):
    return np.array([RIVERS, RIVERS])[0]


@pytest.mark.parametrize("make", [numpy_strings, numpy_objects, numpy_matrix_row])
def test_numpy_array(server, pool, make, tmp_path):
    """numpy.str_ is a str: it is sent, written to the journal and found there."""
    np = pytest.importorskip("numpy")
    for _ in range(2):
        assert pool.map(make(np), journal=tmp_path / "answers.jsonl", dedupe=True) == RIVERS
    assert sorted(prompts_sent(server)) == sorted(RIVERS)
    assert [result.prompt for result in pool.imap(make(np))] == RIVERS


def test_numpy_table_is_refused(server, pool):
    np = pytest.importorskip("numpy")
    with pytest.raises(TypeError, match=r"prompt 0: .* not ndarray"):
        pool.map(np.array([RIVERS, RIVERS]))
    assert server.requests == []


@pytest.mark.parametrize("dtype", ["String", "Categorical"])
def test_polars_series(server, pool, dtype):
    pl = pytest.importorskip("polars")
    df = pl.DataFrame({"prompt": pl.Series(RIVERS, dtype=getattr(pl, dtype))})
    df = df.with_columns(answer=pl.Series(pool.map(df["prompt"])))
    assert df["answer"].to_list() == RIVERS


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("method", ["map", "imap", "imap_unordered", "estimate"])
def test_whole_frame_is_refused(server, pool, library, method):
    """Iterating over it would send the names of its columns."""
    frame = pytest.importorskip(library).DataFrame({"prompt": RIVERS})
    with pytest.raises(
        TypeError, match=r'prompts is a whole DataFrame; pass one of its columns, such as frame\["prompt"\]'
    ):
        getattr(pool, method)(frame)
    assert server.requests == []


@pytest.mark.parametrize("dtype", [None, "object", "string", "category"])
@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_prompt_is_refused_by_its_position(server, pool, dtype, missing):
    """Before anything is sent, with the remedy. None, NaN and NA alike."""
    pd = pytest.importorskip("pandas")
    column = pd.Series(["a", "b", missing], dtype=dtype, index=[10, 20, 30])
    with pytest.raises(TypeError, match=r"prompt 2: .*; drop missing values first"):
        pool.map(column)
    assert server.requests == []
    assert pool.map(column.dropna()) == ["a", "b"]


def test_missing_prompt_in_polars_is_refused_too(pool):
    pl = pytest.importorskip("polars")
    with pytest.raises(TypeError, match=r"prompt 1: .*; drop missing values first"):
        pool.map(pl.Series(["a", None]))


def test_failed_calls_are_missing_values_in_the_column(server, pool):
    """Another column has the errors."""
    pd = pytest.importorskip("pandas")
    server.script("bad", Reply(status=400, code="too_long"))
    df = pd.DataFrame({"prompt": ["a", "bad", "c"]})
    df["answer"] = answers = pool.map(df["prompt"])
    df["error"] = [result.error and result.error.code for result in answers.results]
    assert df["answer"].isna().tolist() == [False, True, False]
    assert df["error"].dropna().to_dict() == {1: "too_long"}


def test_retry_fills_in_failed_rows(server, pool):
    pd = pytest.importorskip("pandas")
    server.script("flaky", Reply(status=400), Reply("well"))
    df = pd.DataFrame({"prompt": ["a", "flaky"]})
    answers = pool.map(df["prompt"])
    df["answer"] = pool.retry(answers)
    assert df["answer"].tolist() == ["a", "well"]


def test_pandas_example(server, environment, capsys):
    """A failed call and a row that was not sent have no answer, and an error that is text."""
    pytest.importorskip("pandas")
    server.script("Name a mountain in Laos.", Reply(status=400, code="no_mountains"))
    space = runpy.run_path(str(EXAMPLES / "pandas_column.py"))
    space["pool"].close()
    assert space["df"]["answer"].isna().tolist() == [False, True, True]
    assert space["df"]["error"].isna().tolist() == [True, False, False]
    assert space["df"]["error"][1] == "no prompt in this row"
    assert space["df"]["error"][2].startswith("BadRequestError: 400: ")
    rivers = [f"Name a river in {country}." for country in ("Chad", "Laos", "Peru")]
    assert sorted(prompts_sent(server)) == [
        *(f"Name a mountain in {country}." for country in ("Laos", "Peru")),
        *rivers,
    ]


LIMA = '{"name": "Lima", "population": 10000000}'
BAD_ANSWERS = {
    "not JSON": "Lima, I think.",
    "a field is missing": '{"name": "Lima"}',
    "a field has the wrong type": '{"name": "Lima", "population": "many"}',
    "an extra field": '{"name": "Lima", "population": 10000000, "country": "Peru"}',
}


@pytest.mark.parametrize("bad", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_pydantic_example_retries_invalid_answers(server, environment, bad):
    pytest.importorskip("pydantic")
    server.script("The largest city of Peru", Reply(bad), Reply(bad), Reply(LIMA))
    server.script("The largest city of Chad", Reply(LIMA))
    space = runpy.run_path(str(EXAMPLES / "pydantic_answers.py"))
    space["pool"].close()
    assert list(space["cities"]) == [space["City"](name="Lima", population=10_000_000)] * 2
    assert server.count("The largest city of Peru") == 3


def test_pydantic_example_sends_a_strict_schema(server, environment):
    """OpenAI's strict mode: in every object all fields are required, and no others allowed."""
    pytest.importorskip("pydantic")
    server.script("The largest city of Peru", Reply(LIMA))
    server.script("The largest city of Chad", Reply(LIMA))
    runpy.run_path(str(EXAMPLES / "pydantic_answers.py"))["pool"].close()
    sent = server.requests[0].body["response_format"]
    assert (sent["type"], sent["json_schema"]["strict"]) == ("json_schema", True)
    schema = sent["json_schema"]["schema"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == list(schema["properties"]) == ["name", "population"]


def test_schema_of_nested_models_equals_openais(server):
    """The example's rules give the same strict schema as the OpenAI SDK."""
    pydantic = pytest.importorskip("pydantic")
    openai = pytest.importorskip("openai.lib._pydantic", reason="openai is not installed")
    from typing import Optional

    class Strict(pydantic.BaseModel, extra="forbid"):
        pass

    class River(Strict):
        name: str
        length: Optional[int]  # noqa: UP045 - pydantic evaluates it, and Python 3.9 cannot evaluate int | None

    class Country(Strict):
        rivers: list[River]
        longest: River

    assert Country.model_json_schema() == openai.to_strict_json_schema(Country)


def test_answer_that_stays_invalid_is_none_with_an_error(server, make_pool):
    pydantic = pytest.importorskip("pydantic")

    class City(pydantic.BaseModel):
        name: str

    server.script("a", Reply("nothing"))
    server.script("b", Reply(json.dumps({"name": "Lima"})))
    answers = make_pool(max_tries=3).map(["a", "b"], parse=City.model_validate_json)
    assert answers == [None, City(name="Lima")]
    (failure,) = answers.failures
    assert isinstance(failure.error, ParseError)
    assert "1 validation error for City" in str(failure.error)
    assert (failure.attempts, failure.text) == (3, "nothing")


def test_models_are_restored_from_a_journal(server, tmp_path):
    """The journal has the text, which is parsed again; nothing is sent twice."""
    pydantic = pytest.importorskip("pydantic")

    class City(pydantic.BaseModel):
        name: str

    server.script("a", Reply(json.dumps({"name": "Lima"})))
    for _ in range(2):
        with ChatPool(base_url=server.url) as pool:
            answers = pool.map(["a"], parse=City.model_validate_json, journal=tmp_path / "cities.jsonl")
            assert answers == [City(name="Lima")]
    assert len(server.requests) == 1
