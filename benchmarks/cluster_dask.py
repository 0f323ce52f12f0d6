"""What Dask's scheduler takes: python benchmarks/cluster_dask.py (pip install distributed)

Worker processes put lumps into a ``Queue``, a client takes all there are every 50 ms: the way on which results stream
back. Printed for lumps of several sizes: lumps a second, the scheduler's and the client's CPU for each; then the same
for one task a prompt. Scheduler, two workers and client share
this machine's cores, so the rates are a lower bound, and the CPU is the better figure.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from distributed import Client, Queue, get_client

SIZES = {2_000: 2_000, 20_000: 2_000, 200_000: 500, 1_000_000: 100}  # bytes: lumps
POLL = 0.05  # seconds
WORKERS = 2
SECONDS = 60.0  # a backstop


@contextlib.contextmanager
def cluster() -> Iterator[Client]:
    """A scheduler and its workers in processes of their own, because it is their CPU that is measured."""
    with tempfile.TemporaryDirectory() as place:
        told = Path(place, "scheduler.json")
        common = ["--no-dashboard", "--scheduler-file", str(told)]
        scheduler = _start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", *common)
        workers = [_start("dask_worker", "--nthreads", "1", "--no-nanny", *common) for _ in range(WORKERS)]
        try:
            with Client(scheduler_file=str(told), timeout=SECONDS) as client:
                client.wait_for_workers(WORKERS, timeout=SECONDS)
                yield client
        finally:
            for process in [*workers, scheduler]:
                process.terminate()
                process.wait()


def _start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def tell(name: str, size: int, lumps: int) -> None:
    """In a worker: send so many lumps of so many bytes."""
    lump = b"x" * size
    with contextlib.closing(Queue(name, client=get_client())) as queue:
        for _ in range(lumps):
            queue.put(lump)


def measure_lumps(client: Client, size: int, lumps: int) -> tuple[float, float, float]:
    """Return lumps a second, and the scheduler's and the client's seconds of CPU for each."""
    arrived, name = 0, f"lumps of {size}"
    with contextlib.closing(Queue(name, client=client)) as queue:
        began, cpu, own = time.perf_counter(), client.run_on_scheduler(time.process_time), time.process_time()
        sent = [client.submit(tell, name, size, lumps // WORKERS, key=f"{name} {n}") for n in range(WORKERS)]
        while arrived < lumps:
            time.sleep(POLL)
            arrived += len(queue.get(batch=True))
        took, own = time.perf_counter() - began, time.process_time() - own
        cpu = client.run_on_scheduler(time.process_time) - cpu
        client.gather(sent)
    return lumps / took, cpu / lumps, own / lumps


def measure_tasks(client: Client, tasks: int) -> tuple[float, float]:
    """Return tasks a second, one for each prompt, and the scheduler's seconds of CPU for each."""
    began, cpu = time.perf_counter(), client.run_on_scheduler(time.process_time)
    client.gather(client.map(len, [f"prompt {number}" for number in range(tasks)], pure=False))
    took = time.perf_counter() - began
    return tasks / took, (client.run_on_scheduler(time.process_time) - cpu) / tasks


def main() -> None:
    with cluster() as client:
        print("distributed", client.get_versions()["client"]["packages"]["distributed"])
        measure_lumps(client, 100, 200)  # warms up
        print(f"{'lump':>12} {'lumps/s':>9} {'MB/s':>6} {'scheduler CPU, µs':>18} {'client CPU, µs':>15}")
        for size, lumps in SIZES.items():
            rate, cpu, own = measure_lumps(client, size, lumps)
            print(f"{size:10,} B {rate:9,.0f} {rate * size / 1e6:6.1f} {cpu * 1e6:18,.0f} {own * 1e6:15,.0f}")
        rate, cpu = measure_tasks(client, 5_000)
        print(f"{'a task':>12} {rate:9,.0f} {'':6} {cpu * 1e6:18,.0f}")


if __name__ == "__main__":
    main()
