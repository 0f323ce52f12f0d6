"""nginx in front: refusals and errors in HTML, connections that it closes when it likes, TLS."""

from __future__ import annotations

import socket

import pytest
import trustme

from chatpool import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ChatPool,
    InternalServerError,
    InvalidResponseError,
    NotFoundError,
    NotSentError,
)
from tests.conftest import wait_until

from .servers import require

require("nginx")

PROMPTS = [f"question {number}" for number in range(500)]


@pytest.fixture
def gateway(make_nginx, behind):
    """Start nginx before the server that answers every prompt with itself."""

    def make(location="", **directives):
        pass_on = f"location / {{ {location} proxy_pass http://127.0.0.1:{behind.port}; }}"
        return make_nginx(directives.pop("server", "") + pass_on, **directives)

    return make


def connections(folder, requests):
    """The requests that each connection carried and was answered, by nginx's own log."""

    def lines():
        return [line.split() for line in (folder / "access.log").read_text().splitlines() if line.endswith("200")]

    assert wait_until(lambda: len(lines()) >= requests), f"{len(lines())} of {requests} are in the log"
    carried: dict[str, int] = {}
    for connection, count, _ in lines():
        carried[connection] = max(carried.get(connection, 0), int(count))
    return list(carried.values())


def test_every_prompt_has_its_own_answer(gateway, tmp_path):
    """25 workers keep 25 connections."""
    with ChatPool(25, base_url=gateway().api) as pool:
        answers = pool.map(PROMPTS)
    assert answers == PROMPTS
    assert {result.attempts for result in answers.results} == {1}
    assert len(connections(tmp_path, 500)) <= 25


def test_a_limit_that_names_no_delay_loses_no_call(gateway):
    """limit_req: 20 a second and a burst of 10, refused with 429 in HTML and without Retry-After."""
    refused = []
    zone = "limit_req_zone $server_addr zone=all:1m rate=20r/s;"
    server = gateway(http=zone, location="limit_req zone=all burst=10 nodelay; limit_req_status 429;")
    with ChatPool(25, base_url=server.api, on_retry=refused.append) as pool:
        assert pool.map(PROMPTS[:100]) == PROMPTS[:100]
    assert {(retry.error.status_code, retry.error.retry_after) for retry in refused} == {(429, None)}
    assert "<html>" in refused[0].error.body


def test_a_limit_that_names_its_delay_loses_no_call(gateway):
    """The same with a Retry-After of a second."""
    refused = []
    zone = "limit_req_zone $server_addr zone=all:1m rate=20r/s;"
    location = "limit_req zone=all burst=10 nodelay; limit_req_status 429; add_header Retry-After 1 always;"
    with ChatPool(25, base_url=gateway(http=zone, location=location).api, on_retry=refused.append) as pool:
        assert pool.map(PROMPTS[:100]) == PROMPTS[:100]
    assert {(retry.error.status_code, retry.error.retry_after) for retry in refused} == {(429, 1.0)}


def test_too_many_connections_lose_no_call(gateway):
    """limit_conn: ten at once; the others are refused with 503 until some are free."""
    refused = []
    zone = "limit_conn_zone $server_addr zone=all:1m;"
    with ChatPool(
        25,
        base_url=gateway(http=zone, location="limit_conn all 10;").api,
        max_wait=0.5,
        max_tries=50,
        on_retry=refused.append,
    ) as pool:
        assert pool.map(PROMPTS) == PROMPTS
    assert {retry.error.status_code for retry in refused} <= {503}


@pytest.mark.parametrize("requests", [1, 10, 100])
def test_connections_closed_after_so_many_answers_cost_nothing(gateway, tmp_path, requests):
    """keepalive_requests: nothing is asked twice, and each connection is used to its end."""
    with ChatPool(5, base_url=gateway(server=f"keepalive_requests {requests};").api) as pool:
        answers = pool.map(PROMPTS)
    assert answers == PROMPTS
    assert {result.attempts for result in answers.results} == {1}
    carried = connections(tmp_path, 500)
    assert max(carried) == requests
    assert len(carried) <= 500 / requests + 5


def test_connections_that_died_of_idleness_are_replaced(gateway, tmp_path):
    """keepalive_timeout: a plain connection, used last, tells when; then all is asked once, and answered."""
    server = gateway(server="keepalive_timeout 1s;")
    with ChatPool(25, base_url=server.api) as pool, socket.create_connection(("127.0.0.1", server.port), 60) as plain:
        assert pool.map(PROMPTS) == PROMPTS
        plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while plain.recv(65536):
            pass
        answers = pool.map(PROMPTS)
    assert answers == PROMPTS
    assert {result.attempts for result in answers.results} == {1}


