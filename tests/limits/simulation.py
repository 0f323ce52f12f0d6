"""The simulation of ``benchmarks/rate_limit.py``, for tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "benchmarks" / "rate_limit.py"
SPEC = importlib.util.spec_from_file_location("rate_limit", SOURCE)
rate_limit = importlib.util.module_from_spec(SPEC)
sys.modules["rate_limit"] = rate_limit  # data classes look their module up
SPEC.loader.exec_module(rate_limit)
