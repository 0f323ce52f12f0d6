"""Run it: python manage.py migrate && python manage.py runserver, then open http://localhost:8000/?q=Hello&q=Goodbye."""

import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ask.settings")
execute_from_command_line(sys.argv)
