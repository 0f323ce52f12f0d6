"""A Session of the user's, shared by pools."""

from __future__ import annotations

import pickle
import sys
import threading

import pytest
import requests

from chatpool import (
    ChatPool,
)
from chatpool.testing import FakeChatServer
from tests.conftest import wait_until


def test_session_of_the_users_is_closed_for_our_address(server):
    """Twenty threads at first use make one set of connections, and close() closes all of them."""
    for _ in range(5):
        with requests.Session() as session:
            pool = ChatPool(4, base_url=server.url, session=session)
            barrier = threading.Barrier(20)

            def use(pool=pool, barrier=barrier):
                barrier.wait()
                pool.ask("x")

            threads = [threading.Thread(target=use) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            pool.close()
            assert wait_until(lambda: server.open_connections == 0)


@pytest.mark.parametrize("first_to_close", [0, 1])
def test_two_pools_on_one_session_leave_no_connection(server, first_to_close):
    """The later pool's adapter serves both; whichever closes last closes it."""
    with requests.Session() as session:
        pools = [ChatPool(2, base_url=server.url, session=session) for _ in range(2)]
        for pool in pools:
            assert pool.map(["a"] * 4) == ["a"] * 4
        pools.pop(first_to_close).close()
        assert pools[0].map(["b"] * 4) == ["b"] * 4
        pools[0].close()
        assert wait_until(lambda: server.open_connections == 0)


def test_two_pools_with_two_addresses_on_one_session_close_their_own(server):
    with FakeChatServer() as other, requests.Session() as session:
        pools = [ChatPool(2, base_url=url, session=session) for url in (server.url, other.url)]
        for pool in pools:
            pool.map(["a"] * 4)
        for pool in pools:
            pool.close()
        assert wait_until(lambda: server.open_connections == 0 and other.open_connections == 0)


def test_pool_may_be_made_while_another_uses_its_session(server):
    """The threads of the other look at the Session's adapters all the time."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with requests.Session() as session, ChatPool(4, base_url=server.url, session=session) as busy:
            failures, is_over = [], threading.Event()

            def use():
                while not is_over.is_set():
                    failures.extend(busy.map(["a"] * 40).failures)

            user = threading.Thread(target=use)
            user.start()
            for number in range(200):
                ChatPool(1, base_url=f"{server.url}/{number}", session=session)._engine()
            is_over.set()
            user.join()
            assert failures == []
            assert list(session.adapters) == sorted(session.adapters, key=len, reverse=True)
    finally:
        sys.setswitchinterval(interval)


def test_session_that_a_pool_has_used_can_be_pickled(server):
    with requests.Session() as session:
        ChatPool(2, base_url=server.url, session=session).ask("a")
        with pickle.loads(pickle.dumps(session)) as copy:
            body = {"messages": [{"role": "user", "content": "b"}]}
            assert copy.post(f"{server.url}/chat/completions", json=body).ok
            assert ChatPool(2, base_url=server.url, session=copy).ask("c") == "c"
