"""Django's command line.

python examples/django_view/manage.py migrate
OPENAI_API_KEY=… python examples/django_view/manage.py runserver
Then open http://127.0.0.1:8000/?q=Why+is+the+sky+blue%3F&q=Why+is+the+sea+salty%3F
and http://127.0.0.1:8000/stream?q=Why+is+the+sky+blue%3F
"""

import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
execute_from_command_line(sys.argv)
