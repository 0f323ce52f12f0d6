"""The Celery example, told by the environment to use a folder as its broker. ``python celery_site.py`` sends tasks."""

import json
import os
import sys

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

if __name__ == "__main__":
    sent = [ask_all.delay(prompts) for prompts in json.load(sys.stdin)]
    json.dump([task.get(timeout=60) for task in sent], sys.stdout)
