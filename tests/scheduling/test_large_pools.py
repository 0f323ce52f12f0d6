"""Pools of hundreds of workers, over real sockets."""

from __future__ import annotations

import gc
import io
import os
import threading
import time

import requests

from chatpool import ChatPool, DeadlineError
from chatpool.testing import FakeChatServer, Reply
from tests.conftest import chatpool_threads, wait_until

LARGE = 300  # workers


def test_large_pool_answers_everything():
    """Also where parse maps on the same pool, or waits for another thread that does."""
    with FakeChatServer(latency=0.05) as server, ChatPool(300, base_url=server.url, timeout=(5, 20)) as pool:
        prompts = [str(number) for number in range(1200)]
        assert pool.map(prompts) == prompts

        def parse(text):
            found = []
            thread = threading.Thread(target=lambda: found.append(pool.ask(text + "!")))
            thread.start()
            thread.join()
            return found + pool.map([text + "?"])

        assert pool.map(prompts[:40], parse=parse) == [[f"{text}!", f"{text}?"] for text in prompts[:40]]


def test_server_that_drips_holds_up_nobody():
    with FakeChatServer() as server:
        server.script("failing", Reply("x" * 200, fault="drip"))
        with ChatPool(300, base_url=server.url, timeout=(30, 60), max_tries=1) as pool:
            results = pool.imap_unordered(["failing"] * 100 + ["well"] * 400)
            came = [next(results).prompt for _ in range(400)]
            results.close()
    assert came == ["well"] * 400


def test_deadline_of_a_large_pool():
    with FakeChatServer(latency=30) as server, ChatPool(LARGE, base_url=server.url) as pool:
        answers = pool.map(["x"] * 600, deadline=0.5)
    assert {type(failure.error) for failure in answers.failures} == {DeadlineError}
    assert len(answers.failures) == 600


def test_nothing_is_left_of_a_large_pool():
    with FakeChatServer() as server:
        pool = ChatPool(LARGE, base_url=server.url)
        pool.map(["x"] * 600)
        pool.close()
        assert chatpool_threads() == []
        pool = ChatPool(LARGE, base_url=server.url)
        pool.map(["x"] * 600)
        del pool
        gc.collect()
        assert wait_until(lambda: chatpool_threads() == [])


def test_closed_from_one_of_its_own_threads():
    with FakeChatServer() as server:
        pool = ChatPool(LARGE, base_url=server.url)
        server.script("slow", Reply("slow", delay=30))
        futures = [pool.submit("slow") for _ in range(20)]
        pool.submit("x").add_done_callback(lambda _: pool.close())
        assert wait_until(lambda: all(future.done() for future in futures))
        assert wait_until(lambda: chatpool_threads() == [])


def test_forked_child_has_its_own_workers(server):
    with ChatPool(LARGE, base_url=server.url) as pool:
        pool.map(["x"] * 600)
        child = os.fork()
        if not child:
            is_right = pool.map(["y"] * 600) == ["y"] * 600
            pool.close()
            os._exit(0 if is_right else 1)
        assert pool.map(["x"] * 600) == ["x"] * 600
        began = time.monotonic()
        assert os.waitpid(child, 0)[1] == 0
        assert time.monotonic() - began < 30


def test_adapter_of_the_users_may_hold_all_requests_at_once():
    everybody = threading.Barrier(100)

    class Adapter(requests.adapters.BaseAdapter):
        def send(self, request, **options):
            everybody.wait(10)
            response = requests.Response()
            response.status_code, response.request, response.url = 200, request, request.url
            response.raw = io.BytesIO(b'{"choices": [{"message": {"content": "b"}, "finish_reason": "stop"}]}')
            return response

        def close(self):
            pass

    with requests.Session() as session:
        session.mount("http://", Adapter())
        with ChatPool(100, base_url="http://127.0.0.1:9/v1", session=session) as pool:
            assert pool.map(["a"] * 100) == ["b"] * 100
