"""chatpool and its peers on the same server, in interleaved rounds.

python benchmarks/compare.py [ROUNDS] [--draw throughput.svg] [--only NAME …]

Over http and https, where each client loads the whole CA bundle; with client and server pinned to a core each, and with
both free to use all cores, as users run it. Peers that are not installed are left out by name: pip install
'chatpool[bench]' brings them all. Figures are medians over the rounds, with their spread.
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
import tempfile
import time
from pathlib import Path

from clients import CLIENTS

HERE = Path(__file__).parent
# Share of the calls that a slow client makes.
SLOW = {
    "OpenAI SDK in threads": 0.25,
    "LangChain batch": 0.2,
    "litellm batch_completion": 0.1,
    "lm-deluge": 0.25,
    "flexllm": 0.25,
}
CALLS, WORKERS = 4000, 20
SETTINGS = [(scheme, is_pinned) for scheme in ("http", "https") for is_pinned in (True, False)]
# Name: scheme, latency, workers, calls; the ideal is latency × calls / workers. The client has made no call before.
COLD = {"500 workers, 0.2 s, https": ("https", 0.2, 500, 4000), "2,000 workers, 1 s, http": ("http", 1.0, 2000, 4000)}
HEAVY = {"OpenAI SDK in threads", "LangChain batch", "litellm batch_completion"}  # these would take minutes
TIMEOUT = 300  # seconds for one measurement
DRAWN = ["chatpool", "aiohttp + tenacity", "aiohttp, limit lifted", "Session.post in threads"]
DRAWN_WORKERS = [10, 20, 50, 100, 200, 500, 1000]
MODULES = ["requests", "chatpool", "openai", "litellm", "langchain_openai", "lm_deluge", "flexllm"]


def main():
    """Measure, and print the tables."""
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
    missing = [name for name in names if not all(map(is_installed, CLIENTS[name][1]))]
    names = [name for name in names if name not in missing]
    print_machine(names, missing)
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificates(Path(folder))
        print_table("µs of CPU a call, 20 workers", measure_cpu(names, args.rounds, certificate))
        for title, run in COLD.items():
            print_table(title, measure_cold(names, args.rounds, certificate, *run))
    print_imports(args.rounds)
    if args.draw:
        draw(args.draw, [name for name in DRAWN if name in names])


def make_certificates(folder):
    """Make a certificate for the server, and a bundle for the clients: its authority beside all of certifi's."""
    import certifi
    import trustme

    authority = trustme.CA()
    bundle, certificate = folder / "bundle.pem", folder / "server.pem"
    bundle.write_bytes(Path(certifi.where()).read_bytes() + b"\n" + authority.cert_pem.bytes())
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    for variable in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        os.environ[variable] = str(bundle)
    return certificate


def measure_cpu(names, rounds, certificate):
    """CPU time a call, warm, on a server that answers at once."""
    table = {name: {} for name in names}
    for scheme, is_pinned in SETTINGS:
        with Server(0.0, scheme, certificate, is_pinned=is_pinned) as url:
            column = f"{scheme}, {'a core each' if is_pinned else 'all cores'}"
            for _ in range(rounds):
                for name, row in table.items():
                    calls = int(CALLS * SLOW.get(name, 1))
                    found = child(name, url, WORKERS, calls, is_pinned=is_pinned, is_warm=True)
                    row.setdefault(column, []).append(found and found["cpu"] / calls * 1e6)
    return table


def measure_cold(names, rounds, certificate, scheme, latency, workers, calls):
    """Time for all calls over the ideal, CPU seconds and memory of a client that has made no call before."""
    table = {name: {} for name in names}
    with Server(latency, scheme, certificate, is_pinned=False) as url:
        for _ in range(rounds):
            for name, row in table.items():
                found = None
                if name not in HEAVY:
                    found = child(name, url, workers, calls, is_pinned=False, is_warm=False)
                row.setdefault("× ideal", []).append(found and found["wall"] * workers / latency / calls)
                row.setdefault("CPU s", []).append(found and found["cpu"])
                row.setdefault("MB", []).append(found and found["peak"] / 1024)
    return table