@pytest.mark.parametrize(
    ("server", "kind", "status", "tries"),
    [
        ("location / { return 404; }", NotFoundError, 404, 1),
        ("client_max_body_size 1; location / { proxy_pass http://127.0.0.1:1; }", APIStatusError, 413, 1),
        ("location / { proxy_pass http://127.0.0.1:1; }", InternalServerError, 502, 3),
        ("location / { return 503; }", InternalServerError, 503, 3),
        ("location / { return 307 https://elsewhere.example/; }", APIStatusError, 307, 1),
        ("default_type text/html; location / { return 200 '<html>Sign in</html>'; }", InvalidResponseError, 200, 3),
        ("location / { return 204; }", APIStatusError, 204, 1),
        ("location /v1/chat/ { return 444; }", APIConnectionError, None, 3),  # nginx's word for closing without a reply
    ],
)
def test_errors_in_html_are_named(make_nginx, server, kind, status, tries):
    """Whatever page comes instead of an answer: its status is told, and what may pass is tried again."""
    with ChatPool(1, base_url=make_nginx(server).api, max_tries=3, max_wait=0.01) as pool:
        (result,) = pool.map(["a"]).results
    assert type(result.error) is kind
    assert (result.error.status_code, result.attempts) == (status, tries)


def test_a_gateway_that_waits_in_vain_is_named(make_nginx):
    """504 in HTML, from a server behind that takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        server = make_nginx(f"location / {{ proxy_read_timeout 1s; proxy_pass http://127.0.0.1:{port}; }}")
        with ChatPool(1, base_url=server.api, max_tries=1) as pool:
            assert pool.map(["a"]).failures[0].error.status_code == 504
        with ChatPool(1, base_url=server.api, max_tries=1, timeout=0.3) as pool:
            assert type(pool.map(["a"]).failures[0].error) is APITimeoutError


def test_an_outage_is_sat_out(gateway, tmp_path):
    """502 for everybody until a file appears: all is answered, after few useless requests."""
    refused = []

    def note(retry):
        refused.append(retry.error.status_code)
        if len(refused) == 35:  # by then the pool knows that it is an outage, and probes
            (tmp_path / "up").touch()

    server = gateway(server="root .; if (!-f $document_root/up) { return 502; }")
    with ChatPool(25, base_url=server.api, on_retry=note) as pool:
        assert pool.map(PROMPTS) == PROMPTS
    assert set(refused) == {502}
    assert len(refused) < 60


@pytest.fixture
def tls_server(gateway, tmp_path):
    """nginx with a certificate, and a file of the authority that vouches for it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    certificate = "ssl_certificate server.pem; ssl_certificate_key server.pem; keepalive_requests 100;"
    return gateway(listen="ssl", server=certificate)


def test_tls_with_the_environments_authority(tls_server, tmp_path, monkeypatch):
    """Over kept connections, and over new ones where nginx closes them."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    with ChatPool(25, base_url=tls_server.api.replace("http:", "https:"), api_key="sk-test") as pool:
        answers = pool.map(PROMPTS)
    assert answers == PROMPTS
    assert {result.attempts for result in answers.results} == {1}


def test_a_certificate_that_does_not_verify_ends_the_map(tls_server, behind):
    """No prompt leaves."""
    before = len(behind.requests)
    with ChatPool(25, base_url=tls_server.api.replace("http:", "https:"), api_key="sk-test") as pool:
        answers = pool.map(PROMPTS)
    assert {type(result.error) for result in answers.results} == {APIConnectionError, NotSentError}
    assert "certificate_verify_failed" in answers.summary()
    assert len(behind.requests) == before


def test_the_wrong_scheme_is_named(tls_server, gateway):
    """http to a TLS port is nginx's 400; https to a plain port is no TLS. Neither is tried again."""
    with ChatPool(1, base_url=tls_server.api) as pool:
        assert "The plain HTTP request was sent to HTTPS port" in pool.map(["a"]).failures[0].error.body
    with ChatPool(1, base_url=gateway().api.replace("http:", "https:")) as pool:
        (result,) = pool.map(["a"]).results
        assert (result.error.code, result.attempts) == ("no_tls", 1)
