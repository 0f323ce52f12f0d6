"""How the documentation is built: python -m sphinx -W docs docs/_build"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone's chatpool, whatever is installed
import requests

import chatpool.journal
import chatpool.pool

# Signatures name them, but pool.py imports them for type checkers only.
vars(chatpool.pool).update(Session=requests.Session, PathLike=chatpool.journal.PathLike)

project = "chatpool"
version = release = chatpool.__version__
html_title = f"chatpool {version}"
html_theme = "furo"
html_copy_source = False
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
add_module_names = False

# ``name``: what it means. ``a``, ``b``: what both mean.
_NAMES = r"``[^`]+``(?:, ``[^`]+``)*: "
_ITEM = re.compile(rf"(?:^|(?<=[.;] )){_NAMES}")


class Help(Directive):
    """What a command says of itself: {help} run."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Ask it."""
        command = [sys.executable, "-m", "chatpool", *self.arguments, "--help"]
        environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
        told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)  # noqa: S603 - ours
        return [nodes.literal_block(told.stdout, told.stdout, language="none")]


def list_names(lines: list[str]) -> list[str]:
    """Turn paragraphs of docstrings that tell of one name after the other into lists."""
    made = []
    for paragraph in "\n".join(lines).split("\n\n"):
        text = paragraph.replace("\n", " ")
        starts = [found.start() for found in _ITEM.finditer(text)]
        if starts[:1] == [0]:
            items = [text[start:end].strip() for start, end in zip(starts, [*starts[1:], len(text)])]
            made.append("\n".join(f"* {item.rstrip(';')}" for item in items))
        else:
            made.append(paragraph)
    return "\n\n".join(made).split("\n")


def _on_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = list_names(lines)


def _on_source(app: Any, name: str, source: list[str]) -> None:
    """Put the pages that index.md does not name where it keeps a place for them; a glob of none would be a warning."""
    if name == "index":
        others = sorted(page.stem for page in Path(app.srcdir).glob("*.md") if f"\n{page.stem}\n" not in source[0])
        source[0] = source[0].replace("other pages\n", "".join(f"{page}\n" for page in others if page != "index"))


def setup(app: Any) -> None:
    """Tell Sphinx of these."""
    app.connect("source-read", _on_source)
    app.connect("env-get-outdated", lambda *_: ["index"])  # a page more changes it, though its file is the same
    app.add_directive("help", Help)
    app.connect("autodoc-process-docstring", _on_docstring)
