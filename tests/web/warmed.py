"""The example's application, whose pool was used before gunicorn forked its workers."""

import os

if os.environ["WARM"] == "django":
    from ask.wsgi import application  # sets Django up, which the view needs

    # isort: split
    from ask.views import pool
else:
    from app import app as application
    from app import pool

assert pool.map(["before the fork"] * 8)[0] is not None
__all__ = ["application"]
