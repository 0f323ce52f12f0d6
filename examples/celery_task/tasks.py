"""A Celery task that sends a list of prompts.

OPENAI_API_KEY=… celery --workdir examples/celery_task -A tasks worker -P prefork -c 4
Then, in Python: from tasks import ask_all; ask_all.delay(["ping", "pong"]).get()
"""

import os

from celery import Celery

from chatpool import ChatPool

app = Celery("tasks", broker=os.environ.get("BROKER_URL", "redis://"), backend=os.environ.get("RESULT_URL", "redis://"))
pool = ChatPool(max_workers=20)  # each worker process opens its own connections


@app.task
def ask_all(prompts):
    answers = pool.map(prompts, deadline=60)
    return list(answers)  # JSON; None where a call failed
