"""nginx as a gateway: rate limits and errors in HTML, connections that it closes, TLS."""

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
    """Start nginx in front of the server that echoes prompts."""

    def make(location="", **directives):
        pass_on = f"location / {{ {location} proxy_pass http://127.0.0.1:{behind.port}; }}"
        return make_nginx(directives.pop("server", "") + pass_on, **directives)

    return make


def connections(folder, requests):
    """Return the number of answered prompts of each connection, from nginx's log."""

    def lines():
        log = (folder / "access.log").read_text().splitlines()
        return [line.split()[1:] for line in log if line.startswith("POST") and line.endswith("200")]

    assert wait_until(lambda: len(lines()) >= requests), f"{len(lines())} of {requests} are in the log"
    counts: dict[str, int] = {}
    for connection, count, _ in lines():
        counts[connection] = max(counts.get(connection, 0), int(count))
    return list(counts.values())


def test_every_prompt_has_its_own_answer(gateway, tmp_path):
    """25 workers use 25 connections."""
    with ChatPool(25, base_url=gateway().api) as pool:
        answers = pool.map(PROMPTS)
    assert answers == PROMPTS
    assert {result.attempts for result in answers.results} == {1}
    assert len(connections(tmp_path, 500)) <= 25


def test_rate_limit_without_retry_after_loses_no_call(gateway):
    """limit_req: 20 a second and a burst of 10; the others get a 429 in HTML without Retry-After."""
    retries = []
    zone = "limit_req_zone $server_addr zone=all:1m rate=20r/s;"
    server = gateway(http=zone, location="limit_req zone=all burst=10 nodelay; limit_req_status 429;")
    with ChatPool(25, base_url=server.api, on_retry=retries.append) as pool:
        assert pool.map(PROMPTS[:100]) == PROMPTS[:100]
    assert {(retry.error.status_code, retry.error.retry_after) for retry in retries} == {(429, None)}
    assert "<html>" in retries[0].error.body


def test_rate_limit_with_retry_after_loses_no_call(gateway):
    """The same with a Retry-After of one second."""
    retries = []
    zone = "limit_req_zone $server_addr zone=all:1m rate=20r/s;"
    location = "limit_req zone=all burst=10 nodelay; limit_req_status 429; add_header Retry-After 1 always;"
    with ChatPool(25, base_url=gateway(http=zone, location=location).api, on_retry=retries.append) as pool:
        assert pool.map(PROMPTS[:100]) == PROMPTS[:100]
    assert {(retry.error.status_code, retry.error.retry_after) for retry in retries} == {(429, 1.0)}


def test_connection_limit_loses_no_call(gateway):
    """limit_conn: ten at once; the others get a 503."""
    retries = []
    zone = "limit_conn_zone $server_addr zone=all:1m;"
    with ChatPool(
        25,
        base_url=gateway(http=zone, location="limit_conn all 10;").api,
        max_wait=0.5,
        max_tries=50,
        on_retry=retries.append,
    ) as pool:
        assert pool.map(PROMPTS) == PROMPTS
    assert {retry.error.status_code for retry in retries} <= {503}


@pytest.mark.parametrize("requests", [1, 10, 100])
def test_connections_closed_after_some_answers_cost_no_retry(gateway, tmp_path, requests):
    """keepalive_requests: no prompt is sent twice, and each connection is used until it is closed."""
    with ChatPool(5, base_url=gateway(server=f"keepalive_requests {requests};").api) as pool:
        answers = pool.map(PROMPTS)
    assert answers == PROMPTS
    assert {result.attempts for result in answers.results} == {1}
    counts = connections(tmp_path, 500)
    assert max(counts) == requests
    assert len(counts) <= 500 / requests + 5


