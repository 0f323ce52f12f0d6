"""gevent: its patches before and after the import, in separate processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from chatpool.testing import FakeChatServer, Reply

pytest.importorskip("gevent", reason="needs gevent")

PATCH = "from gevent import monkey; monkey.patch_all()\n"
IMPORT = "import sys; from chatpool import ChatPool, ConfigurationError\n"


@pytest.fixture
def api():
    with FakeChatServer(reply=lambda request: Reply(fault="stall" if request.prompt == "hangs" else None)) as server:
        yield server


def run(code, api):
    """Run code in a process; return its output."""
    done = subprocess.run([sys.executable, "-c", code, api.url], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("workers", [4, 300])
def test_greenlets_that_share_a_pool_get_their_own_answers(api, workers):
    """With a small pool and a large one."""
    code = f"""
import gevent
pool = ChatPool({workers}, base_url=sys.argv[1])
batches = [[f"{{n}}.{{k}}" for k in range(40)] for n in range(20)]
jobs = [gevent.spawn(pool.map, prompts) for prompts in batches]
gevent.joinall(jobs)
print([job.value for job in jobs] == batches)
pool.close()
"""
    assert run(PATCH + IMPORT + code, api) == "True\n"


def test_greenlets_keep_the_deadline(api):
    """A call that hangs is cancelled, and the others return."""
    code = "print(ChatPool(4, base_url=sys.argv[1]).map(['a', 'hangs', 'b'], deadline=1))"
    assert run(PATCH + IMPORT + code, api) == "['a', None, 'b']\n"


def test_greenlets_run_while_one_maps(api):
    """A map does not block the other greenlets of its thread."""
    code = """
import gevent
pool = ChatPool(4, base_url=sys.argv[1])
job = gevent.spawn(pool.map, ["hangs"], deadline=2)
turns = 0
while not job.ready():
    gevent.sleep(0.01)
    turns += 1
print(turns > 5)
"""
    assert run(PATCH + IMPORT + code, api) == "True\n"


def test_patches_after_the_import_are_refused_with_the_remedy(api):
    """All greenlets would share chatpool's thread-local state."""
    code = """
try:
    ChatPool(4, base_url=sys.argv[1]).map(["a"])
except ConfigurationError as error:
    print(error)
"""
    patch = "import warnings; warnings.simplefilter('ignore')\n" + PATCH
    assert "call gevent.monkey.patch_all() before the import" in run(IMPORT + patch + code, api)
