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

sys.path.insert(0, str(Path(__file__).parent.parent))  # this clone's chatpool, not an installed one
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
html_show_copyright = False
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
add_module_names = False
# chatpool.pytest_plugin and chatpool.distributed import them; the extra "docs" does not install them.
autodoc_mock_imports = ["pytest", "distributed"]

# ``name``: its meaning. ``a``, ``b``: the meaning of both.
_NAMES = r"``[^`]+``(?:, ``[^`]+``)*: "
_ITEM = re.compile(rf"(?:^|(?<=[.;] )){_NAMES}")


class Help(Directive):
    """The ``--help`` of a command: {help} run."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Run the command and show its output."""
        command = [sys.executable, "-m", "chatpool", *self.arguments, "--help"]
        environment = {**os.environ, "COLUMNS": "88", "NO_COLOR": "1"}
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)  # noqa: S603 - ours
        return [nodes.literal_block(done.stdout, done.stdout, language="none")]


def list_names(lines: list[str]) -> list[str]:
    """Turn docstring paragraphs that describe one name after the other into lists."""
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


def setup(app: Any) -> None:
    """Register the directive and the docstring hook."""
    app.add_directive("help", Help)
    app.connect("autodoc-process-docstring", _on_docstring)
