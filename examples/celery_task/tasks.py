"""A task that asks many things at once.

Run it: celery --app tasks worker, then in Python: from tasks import answer; answer.delay(["Hello", "Goodbye"]).get().
"""

from __future__ import annotations

import os

from celery import Celery

from chatpool import ChatPool

app = Celery("tasks", broker=os.environ.get("BROKER_URL", "redis://"), backend=os.environ.get("RESULT_URL", "redis://"))
app.conf.broker_connection_retry_on_startup = True

# One for each of the worker's processes: it starts nothing until it is used, so it may be made before Celery forks.
pool = ChatPool(max_workers=20, progress=False)


@app.task
def answer(prompts: list[str]) -> list[str | None]:
    """Return the answers, None where there is none."""
    return list(pool.map(prompts, deadline=60))
