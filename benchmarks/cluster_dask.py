"""What Dask's scheduler takes: python benchmarks/cluster_dask.py (pip install distributed)

Worker processes send lumps with ``Worker.log_event``, a client takes them with ``Client.subscribe_topic``: the way on
which results would stream back. Printed for lumps of several sizes: events a second, the scheduler's and the client's
CPU for each, and whether any was lost; then the same for one task a prompt. Scheduler, two workers and client share
this machine's cores, so the rates are a lower bound, and the CPU is the better figure.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed import Client, get_worker

SIZES = {2_000: 4_000, 20_000: 4_000, 200_000: 1_000, 1_000_000: 200}  # bytes: events
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


def tell(topic: str, size: int, events: int) -> None:
    """In a worker: send so many lumps of so many bytes."""
    lump = "x" * size
    for _ in range(events):
        get_worker().log_event(topic, lump)


def measure_events(client: Client, size: int, events: int) -> tuple[float, float, float, int]:
    """Return events a second, the scheduler's and the client's seconds of CPU for each, and how many arrived."""
    arrived, all_there, topic = 0, threading.Event(), f"lumps of {size}"

    def take(event: Any) -> None:
        nonlocal arrived
        arrived += 1
        if arrived >= events:
            all_there.set()

    client.subscribe_topic(topic, take)
    began, cpu, own = time.perf_counter(), client.run_on_scheduler(time.process_time), time.process_time()
    client.gather([client.submit(tell, topic, size, events // WORKERS, key=f"{topic} {n}") for n in range(WORKERS)])
    all_there.wait(SECONDS)
    took, own = time.perf_counter() - began, time.process_time() - own
    cpu = client.run_on_scheduler(time.process_time) - cpu
    client.unsubscribe_topic(topic)
    return arrived / took, cpu / events, own / events, arrived


def measure_tasks(client: Client, tasks: int) -> tuple[float, float]:
    """Return tasks a second, one for each prompt, and the scheduler's seconds of CPU for each."""
    began, cpu = time.perf_counter(), client.run_on_scheduler(time.process_time)
    client.gather(client.map(len, [f"prompt {number}" for number in range(tasks)], pure=False))
    took = time.perf_counter() - began
    return tasks / took, (client.run_on_scheduler(time.process_time) - cpu) / tasks


def main() -> None:
    with cluster() as client:
        print("distributed", client.get_versions()["client"]["packages"]["distributed"])
        measure_events(client, 100, 200)  # warms up
        print(f"{'lump':>12} {'events/s':>9} {'MB/s':>6} {'scheduler CPU, µs':>18} {'client CPU, µs':>15} {'lost':>5}")
        for size, events in SIZES.items():
            rate, cpu, own, arrived = measure_events(client, size, events)
            print(
                f"{size:10,} B {rate:9,.0f} {rate * size / 1e6:6.1f} {cpu * 1e6:18,.0f} {own * 1e6:15,.0f}",
                f"{events - arrived:5}",
            )
        rate, cpu = measure_tasks(client, 5_000)
        print(f"{'a task':>12} {rate:9,.0f} {'':6} {cpu * 1e6:18,.0f}")


if __name__ == "__main__":
    main()