def test_connections_closed_while_idle_are_replaced(gateway, tmp_path):
    """keepalive_timeout: once nginx has closed a plain connection that was used last, all prompts are sent, once each."""
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
    ("server", "kind", "status", "attempts"),
    [
        ("location / { return 404; }", NotFoundError, 404, 1),
        ("client_max_body_size 1; location / { proxy_pass http://127.0.0.1:1; }", APIStatusError, 413, 1),
        ("location / { proxy_pass http://127.0.0.1:1; }", InternalServerError, 502, 3),
        ("location / { return 503; }", InternalServerError, 503, 3),
        ("location / { return 307 https://elsewhere.example/; }", APIStatusError, 307, 1),
        ("default_type text/html; location / { return 200 '<html>Sign in</html>'; }", InvalidResponseError, 200, 3),
        ("location / { return 204; }", InvalidResponseError, 204, 3),
        (
            "location /v1/chat/ { return 444; }",
            APIConnectionError,
            None,
            3,
        ),  # nginx closes the connection without a reply
    ],
)
def test_html_replies_are_errors(make_nginx, server, kind, status, attempts):
    """The error has the status, and transient ones are retried."""
    with ChatPool(1, base_url=make_nginx(server).api, max_tries=3, max_wait=0.01) as pool:
        (result,) = pool.map(["a"]).results
    assert type(result.error) is kind
    assert (result.error.status_code, result.attempts) == (status, attempts)


def test_gateway_timeout_is_an_error(make_nginx):
    """504 in HTML: the server behind nginx accepts the connection and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        server = make_nginx(f"location / {{ proxy_read_timeout 1s; proxy_pass http://127.0.0.1:{port}; }}")
        with ChatPool(1, base_url=server.api, max_tries=1) as pool:
            assert pool.map(["a"]).failures[0].error.status_code == 504
        with ChatPool(1, base_url=server.api, max_tries=1, timeout=0.3) as pool:
            assert type(pool.map(["a"]).failures[0].error) is APITimeoutError


def test_an_outage_loses_no_call(gateway, tmp_path):
    """502 for every request until a file appears: all prompts are answered, after few useless requests."""
    statuses = []

    def end_outage(retry):
        statuses.append(retry.error.status_code)
        if len(statuses) == 35:  # by then the pool has detected the outage, and probes
            (tmp_path / "up").touch()

    server = gateway(server="root .; if (!-f $document_root/up) { return 502; }")
    with ChatPool(25, base_url=server.api, on_retry=end_outage) as pool:
        assert pool.map(PROMPTS) == PROMPTS
    assert set(statuses) == {502}
    assert len(statuses) < 60


@pytest.fixture
def tls_server(gateway, tmp_path):
    """nginx with a certificate; authority.pem has the certificate of its authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    certificate = "ssl_certificate server.pem; ssl_certificate_key server.pem; keepalive_requests 100;"
    return gateway(listen="ssl", server=certificate)


def test_tls_with_the_authority_of_the_environment(tls_server, tmp_path, monkeypatch):
    """Over reused connections, and over new ones after nginx has closed them."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    with ChatPool(25, base_url=tls_server.api.replace("http:", "https:"), api_key="sk-test") as pool:
        answers = pool.map(PROMPTS)
    assert answers == PROMPTS
    assert {result.attempts for result in answers.results} == {1}


def test_a_certificate_that_does_not_verify_ends_the_map(tls_server, behind):
    """No prompt is sent."""
    before = len(behind.requests)
    with ChatPool(25, base_url=tls_server.api.replace("http:", "https:"), api_key="sk-test") as pool:
        answers = pool.map(PROMPTS)
    assert {type(result.error) for result in answers.results} == {APIConnectionError, NotSentError}
    assert "certificate_verify_failed" in answers.summary()
    assert len(behind.requests) == before


def test_wrong_scheme_is_an_error(tls_server, gateway):
    """http to a TLS port gets a 400 from nginx; https to a plain port fails in the handshake. Neither is retried."""
    with ChatPool(1, base_url=tls_server.api) as pool:
        assert "The plain HTTP request was sent to HTTPS port" in pool.map(["a"]).failures[0].error.body
    with ChatPool(1, base_url=gateway().api.replace("http:", "https:")) as pool:
        (result,) = pool.map(["a"]).results
        assert (result.error.code, result.attempts) == ("no_tls", 1)