def child(name, url, workers, calls, *, is_pinned, is_warm):
    """Measure one client in a process of its own; None if it takes too long or fails."""
    asked = json.dumps({"name": name, "url": url, "workers": workers, "calls": calls, "is_warm": is_warm})
    command = [sys.executable, str(HERE / "compare.py"), "--child", asked]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    try:
        done = subprocess.run(
            command, **streams, preexec_fn=lambda: prepare(0 if is_pinned else None), env=environment(), timeout=TIMEOUT
        )
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        reason = done.stderr.strip().splitlines()[-1:] if isinstance(error, IndexError) else type(error).__name__
        print(f"{name} did not finish: {reason}", file=sys.stderr, flush=True)
        return None


def measure_here(name, url, workers, calls, is_warm):
    """Return CPU and wall seconds of all calls, and the peak memory in KiB."""
    run = CLIENTS[name][0](url, workers)
    if is_warm:
        run(workers)
    cpu, began = cpu_seconds(), time.perf_counter()
    answers = run(calls)
    wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    assert list(answers) == ["pong"] * calls, list(answers)[:3]
    status = Path("/proc/self/status").read_text()
    return {"cpu": cpu, "wall": wall, "peak": int(status.split("VmHWM:")[1].split()[0])}


def cpu_seconds():
    """User and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def environment():
    """No proxies; quiet peers."""
    skipped = {"PYTHONDONTWRITEBYTECODE"}  # an import is to find its modules compiled
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "PYTHONWARNINGS": "ignore"}
    return {**{k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k not in skipped}, **quiet}


def prepare(core=None):
    """Keep to one core, 0 the first, -1 the last; and have room for two thousand sockets."""
    cores = sorted(os.sched_getaffinity(0))
    if core is not None and len(cores) > 1:
        os.sched_setaffinity(0, {cores[core]})
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


class Server:
    """benchmarks/server.py in a process of its own."""

    def __init__(self, latency, scheme, certificate, *, is_pinned):
        self.command = [sys.executable, str(HERE / "server.py"), str(latency)]
        if scheme == "https":
            self.command.append(str(certificate))
        self.core = -1 if is_pinned else None

    def __enter__(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(self.command, **pipes, text=True, preexec_fn=lambda: prepare(self.core))
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


def print_machine(names, missing):
    """What is compared, where."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    packages = sorted({"urllib3", *(package for name in names for package in CLIENTS[name][1])})
    found = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    print(f"Python {platform.python_version()}, {cpu}, {os.cpu_count()} cores; {', '.join(found)}")
    if missing:
        print(f"not installed, left out: {', '.join(missing)}")
    with Server(0.0, "http", None, is_pinned=True) as url:
        print(f"the server alone: {alone(url):,.0f} calls a second", flush=True)


def is_installed(name):
    """Whether a distribution is there."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def print_table(title, table):
    """One row for each client: medians, with the lowest and the highest round; and chatpool's ratio to it."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    print(f"\n| {title} | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, row in table.items():
        print(f"| {name} | " + " | ".join(spread(row.get(column)) for column in columns) + " |")
    ours = table.get("chatpool", {})
    for name, row in table.items():
        ratios = [ratio_of(ours.get(column), row.get(column)) for column in columns]
        if row is not ours and set(ratios) != {"–"}:
            print(f"chatpool over {name}: {', '.join(ratios)}")
    print(flush=True)


def spread(values):
    """Median (lowest–highest)."""
    values = [value for value in values or () if value is not None]
    if not values:
        return "not run"
    digits = 2 if max(values) < 100 else 0
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def ratio_of(ours, theirs):
    """Median of the rounds' ratios."""
    pairs = [(a, b) for a, b in zip(ours or (), theirs or ()) if a and b]
    return f"{statistics.median(a / b for a, b in pairs):.2f}" if pairs else "–"


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
    with Server(latency, "http", None, is_pinned=False) as url:
        for name in names:
            found = [throughput(name, url, workers) for workers in DRAWN_WORKERS]
            axes.plot(DRAWN_WORKERS, found, marker="o", label=name, linewidth=2.5 if name == "chatpool" else 1.2)
    axes.set(
        xscale="log", yscale="log", xlabel="workers", ylabel="calls a second", title="An endpoint that takes 0.2 s"
    )
    axes.set_xticks(DRAWN_WORKERS, [str(workers) for workers in DRAWN_WORKERS])
    axes.legend()
    figure.savefig(path)
    print(f"drawn: {path}")


def throughput(name, url, workers):
    """Calls a second with so many workers."""
    calls = 6 * workers
    return calls / child(name, url, workers, calls, is_pinned=False, is_warm=True)["wall"]


if __name__ == "__main__":
    main()
