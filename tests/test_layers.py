"""The architecture: which folder may import which, and which module may import a dependency."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import chatpool

PACKAGE = Path(chatpool.__file__).parent
# From the bottom up. A folder imports only from those above its own line, and within itself without circles.
LAYERS = [
    {"_version", "errors"},
    {"_protocol"},
    {"_http", "_files"},
    {"_limits"},
    {"_scheduling"},
    {"pool"},
    {"_tables"},
    {"results", "journal", "__init__"},
    {"_testing"},
    {"testing"},
    {"pytest_plugin"},
    {"_cluster"},
    {"distributed"},
    {"_cli"},
    {"report", "__main__"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
HTTP = {
    f"_http/{name}"
    for name in ("session", "reading", "environment", "pools", "connections", "tls", "fast_path", "failures")
}
HOMES = {
    "requests": HTTP,
    "urllib3": HTTP,
    "backoff": {"_scheduling/retry"},
    "tqdm": {"_scheduling/progress"},
    "plotly": {"_cli/charts"},
    "distributed": {"_cluster/client", "_cluster/worker", "_cli/run"},
}
STARTS_THREADS = {
    "_scheduling/actor",
    "_scheduling/workers",
    "_scheduling/callback_threads",
    "_scheduling/preload",
    "_http/keys",
    "_http/resolver",
    "_files/sync",
    "_testing/server",
}
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))


def imports(module: str) -> set[str]:
    """Return what a module imports: ours as ``./folder/module``, others by their first name. Type checking counts."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    folder = module.split("/")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - (node.level - 1)]
            found.add("./" + "/".join(base + (node.module or "__init__").split(".")))
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "chatpool":
            found.add("./" + "/".join(node.module.split(".")[1:] or ["__init__"]))
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def part(module: str) -> str:
    """Return the folder of a module, or its own name at the top level."""
    return module.split("/")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    """A module imports from its own folder and from lower layers only."""
    ours = {part(name[2:]) for name in imports(module) if name.startswith("./")} - {part(module)}
    assert all(LAYER[name] < LAYER[part(module)] for name in ours), ours


def test_no_module_imports_itself_by_a_detour():
    """There is no circle of imports, not even one for the type checker."""
    graph = {module: {name[2:] for name in imports(module) if name.startswith("./")} for module in MODULES}
    while graph:
        leaves = {module for module, needs in graph.items() if not needs & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in leaves}


@pytest.mark.parametrize("module", MODULES)
def test_each_dependency_has_one_home(module):
    """requests and urllib3 are for HTTP, backoff and tqdm for one module each, and asyncio for none."""
    for name in imports(module):
        assert module in HOMES.get(name, {module})
        assert name not in {"asyncio", "aiohttp", "httpx"}


@pytest.mark.parametrize("module", MODULES)
def test_few_modules_start_threads(module):
    """Only the scheduler, its callbacks, name look-ups, the journal's sync and the fake server start threads."""
    source = (PACKAGE / f"{module}.py").read_text()
    starts = "Thread(" in source or "ThreadPoolExecutor(" in source
    assert not starts or module in STARTS_THREADS


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_held_in_the_head(module):
    assert len((PACKAGE / f"{module}.py").read_text().splitlines()) <= 450
