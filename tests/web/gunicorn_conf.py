"""gunicorn's configuration for these tests, controlled by environment variables."""

import importlib
import os

if os.environ.get("PATCH_FIRST"):
    from gevent import monkey

    monkey.patch_all()

control_socket_disable = True  # all gunicorns of a user share it; older versions ignore this setting


def module():
    """Return the module of the pool."""
    return importlib.import_module(os.environ["POOL"])


def when_ready(server):
    """Runs in the master, before it forks."""
    if os.environ.get("USE_BEFORE_FORK"):
        assert module().pool.map(["before", "the", "fork"]) == ["before", "the", "fork"]


def post_worker_init(worker):
    """Runs in each worker, after the site is loaded."""
    if "DEADLINE" in os.environ:
        module().DEADLINE = float(os.environ["DEADLINE"])
