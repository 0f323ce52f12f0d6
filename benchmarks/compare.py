"""chatpool and its peers on the same server, in interleaved rounds.

python benchmarks/compare.py [ROUNDS] [--draw throughput.svg] [--only NAME …]

The server runs on the last core and the clients on the first, where there are two. Peers that are not installed are
left out by name: pip install 'chatpool[bench]' brings them all. Figures are medians over the rounds, with their spread.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from clients import CLIENTS

HERE = Path(__file__).parent
SLOW = {"OpenAI SDK in threads": 0.25, "LangChain batch": 0.2, "litellm batch_completion": 0.1}  # share of the calls
CPU_CALLS, CPU_WORKERS = 4000, 20
# Name: latency, workers, calls; the ideal is latency × calls / workers.
MAKESPANS = {"500 workers, 0.2 s": (0.2, 500, 4000), "2,000 workers, 1 s": (1.0, 2000, 4000)}
# Left out of the makespans, which take them minutes: the OpenAI SDK took 29 and 25 times the ideal, and hung once.
HEAVY = {"OpenAI SDK in threads", "LangChain batch", "litellm batch_completion"}
DRAWN = ["chatpool", "aiohttp + tenacity", "aiohttp, limit lifted", "Session.post in threads"]
DRAWN_WORKERS = [10, 20, 50, 100, 200, 500, 1000]
MODULES = ["requests", "chatpool", "openai", "litellm", "langchain_openai"]


def main():
    """Measure, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    parser.add_argument("--draw", metavar="FILE")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure_here(**json.loads(args.child))))
        return
    names = [name for name in CLIENTS if not args.only or name in args.only]
    missing = [name for name in names if not all(map(importlib.util.find_spec, CLIENTS[name][1]))]
    names = [name for name in names if name not in missing]
    print_machine(missing)
    table = {name: {} for name in names}
    measure_cpu(table, args.rounds)
    for title, (latency, workers, calls) in MAKESPANS.items():
        measure_makespan(table, title, latency, workers, calls, args.rounds)
    print_table(table)
    print_imports(args.rounds)
    if args.draw:
        draw(args.draw, [name for name in DRAWN if name in names])


def measure_cpu(table, rounds):
    """CPU time a call and calls a second, on a server that answers at once."""
    with Server(0.0) as url:
        print(f"the server alone: {alone(url):,.0f} calls a second\n", flush=True)
        for _ in range(rounds):
            for name, row in table.items():
                found = child(name, url, CPU_WORKERS, int(CPU_CALLS * SLOW.get(name, 1)))
                row.setdefault("µs CPU a call", []).append(found["cpu"] * 1e6)
                row.setdefault("calls a second", []).append(1 / found["wall"])


def measure_makespan(table, title, latency, workers, calls, rounds):
    """Time for all calls over the ideal, and the memory that it took."""
    with Server(latency) as url:
        for _ in range(rounds):
            for name, row in table.items():
                if name not in HEAVY:
                    found = child(name, url, workers, calls)
                    row.setdefault(f"{title}: × ideal", []).append(found["wall"] * workers / latency)
                    row.setdefault(f"{title}: MB", []).append(found["peak"] / 1024)


def child(name, url, workers, calls):
    """Measure one client in a process of its own."""
    told = json.dumps({"name": name, "url": url, "workers": workers, "calls": calls})
    command = [sys.executable, str(HERE / "compare.py"), "--child", told]
    done = subprocess.run(command, stdout=subprocess.PIPE, preexec_fn=lambda: pin(0), check=True, env=environment())
    return json.loads(done.stdout.splitlines()[-1])


def measure_here(name, url, workers, calls):
    """Return CPU and wall seconds a call, and the peak memory in KiB."""
    run = CLIENTS[name][0](url, workers)
    cpu, began = cpu_seconds(), time.perf_counter()
    answers = run(calls)
    wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    assert list(answers) == ["pong"] * calls, answers[:3]
    status = Path("/proc/self/status").read_text()
    return {"cpu": cpu / calls, "wall": wall / calls, "peak": int(status.split("VmHWM:")[1].split()[0])}


