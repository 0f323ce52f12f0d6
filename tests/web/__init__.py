"""chatpool in web programs: the examples under gunicorn and Celery, as processes of their own."""
