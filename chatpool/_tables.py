"""``table``: a DataFrame in, the same DataFrame with the answers out. Imports neither pandas nor polars."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from ._files.templates import Template, find_column, is_missing
from ._protocol.answers import Answers
from .pool import ChatPool

_Frame = TypeVar("_Frame")
_EMPTY = "no prompt in this row"


def table(
    frame: _Frame,
    template: str,
    *,
    pool: ChatPool | None = None,
    answer: str = "answer",
    error: str = "error",
    **options: Any,
) -> _Frame:
    """Return a copy of a pandas or polars DataFrame with a column of answers and one of errors.

    ``template``: the prompt of a row, with names of columns in braces: ``"Translate into {lang}: {text}"``; doubled
    braces are characters. A row in which one of these columns is empty (None, NaN, NA, or blank text) is not sent. Its
    answer is missing, and so is that of a failed row; ``error`` says why. Rows keep their order and pandas' index.
    ``pool``: default a new ChatPool with the environment's settings. ``answer``, ``error``: names of the new columns.
    ``options`` are those of ``ChatPool.map``, such as ``journal``, ``params``, ``parse`` and ``dedupe``.

    Raises TypeError for anything but a DataFrame, and ValueError for a template that does not fit its columns, or if
    it has a column with one of the new names. KeyboardInterrupt carries the finished calls as ``.answers``.
    """
    names = _column_names(frame)
    for name in (answer, error):
        if name in names:
            raise ValueError(f"the frame has a column {name!r} already; drop it, or name others: answer=, error=")
    prompts = _prompts(frame, Template(template), names)
    asked = [prompt for prompt in prompts if prompt is not None]
    if pool is None:
        with ChatPool() as own:
            answers = own.map(asked, **options)
    else:
        answers = pool.map(asked, **options)
    columns = {answer: _spread(prompts, answers), error: _spread(prompts, _errors(answers), _EMPTY)}
    return cast(_Frame, _with_columns(frame, columns))


def _column_names(frame: Any) -> list[Any]:
    kind = type(frame)
    if hasattr(kind, "collect") and hasattr(kind, "with_columns"):
        raise TypeError("table takes a DataFrame, not a LazyFrame; call its collect() first")
    if kind.__name__ == "Series":
        raise TypeError("table takes a DataFrame, not one of its columns; map takes columns")
    if not hasattr(kind, "iloc") and not hasattr(kind, "with_columns"):
        hint = "; call its to_pandas() first" if hasattr(kind, "to_pandas") else ""
        raise TypeError(f"table takes a DataFrame of pandas or polars, not {kind.__name__}{hint}")
    return list(frame.columns)


def _prompts(frame: Any, template: Template, names: Sequence[Any]) -> list[str | None]:
    """Return the prompt of each row, None where a column that it needs is empty."""
    columns = {field: _column(frame, field, names) for field in template.fields}
    rows = (dict(zip(columns, cells)) for cells in zip(*columns.values()))
    return [None if any(map(is_missing, row.values())) else template.fill(row) for row in rows]


def _column(frame: Any, field: str, names: Sequence[Any]) -> list[Any]:
    by_text = {str(name): name for name in names}
    found = find_column(field, [str(name) for name in names])
    if found is None:
        raise ValueError(f"no column {field!r} among {', '.join(map(str, names))}; double braces that are characters")
    column = frame[by_text[found]]
    return list(column.to_list())


def _errors(answers: Answers[Any]) -> list[str | None]:
    return [None if one.error is None else f"{type(one.error).__name__}: {one.error}" for one in answers.results]


def _spread(prompts: Sequence[str | None], values: Sequence[Any], missing: Any = None) -> list[Any]:
    """Return the values in the rows that have a prompt."""
    rest = iter(values)
    return [missing if prompt is None else next(rest) for prompt in prompts]


def _with_columns(frame: Any, columns: dict[str, list[Any]]) -> Any:
    if hasattr(type(frame), "iloc"):
        copy = frame.copy()
        for name, values in columns.items():
            copy[name] = values  # a list is assigned by position, whatever the index is
        return copy
    polars = sys.modules[type(frame).__module__.partition(".")[0]]
    return frame.with_columns([_polars_series(polars, name, values) for name, values in columns.items()])


def _polars_series(polars: Any, name: str, values: list[Any]) -> Any:
    """Return a Series; of text even if all its values are missing."""
    is_text = all(value is None or isinstance(value, str) for value in values)
    return polars.Series(name, values, dtype=polars.Utf8) if is_text else polars.Series(name, values)
