"""``python -m chatpool`` is the command ``chatpool``."""

import sys

from .cli import main

sys.exit(main())
