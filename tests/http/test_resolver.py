"""A name is looked up once for all connections of the next seconds, and its addresses are used in turn."""

from __future__ import annotations

import socket
import sys
import threading

import pytest

import chatpool._http.resolver
from chatpool._http.cancel import CancelScope
from chatpool._http.resolver import Resolver
from tests.http.conftest import black_hole

linux = pytest.mark.skipif(sys.platform != "linux", reason="others have no address 127.0.0.2")
V4, V6 = socket.AF_INET, socket.AF_INET6
ASKED = ("api.test", 443, socket.AF_UNSPEC, socket.SOCK_STREAM)


class Names:
    """Takes the place of socket.getaddrinfo: each look-up returns the next of these answers, and the last for ever."""

    def __init__(self, monkeypatch):
        self.answers, self.asked = [], 0
        monkeypatch.setattr(socket, "getaddrinfo", self.look_up)

    def look_up(self, *asked):
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [(V6 if ":" in ip else V4, socket.SOCK_STREAM, 6, "", (ip, asked[1])) for ip in answer]


@pytest.fixture
def names(monkeypatch):
    return Names(monkeypatch)


@pytest.fixture
def resolver():
    return Resolver()


def ips(resolver):
    return [address[-1][0] for address in resolver.look_up(CancelScope(), *ASKED)]


def test_one_look_up_serves_all_connections(names, resolver):
    names.answers = [["192.0.2.1"]]
    assert [ips(resolver) for _ in range(100)] == [["192.0.2.1"]] * 100
    assert names.asked == 1


def test_after_ten_seconds_the_name_is_looked_up_again(names, resolver, monkeypatch):
    assert chatpool._http.resolver._FRESH == 10
    names.answers = [["192.0.2.1"], ["192.0.2.2"]]
    monkeypatch.setattr(chatpool._http.resolver, "_FRESH", 0.0)
    assert ips(resolver) == ["192.0.2.1"]
    assert ips(resolver) == ["192.0.2.2"]


def test_connections_begin_with_each_address_in_turn(names, resolver):
    names.answers = [["192.0.2.1", "192.0.2.2", "192.0.2.3"]]
    assert [ips(resolver)[0][-1] for _ in range(6)] == ["1", "2", "3"] * 2
    assert sorted(ips(resolver)) == names.answers[0]


def test_kind_of_address_that_the_system_puts_last_stays_last(names, resolver):
    """There may be no route for it: each connection that began with it would wait until its time is over."""
    names.answers = [["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]]
    for _ in range(4):
        assert ips(resolver)[2:] == ["2001:db8::1", "2001:db8::2"]


def test_failure_serves_only_those_who_wait_for_it(names, resolver):
    names.answers = [socket.gaierror(-3, "Temporary failure in name resolution"), ["192.0.2.1"]]
    with pytest.raises(socket.gaierror):
        ips(resolver)
    assert ips(resolver) == ["192.0.2.1"]


@linux
def test_name_is_looked_up_again_after_none_of_its_addresses_was_reached(names, server, make_pool):
    names.answers = [["127.0.0.2"], ["127.0.0.1"]]  # the server listens at the second one
    pool = make_pool(base_url=f"http://api.test:{server.port}/v1", max_tries=2, max_wait=0.01)
    answers = pool.map(["a"])
    assert answers == ["a"]
    assert answers.results[0].attempts == 2


def test_failed_address_comes_last_for_ten_seconds(names, resolver, monkeypatch):
    names.answers = [["192.0.2.1", "192.0.2.2", "2001:db8::1"]]
    resolver.note_failure(("192.0.2.1", 443))
    for _ in range(4):
        assert ips(resolver) == ["192.0.2.2", "2001:db8::1", "192.0.2.1"]
    monkeypatch.setattr(chatpool._http.resolver, "_FRESH", 0.0)
    resolver.note_failure(("192.0.2.1", 443))
    assert [ips(resolver)[0] for _ in range(2)] == ["192.0.2.1", "192.0.2.2"]


@linux
@pytest.mark.parametrize(
    "answers",
    [
        [["127.0.0.2", "127.0.0.1"]],
        [["127.0.0.1", "127.0.0.2"]],
        [["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"]] * 10,
    ],
    ids=["dead one first", "dead one second", "a DNS server that gives them in turn"],
)
def test_address_that_does_not_answer_costs_each_call_one_attempt_at_most(answers, names, server, make_pool):
    """It takes all the time that an attempt has to connect."""
    names.answers = answers
    with black_hole("127.0.0.2", server.port):
        pool = make_pool(base_url=f"http://api.test:{server.port}/v1", timeout=(0.5, 10), max_tries=2, max_wait=0.01)
        assert pool.map(["a"] * 8) == ["a"] * 8


def test_cold_start_of_many_workers_looks_the_name_up_once(names, server, make_pool):
    names.answers = [["127.0.0.1"]]
    pool = make_pool(100, base_url=f"http://api.test:{server.port}/v1")
    assert pool.map(["a"] * 300) == ["a"] * 300
    assert names.asked == 1


def test_threads_that_ask_at_once_share_one_look_up(names, resolver):
    names.answers = [["192.0.2.1", "192.0.2.2"]]
    found, together = [], threading.Barrier(20)

    def ask():
        together.wait()
        found.append(ips(resolver)[0])

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names.asked == 1
    assert sorted(found) == ["192.0.2.1"] * 10 + ["192.0.2.2"] * 10