def cpu_seconds():
    """User and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def environment():
    """No proxies; quiet peers; room for two thousand threads and sockets."""
    skipped = {"PYTHONDONTWRITEBYTECODE"}  # an import is to find its modules compiled
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "PYTHONWARNINGS": "ignore"}
    return {**{k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k not in skipped}, **quiet}


def pin(core):
    """Keep to one core: 0 the first, -1 the last."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[core]})
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


class Server:
    """benchmarks/server.py in a process of its own."""

    def __init__(self, latency):
        self.command = [sys.executable, str(HERE / "server.py"), str(latency)]

    def __enter__(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(self.command, **pipes, text=True, preexec_fn=lambda: pin(-1))
        return self.process.stdout.readline().strip()

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def alone(url, batch=50, seconds=1.0):
    """Calls a second that the server takes from bare sockets, so many in one send."""
    port = int(url.split(":")[2].split("/")[0])
    body = b"x" * 80
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(request)
        size = len(sock.recv(65536))
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            sock.sendall(request * batch)
            missing = size * batch
            while missing:
                missing -= len(sock.recv(65536))
            count += batch
    return count / seconds


def print_machine(missing):
    """What was compared, where."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    packages = ["chatpool", "requests", "urllib3", "aiohttp", "tenacity", "openai", "langchain-openai", "litellm"]
    found = [f"{name} {importlib.metadata.version(name)}" for name in packages if is_installed(name)]
    print(f"Python {platform.python_version()}, {cpu}, {os.cpu_count()} cores; {', '.join(found)}")
    if missing:
        print(f"not installed, left out: {', '.join(missing)}")


def is_installed(name):
    """Whether a distribution is there."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def print_table(table):
    """One row for each client: medians, with the lowest and the highest round."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    print("| | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(spread(row.get(column)) for column in columns) + " |")
    print()
    first = table.get("chatpool")
    for name, row in table.items() if first else ():
        if row is not first:
            ratio = ratio_of(first["µs CPU a call"], row["µs CPU a call"])
            print(f"CPU a call, chatpool over {name}: {ratio:.2f}")


def spread(values):
    """Median (lowest–highest)."""
    if not values:
        return "not run"
    digits = 2 if max(values) < 100 else 0
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def ratio_of(ours, theirs):
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs))


def print_imports(rounds):
    """CPU seconds that an import takes, over that of requests."""
    found = {module: [] for module in MODULES if importlib.util.find_spec(module)}
    bare = []
    for module in found:
        import_cpu(module)  # compiles it
    for _ in range(rounds):
        bare.append(import_cpu("sys"))
        for module, values in found.items():
            values.append(import_cpu(module))
    print()
    for module, values in found.items():
        own = statistics.median(values) - statistics.median(bare)
        base = statistics.median(found["requests"]) - statistics.median(bare)
        print(f"import {module}: {own * 1000:.0f} ms of CPU, {own / base:.2f} × requests")


def import_cpu(module):
    """CPU seconds of a process that imports a module."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, env=environment())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def draw(path, names):
    """Throughput against workers on an endpoint of 0.2 s."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    latency = 0.2
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    ideal = [workers / latency for workers in DRAWN_WORKERS]
    axes.plot(DRAWN_WORKERS, ideal, color="0.7", linestyle="--", label="ideal")
    with Server(latency) as url:
        for name in names:
            found = [1 / child(name, url, workers, 6 * workers)["wall"] for workers in DRAWN_WORKERS]
            axes.plot(DRAWN_WORKERS, found, marker="o", label=name, linewidth=2.5 if name == "chatpool" else 1.2)
    axes.set(
        xscale="log", yscale="log", xlabel="workers", ylabel="calls a second", title="An endpoint that takes 0.2 s"
    )
    axes.set_xticks(DRAWN_WORKERS, [str(workers) for workers in DRAWN_WORKERS])
    axes.legend()
    figure.savefig(path)
    print(f"drawn: {path}")


if __name__ == "__main__":
    main()
