"""The Python snippets of Markdown pages. They run unchanged, against the fake server."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatpool._testing.samples import answer_of_its_type
from chatpool.testing import FakeChatServer, Reply, Request

ROOT = Path(__file__).parent.parent
_FENCE = re.compile(
    r"(?:<!-- run by (?P<run_by>\S+) -->\n+)?"
    r"^```python\n(?P<code>.*?)^```$"
    r"(?:\n+^```text\n(?P<output>.*?)^```$)?",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Snippet:
    """A block of Python. ``line``: where its code begins. ``output``: the ``text`` block after it.

    ``run_by``: the test file that runs it instead of the tests of the documentation. A page names it in a comment
    right before the block: ``<!-- run by tests/test_this.py -->``.
    """

    path: Path
    line: int
    code: str
    run_by: str | None
    output: str | None

    def run(self, space: dict[str, Any]) -> None:
        """Execute the code; a traceback names the page and the line."""
        exec(compile("\n" * (self.line - 1) + self.code, str(self.path), "exec", dont_inherit=True), space)

    def missing(self) -> list[str]:
        """Return the imported packages that are not installed."""
        nodes = list(ast.walk(ast.parse(self.code)))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        packages = {name.partition(".")[0] for name in names}
        return sorted(package for package in packages if importlib.util.find_spec(package) is None)


def snippets(path: Path) -> list[Snippet]:
    """Return the Python blocks of a page."""
    text = path.read_text(encoding="utf-8")
    return [
        Snippet(path, text.count("\n", 0, found.start("code")) + 1, found["code"], found["run_by"], found["output"])
        for found in _FENCE.finditer(text)
    ]


def run_tests(space: dict[str, Any]) -> None:
    """Call the tests that a snippet defines as pytest would, each with its own server."""
    for test in [value for name, value in space.items() if name.startswith("test_")]:
        names = list(inspect.signature(test).parameters)
        assert set(names) <= {"fake_chat_server"}
        with FakeChatServer() as server:
            test(*[server for _ in names])


def answer(request: Request) -> Reply:
    """Reply with JSON if the request asks for JSON, otherwise with the prompt."""
    schema = request.body.get("response_format", {}).get("json_schema", {}).get("schema")
    if schema is not None and "population" not in schema["properties"]:
        return answer_of_its_type(request)
    if "response_format" in request.body:
        return Reply(json.dumps({"name": "Lima", "population": 10_000_000}))
    return Reply()
