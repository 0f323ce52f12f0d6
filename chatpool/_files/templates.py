"""Fills the fields of a row into a text: ``Translate into {lang}: {text}``. Pure: no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}\n]*)\}|[{}]")
_NAME = re.compile(r"\w(?:[\w .-]*\w)?")


class Template:
    """A text with the names of columns in braces; a doubled brace is one brace.

    The whole content of the braces is a column's name, so a row can neither run code nor be taken for a template.
    Raises ValueError for a single brace, and for a text without a field. ``is_lenient``: such a text is used as it is,
    and so are braces around anything that cannot be a name, such as JSON.
    """

    def __init__(self, text: str, *, is_lenient: bool = False) -> None:
        self.text = text
        self._parts: list[tuple[str, str | None]] = []  # literal text, and the field after it
        position, literal = 0, ""
        for found in _PIECE.finditer(text):
            literal += text[position : found.start()]
            position = found.end()
            name = found[1]
            if name is not None and (not is_lenient or _NAME.fullmatch(name)):
                self._parts.append((literal, name))
                literal = ""
            elif found[0] in ("{{", "}}"):
                literal += found[0][0]
            elif is_lenient:
                literal += found[0]
            else:
                raise ValueError(f"a single {found[0]!r} in the template; double it if it is meant as a character")
        self._parts.append((literal + text[position:], None))
        if not self.fields and is_lenient:
            self._parts = [(text, None)]
        elif not self.fields:
            raise ValueError(f"the template {text[:40]!r} names no column; put names in braces, such as {{text}}")

    @property
    def fields(self) -> list[str]:
        """The names of the columns, each once."""
        return list(dict.fromkeys(name for _, name in self._parts if name is not None))

    def fill(self, values: Mapping[str, Any]) -> str:
        """Return the text with the values of these fields."""
        return "".join(text + ("" if name is None else shown(values[name])) for text, name in self._parts)


def shown(value: Any) -> str:
    """Return a value as it appears in a prompt."""
    return value if isinstance(value, str) else str(value)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, NA, NaT, or blank text."""
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas' NA cannot be compared
        return True
    return isinstance(value, float) and value != value


def find_column(name: str, columns: Sequence[str]) -> str | None:
    """Return the column of this name; case and surrounding spaces do not matter if only one column fits.

    Raises ValueError if several do.
    """
    fitting = [column for column in columns if column == name]
    if not fitting:
        fitting = [column for column in columns if column.strip().casefold() == name.strip().casefold()]
    if len(fitting) > 1:
        raise ValueError(f"{len(fitting)} columns are named {name!r}: {list_names(columns)}")
    return fitting[0] if fitting else None


def list_names(names: Sequence[str]) -> str:
    """Return at most ten names for a message."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(name if name.strip() == name and name else repr(name) for name in names[:10]) + more
