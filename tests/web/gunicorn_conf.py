"""gunicorn's configuration for these tests: a switch each for what a site may do."""

import importlib
import os

if os.environ.get("PATCH_FIRST"):
    from gevent import monkey

    monkey.patch_all()

control_socket_disable = True  # it is one for all of a user's gunicorns; versions that have none ignore this


def module():
    """The module that has the pool."""
    return importlib.import_module(os.environ["POOL"])


def when_ready(server):
    """In the master, before it forks."""
    if os.environ.get("USE_BEFORE_FORK"):
        assert module().pool.map(["before", "the", "fork"]) == ["before", "the", "fork"]


def post_worker_init(worker):
    """In each worker, once the site is loaded."""
    if "DEADLINE" in os.environ:
        module().DEADLINE = float(os.environ["DEADLINE"])
