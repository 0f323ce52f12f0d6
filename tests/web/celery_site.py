"""The Celery example, with the broker that the environment names. ``python celery_site.py`` sends tasks."""

import contextlib
import json
import os
import sys

from celery.exceptions import TimeoutError
from tasks import app, ask_all, pool

app.conf.worker_hijack_root_logger = False
folder = os.environ.get("FOLDER")
if folder is not None:
    app.conf.broker_transport_options = {
        "data_folder_in": f"{folder}/queue",
        "data_folder_out": f"{folder}/queue",
        "control_folder": f"{folder}/control",
    }

if os.environ.get("USE_BEFORE_FORK"):
    assert pool.map(["before", "the", "fork"]) == ["before", "the", "fork"]


def wait_for(task, prompts):
    """Return a task's result. Send it again if necessary: Kombu's broker of files loses messages that it reads too early."""
    for _ in range(3 if folder is not None else 0):
        with contextlib.suppress(TimeoutError):
            return task.get(timeout=30)
        task = ask_all.delay(prompts)
    return task.get(timeout=60)


if __name__ == "__main__":
    sent = [(ask_all.delay(prompts), prompts) for prompts in json.load(sys.stdin)]
    json.dump([wait_for(task, prompts) for task, prompts in sent], sys.stdout)
