"""chatpool in web applications: the examples under gunicorn and Celery, in separate processes."""
