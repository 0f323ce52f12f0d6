"""How much longer ``import chatpool`` takes than ``import requests``: ``python benchmarks/import_time.py [pairs]``.

Installs the package in a new virtual environment, as pip installs it for a user: not editable, and compiled. Times the
import statement alone, in a process of its own each time, in turns, so that other load on the machine affects both.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

MODULES = ("requests", "chatpool")
PROGRAM = """
import time
wall, cpu = time.perf_counter(), time.process_time()
import {module}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as folder:
        python = install(Path(folder))
        for module in MODULES:  # once before, for the disk's cache
            measure(python, module)
        taken = {module: [] for module in MODULES}
        for _ in range(pairs):
            for module in MODULES:
                taken[module].append(measure(python, module))
    print(f"{sys.version.split()[0]}, medians of {pairs} interleaved pairs")
    for column, clock in enumerate(("elapsed", "CPU")):
        requests, chatpool = (statistics.median(times[column] for times in taken[module]) for module in MODULES)
        ratio = chatpool / requests
        print(f"{clock}: requests {requests * 1000:.0f} ms, chatpool {chatpool * 1000:.0f} ms, ratio {ratio:.2f}")


def install(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    package = Path(__file__).parents[1]
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--compile", package], check=True)
    return python


def measure(python: Path, module: str) -> list[float]:
    code = PROGRAM.format(module=module)
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    return [float(seconds) for seconds in done.stdout.split()]


if __name__ == "__main__":
    main()
