"""``python -m chatpool`` is the command ``chatpool``."""

import sys

from ._cli.main import main

sys.exit(main())
