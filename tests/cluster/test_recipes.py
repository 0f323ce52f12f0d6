"""Other people's engines need no code of ours: the examples run on them as they are."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from chatpool.testing import Reply

ENGINES = Path(__file__).parents[2] / "examples" / "engines"
PROMPTS = [f"What is {number} times {other}?" for number in range(40) for other in range(5)]
FAILS = "What is 7 times 3?"
KEY = "sk-of-the-environment"


def run(name, server, *arguments):
    """Run an example as its reader would; return its lines, split into prompt, answer and error."""
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    env.update(
        OPENAI_BASE_URL=server.url, OPENAI_API_KEY=KEY, PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1"
    )
    env.update(RAY_ENABLE_UV_RUN_RUNTIME_ENV="0", RAY_USAGE_STATS_ENABLED="0")
    words = [sys.executable, str(ENGINES / f"{name}.py"), *arguments]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines() if line.startswith("What is")]


@pytest.mark.parametrize(
    ("name", "needs", "arguments"),
    [
        ("multiprocessing_pool", "multiprocessing", ["spawn"]),
        ("multiprocessing_pool", "multiprocessing", ["fork"]),
        ("multiprocessing_pool", "multiprocessing", ["forkserver"]),
        ("joblib_parallel", "joblib", []),
        ("spark_map_in_pandas", "pyspark", []),
        ("ray_map_batches", "ray", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_recipe(server, name, needs, arguments):
    """Each row has its own answer, or the reason why it has none; each process keeps to one pool of connections."""
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"needs {needs}: pip install 'chatpool[engines]'")
    if needs == "pyspark" and shutil.which("java") is None:
        pytest.skip("needs Java")
    server.script(FAILS, Reply(status=400, code="too_long"))
    rows = run(name, server, *arguments)
    assert sorted(prompt for prompt, _, _ in rows) == sorted(PROMPTS)
    assert all((text, error) == (prompt, "") for prompt, text, error in rows if prompt != FAILS)
    assert [(text, "400" in error) for prompt, text, error in rows if prompt == FAILS] == [("None", True)]
    assert set(Counter(request.prompt for request in server.requests).values()) == {1}
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    # Two processes with ten workers each; Spark and Ray may start another process for some tasks.
    assert server.connections <= (2 if needs in ("multiprocessing", "joblib") else 4) * 10
