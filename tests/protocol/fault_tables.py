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
    dialects.LENGTH: "cut at the token limit",
    dialects.FILTER: "withheld: not again",
    dialects.BROKEN_OFF: "broken off: again",
}
CODES = {
    dialects.SPENT: "spent: the map ends",
    dialects.IN_FLIGHT: "a rate limit",
    dialects.MODEL_FAILED: "a bad answer: again",
    dialects.TOO_LARGE: "the prompt is too large: not again",
    dialects.FILTERED: "withheld: not again",
    dialects.BAD_KEY: "a wrong key: the map ends",
    dialects.RATE: "a rate limit",
    dialects.OVERLOADED: "overload",
    dialects.NO_PERMISSION: "as a 403",
    dialects.NOT_FOUND: "as a 404",
    dialects.TIMEOUT: "as a 504",
    dialects.SERVER: "as a 500",
    dialects.BAD_REQUEST: "as a 400",
}
UNITS = {0.001: "milliseconds", 1.0: "seconds"}

Row = tuple[str, str, str]


def tables() -> str:
    """Return all of them, each under its heading."""
    return "\n".join(
        [
            table("Finish reasons", "test_finish_reasons.py", reason_rows()),
            table("Statuses", "test_judgement.py", status_rows()),
            table("Codes and types", "test_failed.py", code_rows()),
            table("Words of an error inside a 200 that has no code", "test_failed.py", word_rows()),
            table("Delays", "test_waits.py", delay_rows()),
        ]
    )


def table(title: str, test: str, rows: list[Row]) -> str:
    """Return a heading and a table. Every row names the test that shows it."""
    head = [f"### {title}", "", "| what the server says | what it means | seen at | shown by |", "|---|---|---|---|"]
    return "\n".join([*head, *(f"| {says} | {means} | {where} | `{test}` |" for says, means, where in rows), ""])


def reason_rows() -> list[Row]:
    return [(names(words), REASONS[meaning], where) for meaning, words, where in dialects.FINISH_REASONS]


def status_rows() -> list[Row]:
    again = [(f"{status}, {name}", "again", where) for status, name, where in dialects.TRANSIENT_STATUSES]
    overload = [(f"{status}, {name}", "overload", where) for status, name, where in dialects.OVERLOAD_STATUSES]
    return [*again, ("500 and above", "again", "everybody"), *overload]


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
