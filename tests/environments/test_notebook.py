"""Notebooks: the bar, an interrupt that ends only the cell, and the end of a kernel with an open pool."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from chatpool.testing import Reply
from tests.conftest import wait_until

pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"
WIDGET = "application/vnd.jupyter.widget-view+json"
NO_WIDGETS = "import sys; sys.modules['ipywidgets'] = None"  # as if it were not installed
LONG = 60  # seconds; a backstop for a slow machine


@pytest.fixture(autouse=True)
def kernel_environment(monkeypatch, tmp_path):
    """Read and write nothing in the user's home."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def run_notebook(*first_lines):
    """Run the example after these lines; return its cells by their ids, and the states of its widgets."""
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells[:0] = [nbformat.v4.new_code_cell(line) for line in first_lines]
    nbclient.NotebookClient(notebook, timeout=LONG, kernel_name="python3").execute()
    state = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    return {cell.id: cell for cell in notebook.cells}, [widget.state for widget in state.values()]


def text_of(cell):
    """Return the text that a cell printed and displayed."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def test_notebook_is_stored_without_outputs():
    """They would soon be outdated, and make diffs hard to read."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)
    assert "widgets" not in notebook["metadata"]


def test_notebook_runs_with_a_widget_for_a_bar():
    pytest.importorskip("ipywidgets")
    pytest.importorskip("pandas")
    cells, widgets = run_notebook()
    for name in ("frame", "retry"):
        assert [WIDGET in output.get("data", {}) for output in cells[name].outputs] == [True, False]
    values = [str(state["value"]).replace("\u2007", " ") for state in widgets if "value" in state]
    assert values.count("50.0") == 2
    assert any("50/50" in value and "failed=1, retries=1" in value for value in values)
    assert any("50/50" in value and "failed" not in value for value in values)
    assert "the Amazon" in text_of(cells["frame"])
    assert "BadRequestError 400 no_rivers" in text_of(cells["summary"])
    assert "none, but a lagoon" in text_of(cells["retry"])
    assert text_of(cells["stream"]) == "Describe a river in Peru."


def test_notebook_runs_with_a_text_bar_without_ipywidgets():
    pytest.importorskip("pandas")
    cells, widgets = run_notebook(NO_WIDGETS)
    assert widgets == []
    last_line = text_of(cells["frame"]).split("\r")[-1]
    assert "50/50" in last_line
    assert "failed=1, retries=1" in last_line
    assert "IProgress not found" not in text_of(cells["frame"])  # tqdm's warning about a missing widget


class Kernel:
    """A running kernel."""

    def __init__(self):
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(startup_timeout=LONG)

    def run(self, code):
        """Run a cell that must succeed; return the text that it printed."""
        messages = []
        reply = self.client.execute_interactive(code, output_hook=messages.append, timeout=LONG)
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(message["content"]["text"] for message in messages if message["msg_type"] == "stream")

    def interrupt(self, code, when):
        """Run a cell, and interrupt the kernel once ``when()`` is true; return the reply, and the seconds to it."""
        # With stop_on_error, the kernel would drop the next cells for a moment after a failed one.
        request = self.client.execute(code, stop_on_error=False)
        assert wait_until(when, LONG)
        began = time.monotonic()
        self.manager.interrupt_kernel()
        reply = self.client.get_shell_msg(timeout=LONG)
        assert reply["parent_header"]["msg_id"] == request
        return reply["content"], time.monotonic() - began

    def close(self):
        """End the kernel, by force if necessary."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(server):
    """A kernel with a pool of four workers, as the first cell makes it."""
    kernel = Kernel()
    try:
        kernel.run(f"from chatpool import ChatPool; pool = ChatPool(4, base_url={server.url!r}, timeout=600)")
        yield kernel
    finally:
        kernel.close()


CELLS = {
    "map": 'pool.map(["a", *["stuck"] * 20])',
    "imap": 'for result in pool.imap(["a", *["stuck"] * 20]): pass',
    "ask": 'pool.ask("stuck")',
    "stream": 'list(pool.stream("stuck"))',
}


@pytest.mark.parametrize("reply", [Reply(fault="stall"), Reply(status=429, headers={"retry-after": "50"})])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_interrupt_ends_the_cell_and_the_pool_stays_usable(server, kernel, cell, reply):
    """With calls in flight or in back-off; after calls in flight, the next cell uses the same pool at once."""
    server.script("stuck", reply)
    most = 4 if reply.status == 200 and "map" in cell else 1
    content, seconds = kernel.interrupt(cell, lambda: server.count("stuck") >= most)
    assert content["ename"] == "KeyboardInterrupt"
    assert seconds < 20  # well under 1 on an idle machine; the calls would take 50 and more
    if reply.status == 200:
        assert kernel.run('print(pool.map(["b"] * 8, progress=False))') == f"{['b'] * 8}\n"


def test_answers_before_an_interrupt_are_available(server, kernel):
    """IPython keeps the exception, and the exception has the answers."""
    server.script("stuck", Reply(fault="stall"))
    kernel.interrupt('pool.map(["a", "b", *["stuck"] * 4])', lambda: server.count("stuck") >= 4)
    assert kernel.run("import sys; print(sys.last_value.answers[:3])") == "['a', 'b', None]\n"


def test_cells_share_the_pool_and_its_connections(server, kernel):
    for _ in range(3):
        kernel.run('pool.map(["a"] * 20)')
    assert len(server.requests) == 60
    assert server.connections <= 4


def test_kernel_can_shut_down_while_calls_hang(server, kernel):
    """A restart does not have to kill it."""
    server.script("stuck", Reply(fault="stall"))
    kernel.run('futures = [pool.submit("stuck") for _ in range(8)]')
    assert wait_until(lambda: server.count("stuck") >= 4, LONG)
    kernel.client.shutdown()
    assert wait_until(lambda: not kernel.manager.is_alive(), LONG)
