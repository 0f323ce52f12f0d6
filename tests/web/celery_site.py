"""The Celery example, told by the environment to use a folder as its broker. ``python celery_site.py`` sends tasks."""

import contextlib
import json
import os
import sys

from celery.exceptions import TimeoutError
from tasks import app, ask_all, pool

folder = os.environ["FOLDER"]
app.conf.update(
    broker_transport_options={
        "data_folder_in": f"{folder}/queue",
        "data_folder_out": f"{folder}/queue",
        "control_folder": f"{folder}/control",
    },
    worker_hijack_root_logger=False,
)

if os.environ.get("USE_BEFORE_FORK"):
    assert pool.map(["before", "the", "fork"]) == ["before", "the", "fork"]


def wait_for(task, prompts):
    """Return what a task returned. Kombu's broker of files reads a message that is half written, and loses it then."""
    for _ in range(3):
        with contextlib.suppress(TimeoutError):
            return task.get(timeout=30)
        task = ask_all.delay(prompts)
    return task.get(timeout=30)


if __name__ == "__main__":
    sent = [(ask_all.delay(prompts), prompts) for prompts in json.load(sys.stdin)]
    json.dump([wait_for(task, prompts) for task, prompts in sent], sys.stdout)
