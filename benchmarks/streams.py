"""What streaming costs: CPU time for each event of an answer, and whether hundreds of streams at once keep up.

python benchmarks/streams.py [ROUNDS]

The server is another process. It sends an answer of 200 events in one packet, or each event by itself, at once or
2 ms apart; it does not wait for the client, so the time that a stream takes beyond its schedule is the client's delay.
Of events that come apart, most of the cost is the time to wake a thread, as a bare ``recv`` in 20 threads shows.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

EVENTS = 200
NO_GAP, GAP = 1e-9, 0.002  # seconds between two events
CALLS, WORKERS = 400, 20
STREAMS, RATE, SECONDS = 500, 20, 10  # streams at once, events a second of each, seconds
TEXT = " word"


def chunk(**fields):
    """Return a chunk as OpenAI sends it, in a chunk of the transfer coding."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "bench"}
    event = b"data: " + json.dumps({**head, **fields}, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def delta(content, reason=None):
    return chunk(choices=[{"index": 0, "delta": content, "logprobs": None, "finish_reason": reason}])


USAGE = {"prompt_tokens": 9, "completion_tokens": EVENTS, "total_tokens": EVENTS + 9}
FIRST, MIDDLE = delta({"role": "assistant", "content": ""}), delta({"content": TEXT})
LAST = delta({}, "stop") + chunk(choices=[], usage=USAGE) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def plain_reply(events):
    """Return the same answer without streaming."""
    message = {"role": "assistant", "content": TEXT * events}
    body = json.dumps(
        {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "bench", "usage": USAGE,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        }
    ).encode()  # fmt: skip
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


class Chat(asyncio.Protocol):
    """One connection. The prompt is how the answer is to be sent: a JSON list of the number of events and the gap."""

    def connection_made(self, transport):
        self.transport, self.data = transport, b""

    def data_received(self, data):
        self.data += data
        head, found, rest = self.data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if not found or len(rest) < length:
            return
        self.data = b""
        body = json.loads(rest)
        events, gap = json.loads(body["messages"][0]["content"])
        if not body.get("stream"):
            self.transport.write(plain_reply(events))
        elif not gap:
            self.transport.write(STREAM_HEAD + FIRST + MIDDLE * events + LAST)
        else:
            self.transport.write(STREAM_HEAD + FIRST)
            self.send(asyncio.get_running_loop().time(), 1, events, gap)

    def send(self, began, number, events, gap):
        if number > events:
            self.transport.write(LAST)
            return
        self.transport.write(MIDDLE)
        asyncio.get_running_loop().call_at(began + number * gap, self.send, began, number + 1, events, gap)


async def serve():
    """Serve until stdin closes."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Chat, "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    os._exit(0)


def cpu_a_call(url, gap, **settings):
    """Return the µs of CPU of this process for a call."""
    from chatpool import ChatPool

    with ChatPool(WORKERS, base_url=url, progress=False, **settings) as pool:
        pool.map([json.dumps([EVENTS, 0])] * WORKERS)
        began = time.process_time()
        answers = pool.map([json.dumps([EVENTS, gap])] * CALLS)
        used = time.process_time() - began
    assert answers == [TEXT * EVENTS] * CALLS, answers.summary()
    return used / CALLS * 1e6


def many_streams(url):
    """Return the s by which the last event of the median and of the slowest stream came late, and the cores in use."""
    from chatpool import ChatPool

    with ChatPool(STREAMS, base_url=url, progress=False, idle_timeout=30) as pool:
        cpu, began = time.process_time(), time.monotonic()
        answers = pool.map([json.dumps([RATE * SECONDS, 1 / RATE])] * STREAMS)
        wall, cpu = time.monotonic() - began, time.process_time() - cpu
    assert all(result.attempts == 1 for result in answers.results), answers.summary()
    late = sorted(result.elapsed - result.first_token - SECONDS for result in answers.results)
    return late[STREAMS // 2], late[-1], cpu / wall


def first_piece(url):
    """Return the ms from the server's write to the first piece of pool.stream, without and with other streams."""
    from chatpool import ChatPool

    with ChatPool(STREAMS, base_url=url, progress=False) as pool:
        quiet = statistics.median(delay_of_pieces(pool) for _ in range(20))
        threads = [threading.Thread(target=list, args=(pool.stream("[100, 0.05]"),)) for _ in range(100)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        busy = statistics.median(delay_of_pieces(pool) for _ in range(10))
        for thread in threads:
            thread.join()
    return quiet, busy


def delay_of_pieces(pool):
    """Return the ms by which pieces that are due every 50 ms come late, the first of them being on time."""
    times = [time.monotonic() for _ in pool.stream("[6, 0.05]")]
    return max(later - earlier - 0.05 for earlier, later in zip(times, times[1:])) * 1000


def main():
    """Measure in interleaved rounds, and print the table."""
    if sys.argv[1:] == ["--server"]:
        asyncio.run(serve())
        return
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    server = subprocess.Popen(
        [sys.executable, Path(__file__), "--server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    url = server.stdout.readline().strip()
    kinds = {
        "plain": (0, {}),
        f"{EVENTS} events in one packet": (0, {"idle_timeout": 30}),
        f"{EVENTS} events, one after another": (NO_GAP, {"idle_timeout": 30}),
        f"{EVENTS} events, {GAP * 1000:g} ms apart": (GAP, {"idle_timeout": 30}),
    }
    found = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, (gap, settings) in kinds.items():
            found[kind].append(cpu_a_call(url, gap, **settings))
    plain = statistics.median(found["plain"])
    for kind, values in found.items():
        value = statistics.median(values)
        print(f"{kind:32} {value:8,.0f} µs of CPU a call; {(value - plain) / EVENTS:6.2f} µs an event over plain")
    print(f"{'bound: 3 × plain + 10 µs an event':32} {3 * plain + 10 * EVENTS:8,.0f}")
    median, worst, cores = many_streams(url)
    print(
        f"{STREAMS} streams of {RATE} events a second: after {SECONDS} s the median one is {median:.2f} s late, "
        f"the slowest {worst:.2f} s; {cores:.2f} cores in use"
    )
    print("pool.stream: pieces are {:.2f} ms late; with 100 other streams {:.2f} ms".format(*first_piece(url)))
    server.stdin.close()
    server.wait()


if __name__ == "__main__":
    main()
