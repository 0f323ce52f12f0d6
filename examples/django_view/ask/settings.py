"""The least that Django needs."""

import os
from pathlib import Path

SECRET_KEY = os.environ.get("SECRET_KEY", "only-for-this-example")
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
INSTALLED_APPS = ["ask"]
ROOT_URLCONF = "ask.urls"
WSGI_APPLICATION = "ask.wsgi.application"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("ASK_DATABASE", Path(__file__).parent.parent / "db.sqlite3"),
        "OPTIONS": {"timeout": 60},
    }
}
ASK_DEADLINE = float(os.environ.get("ASK_DEADLINE", "5"))  # seconds that a page may take
