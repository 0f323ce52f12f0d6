"""The tables of ``docs/faults.md`` that show servers' words, made from the tables by which replies are judged.

After a change of those: ``python -m tests.protocol.fault_tables`` writes the page.
"""

from __future__ import annotations

import re
from pathlib import Path

from chatpool._protocol import dialects, waits

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- tables of words: begin -->\n", "<!-- tables of words: end -->\n"

REASONS = {
    dialects.STOP: "an answer",
    dialects.LENGTH: "truncated",
    dialects.FILTER: "filtered: not retried",
    dialects.BROKEN_OFF: "incomplete: retried",
}
CODES = {
    dialects.SPENT: "spent: the run ends",
    dialects.IN_FLIGHT: "rate limit",
    dialects.MODEL_FAILED: "a bad answer: retried",
    dialects.TOO_LARGE: "too large: not retried",
    dialects.FILTERED: "filtered: not retried",
    dialects.BAD_KEY: "invalid key: the run ends",
    dialects.RATE: "rate limit",
    dialects.OVERLOADED: "overload",
    dialects.NO_PERMISSION: "as 403",
    dialects.NOT_FOUND: "as 404",
    dialects.TIMEOUT: "as 504",
    dialects.SERVER: "as 500",
    dialects.BAD_REQUEST: "as 400",
}
UNITS = {0.001: "milliseconds", 1.0: "seconds"}

Row = tuple[str, str, str]


def tables() -> str:
    """Return all of them, each under its heading."""
    return "\n".join(
        [
            table("Finish reasons", reason_rows()),
            table("Statuses", status_rows()),
            table("Codes and types", code_rows()),
            table("Words of an error in a 2xx that has no code", word_rows()),
            table("Delays", delay_rows()),
        ]
    )


def table(title: str, rows: list[Row]) -> str:
    """Return a heading and a table."""
    head = [f"### {title}", "", "| the server says | meaning | seen at |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {says} | {means} | {where} |" for says, means, where in rows), ""])


def reason_rows() -> list[Row]:
    return [(names(words), REASONS[meaning], where) for meaning, words, where in dialects.FINISH_REASONS]


def status_rows() -> list[Row]:
    again = [(f"{status}, {name}", "retried", where) for status, name, where in dialects.TRANSIENT_STATUSES]
    overload = [(f"{status}, {name}", "overload", where) for status, name, where in dialects.OVERLOAD_STATUSES]
    return [*again, ("500 and above", "retried", "all"), *overload]


def code_rows() -> list[Row]:
    rows = [(names(words), CODES[meaning], where) for meaning, words, where in dialects.CODES]
    rows += [(f"`{limit}` in the message", CODES[dialects.SPENT], where) for limit, where in dialects.SPENT_LIMITS]
    return rows + [(f"`{name}` at {host}", CODES[meaning], where) for host, name, meaning, where in dialects.AT_HOST]


def word_rows() -> list[Row]:
    return [(f"`{readable(words)}`", CODES[meaning], where) for meaning, words, where in dialects.WORDS]


def delay_rows() -> list[Row]:
    rows = [(f"header `{name}`", UNITS[unit], where) for name, unit, where in waits.DELAY_HEADERS]
    rows += [(f"header `{reset}`", f"when `{left}` is 0", where) for left, reset, where in waits.RESET_HEADERS]
    rows += [(f"field `{name}`", UNITS[unit], where) for name, unit, where in waits.DELAY_FIELDS]
    return rows + [
        (f"words `{readable(words)}` and a duration", "as it says", where) for words, where in waits.DELAY_WORDS
    ]


def names(words: str) -> str:
    """Return the names of a row as code."""
    return ", ".join(f"`{readable(word)}`" for word in words.split())


def readable(pattern: str) -> str:
    """Return a pattern as a reader would write it: [optional], one/other, and … for anything."""
    text = re.sub(r"\\b|\?:", "", pattern).replace("[ _-]?", " ").replace("[a-z]+", "…").replace(".?", " ")
    text = re.sub(r"\.\*|\.\{\d+,\d+\}", "…", text)
    text = re.sub(r"\(([^()]*)\)\?", r"[\1]", text)
    return re.sub(r"(\w)\?", r"\1", text).replace("|", "/").replace("base_resp_", "base_resp ")


def page() -> str:
    """Return the page as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    return f"{text.split(BEGIN)[0]}{BEGIN}\n{tables()}\n{END}{text.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
