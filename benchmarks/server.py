"""A chat API that answers at once or after a fixed time, and costs as little as it can: it must not be the bottleneck.

python benchmarks/server.py [LATENCY [CERTIFICATE]]    prints its base URL

CERTIFICATE: a PEM file with a key and a certificate chain for localhost, for https.
"""

import asyncio
import json
import os
import ssl
import sys

BODY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "pong"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    }
).encode()
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
BACKLOG = 4096


class Chat(asyncio.Protocol):
    """One connection."""

    latency = 0.0

    def connection_made(self, transport):
        self.transport, self.data = transport, b""

    def data_received(self, data):
        self.data += data
        while True:
            head, found, rest = self.data.partition(b"\r\n\r\n")
            if not found:
                return
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            if len(rest) < length:
                return
            self.data = rest[length:]
            self.answer()

    def answer(self):
        if self.latency:
            asyncio.get_running_loop().call_later(self.latency, self.write)
        else:
            self.write()

    def write(self):
        if not self.transport.is_closing():
            self.transport.write(REPLY)


async def main():
    """Serve until stdin closes, as it does when the process that started this ends."""
    Chat.latency = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    context = None
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[2])
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Chat, "127.0.0.1", 0, backlog=BACKLOG, ssl=context)
    port = server.sockets[0].getsockname()[1]
    print(f"https://localhost:{port}/v1" if context else f"http://127.0.0.1:{port}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
