"""The Celery example on a broker of plain files, with the pool in use before Celery forks.

Celery's in-memory broker cannot cross processes, so prefork cannot be tried with it.
"""

import os

from tasks import answer, app, pool

folder = os.environ["CELERY_FOLDER"]
app.conf.update(
    broker_url="filesystem://",
    broker_transport_options={"data_folder_in": f"{folder}/queue", "data_folder_out": f"{folder}/queue"},
    result_backend=f"file://{folder}/results",
)
if os.environ.get("WARM"):
    assert pool.map(["before the fork"] * 8)[0] is not None

__all__ = ["answer", "app"]
