"""The house: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import chatpool

ROOMS = Path(chatpool.__file__).parent
# Every module may import only from lines above its own.
FLOORS = [
    ["_version", "errors"],
    ["_allowance", "_tally", "_turns"],
    ["results"],
    ["_messages", "_replies"],
    ["_call", "_settings", "_progress"],
    ["_lines"],
    ["_limits", "_retry", "_threads", "_plain", "_failures", "journal"],
    ["_connections"],
    ["_transport"],
    ["_runs"],
    ["_engine"],
    ["_maps"],
    ["_history"],
    ["report"],
    ["_shared"],
    ["pool"],
    ["_remote"],
    ["distributed"],
    ["__init__", "testing"],
    ["_inputs", "_demo", "pytest_plugin"],
    ["_run"],
    ["cli"],
    ["__main__"],
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
WIRE = {"_transport", "_connections", "_plain", "_failures", "_turns"}
HOMES = {
    "requests": WIRE,
    "urllib3": WIRE,
    "backoff": {"_retry"},
    "tqdm": {"_progress"},
    "plotly": {"report"},
    "distributed": {"distributed", "_remote", "_run"},
}
MODULES = sorted(path.stem for path in ROOMS.glob("*.py"))


def imports(module: str) -> set[str]:
    """Names of what a module imports, ours with a leading dot; but for type checkers' eyes only is no import."""
    tree = ast.parse((ROOMS / f"{module}.py").read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {f".{node.module}"} if node.module else {".__init__"}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_one_above_it(module):
    """Imports point one way, so there are no circles."""
    ours = {name[1:] for name in imports(module) if name.startswith(".")}
    assert all(FLOOR[name] < FLOOR[module] for name in ours), ours


@pytest.mark.parametrize("module", MODULES)
def test_each_dependency_has_one_home(module):
    """requests and urllib3 are for the wire, backoff and tqdm for one module each, and asyncio for none."""
    for name in imports(module):
        assert module in HOMES.get(name, {module})
        assert name not in {"asyncio", "aiohttp", "httpx"}


@pytest.mark.parametrize("module", MODULES)
def test_only_one_module_starts_threads(module):
    """One place starts the client's threads; the fake server, which is no client, starts its own."""
    source = (ROOMS / f"{module}.py").read_text()
    starts = "Thread(" in source or "ThreadPoolExecutor(" in source
    assert not starts or module in {"_threads", "testing"}
