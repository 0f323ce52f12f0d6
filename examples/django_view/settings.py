"""The minimal settings of Django, and a database."""

import os
from pathlib import Path

HERE = Path(__file__).parent

SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "for this example only")
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "urls"
WSGI_APPLICATION = "wsgi.application"
INSTALLED_APPS = ["questions"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DJANGO_DATABASE", HERE / "db.sqlite3"),
        "OPTIONS": {"timeout": 20},  # seconds that a writer waits for another
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
