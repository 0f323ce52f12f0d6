"""The constructor refuses invalid settings, with the remedy, before anything is sent."""

from __future__ import annotations

import pickle
import re

import pytest
import requests

from chatpool import DEFAULT_MODEL, ChatPool, ConfigurationError

URL = "http://127.0.0.1:9/v1"
SECRET = "sk-secret-1234567890"

BAD = {
    "no workers": ({"max_workers": 0}, "max_workers must be a whole number, 1 or more"),
    "half a worker": ({"max_workers": 1.5}, "max_workers"),
    "workers true": ({"max_workers": True}, "max_workers"),
    "negative timeout": ({"timeout": -1}, "timeout must be a number of seconds, more than 0"),
    "zero timeout": ({"timeout": 0}, "timeout"),
    "timeout as a str": ({"timeout": "5"}, "timeout must be a number of seconds"),
    "no timeout": ({"timeout": None}, "would allow a call to hang forever"),
    "half a timeout": ({"timeout": (5, None)}, "would allow a call to hang forever"),
    "three timeouts": ({"timeout": (1, 2, 3)}, "pair"),
    "infinite timeout": ({"timeout": float("inf")}, "timeout"),
    "no tries": ({"max_tries": 0}, "max_tries"),
    "negative max_time": ({"max_time": -1}, "max_time"),
    "negative max_wait": ({"max_wait": -0.1}, "max_wait"),
    "no requests": ({"requests_per_minute": 0}, "requests_per_minute"),
    "tokens as a str": ({"tokens_per_minute": "90k"}, "tokens_per_minute"),
    "empty model": ({"model": ""}, "model"),
    "system not a str": ({"system": 1}, "system"),
    "params a list": ({"params": ["temperature"]}, "params must be a dict"),
    "params NaN": ({"params": {"temperature": float("nan")}}, "params cannot be sent as JSON"),
    "params an object": ({"params": {"x": object()}}, "params cannot be sent as JSON"),
    "streaming": ({"params": {"stream": True}}, "stream"),
    "messages as a parameter": ({"params": {"messages": []}}, "as a prompt"),
    "headers a list": ({"headers": ["a"]}, "headers must be a dict"),
    "header value not a str": ({"headers": {"a": 1}}, "must be str"),
    "header with a line break": ({"headers": {"api-key": f"{SECRET}\nx"}}, "'api-key' has an invalid character"),
    "base_url not a str": ({"base_url": 1}, "base_url"),
    "base_url without scheme": ({"base_url": "localhost:8000/v1"}, "base_url must look like https://host/v1"),
    "base_url with a bad port": ({"base_url": "http://localhost:x/v1"}, "base_url must look like"),
    "several base_urls": ({"base_url": "http://a/v1,http://b/v1"}, "base_url has several addresses"),
    "several hosts": ({"base_url": "http://a:1,b:2/v1"}, "make a pool for each"),
    "a list of base_urls": ({"base_url": ["http://a/v1"]}, "base_url must be a str, not list; a pool has one server"),
    "progress as a str": ({"progress": "yes"}, "progress must be True, False or None, not 'yes'"),
    "base_url with a password": ({"base_url": f"http://me:{SECRET}@host/v1"}, "must not contain a user name"),
    "key with a line break inside": ({"api_key": f"{SECRET[:5]}\n{SECRET[5:]}"}, "white space or a line break"),
    "key with a zero-width space": ({"api_key": f"{SECRET}\u200bx"}, "an invalid character; copy the key again"),
    "key not a str": ({"api_key": 5}, "api_key must be a str or a function"),
    "session of another type": ({"session": object()}, "session must be a requests.Session"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused_by_name(name):
    """Each message names the setting, and none shows a key."""
    settings, message = BAD[name]
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        ChatPool(**{"base_url": URL, **settings})
    assert SECRET not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_no_key_for_openai_names_the_remedy():
    """Without a key, and with OpenAI's URL, the error says what to set."""
    with pytest.raises(ConfigurationError, match="set the environment variable OPENAI_API_KEY or pass api_key"):
        ChatPool()


def test_bad_map_arguments_are_refused_before_anything_is_sent(server, pool):
    """deadline, parse and params of a map are checked like the pool's."""
    for arguments in ({"deadline": -1}, {"deadline": "soon"}, {"parse": 5}, {"params": 5}):
        with pytest.raises(ConfigurationError):
            pool.map(["x"], **arguments)
        with pytest.raises(ConfigurationError):
            pool.imap(["x"], **arguments)
    assert server.requests == []


@pytest.mark.parametrize("way", ["map", "imap", "imap_unordered"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"journal": 3}, r"journal must be the path of a file, not 3 \(int\)"),
        ({"journal": True}, "journal must be the path of a file, not True"),
        ({"journal": ""}, "journal must be the path of a file; it is empty"),
        ({"progress": "yes"}, "progress must be True, False or None, not 'yes'"),
    ],
)
def test_journal_is_a_path_and_progress_a_bool(pool, way, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        getattr(pool, way)(["a"], **arguments)


@pytest.mark.parametrize("way", ["map", "imap", "imap_unordered", "estimate"])
def test_a_generator_that_was_read_is_refused(pool, way):
    """It would yield nothing, in silence; one that is empty by itself is fine."""
    prompts = (name for name in "ab")
    assert list(prompts) == ["a", "b"]
    with pytest.raises(ValueError, match="a generator that was read before"):
        getattr(pool, way)(prompts)
    assert pool.map(name for name in "") == []


def test_numpy_numbers_are_numbers(server, tmp_path):
    """As settings, in params and in prompts, with a journal too."""
    numpy = pytest.importorskip("numpy")
    pool = ChatPool(
        numpy.int64(2), base_url=server.url, timeout=(numpy.float32(5), numpy.int32(60)), max_tries=numpy.int8(3),
        params={"temperature": numpy.float32(0.5), "n": numpy.int64(1)}, requests_per_minute=numpy.int64(100_000),
    )  # fmt: skip
    prompt = {"messages": [{"role": "user", "content": "a"}], "top_k": numpy.int64(7)}
    with pool:
        answers = pool.map([prompt], deadline=numpy.float64(20), request_budget=numpy.int64(5), journal=tmp_path / "j")
    assert answers == ["a"]
    body = server.requests[0].body
    assert (body["temperature"], body["n"], body["top_k"]) == (0.5, 1, 7)
    for bad in (numpy.bool_(True), numpy.array([1, 2])):
        with pytest.raises(ConfigurationError, match="max_workers must be a whole number"):
            ChatPool(bad, base_url=server.url)


def test_key_and_base_url_come_from_the_environment(server, monkeypatch):
    """From OPENAI_API_KEY and OPENAI_BASE_URL; white space around the key is stripped."""
    monkeypatch.setenv("OPENAI_API_KEY", f" {SECRET}\n")
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert ChatPool().map(["a"]) == ["a"]
    assert server.requests[0].headers["authorization"] == f"Bearer {SECRET}"


def test_model_comes_from_the_environment_unless_it_is_given(server, monkeypatch):
    """From OPENAI_MODEL, where it is not empty; else the default."""
    for value, given, expected in [
        ("local", None, "local"), ("local", "mine", "mine"), (" ", None, DEFAULT_MODEL), (None, None, DEFAULT_MODEL),
    ]:  # fmt: skip
        if value is None:
            monkeypatch.delenv("OPENAI_MODEL")
        else:
            monkeypatch.setenv("OPENAI_MODEL", value)
        with ChatPool(base_url=server.url, model=given) as pool:
            pool.ask("a")
        assert server.requests[-1].body["model"] == expected


UNKNOWN = {
    "an old name of a budget": ("map", "max_requests", r"map\(\) .* max_requests: it is called request_budget now"),
    "the length of one answer": ("map", "max_tokens", r'token_budget now; .* params=\{"max_tokens": …\}'),
    "a field of the body": ("map", "temperature", r'field of the request body: pass params=\{"temperature": …\}'),
    "a field of the body in imap": ("imap", "top_p", r'params=\{"top_p": …\}'),
    "a field of the body in ask": ("ask", "temperature", r'ask\(\) .* params=\{"temperature": …\}'),
    "the length of an answer in submit": ("submit", "max_tokens", r'params=\{"max_tokens": …\}'),
    "a slip": ("map", "jurnal", r"did you mean journal\?"),
    "nothing alike": ("map", "xyz", r"map\(\) has no argument xyz$"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_arguments_are_explained(case, server, pool):
    """A TypeError names the argument that was meant, or params=; nothing is sent."""
    method, name, message = UNKNOWN[case]
    with pytest.raises(TypeError, match=message):
        getattr(pool, method)(["a"], **{name: 1})
    assert server.requests == []


def test_body_fields_are_no_settings_of_a_pool():
    with pytest.raises(TypeError, match=r'params=\{"temperature": …\}'):
        ChatPool(base_url=URL, temperature=0)


def test_explicit_credentials_replace_the_key_of_the_environment(server, monkeypatch):
    """With Azure's api-key header, OpenAI's key from the environment is not sent."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert ChatPool(base_url=server.url, headers={"api-key": "azure"}).map(["a"]) == ["a"]
    assert "authorization" not in server.requests[0].headers
    assert server.requests[0].headers["api-key"] == "azure"


def test_local_server_needs_no_key(server):
    """Without a key no Authorization header is sent."""
    assert ChatPool(base_url=server.url).map(["a"]) == ["a"]
    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("", "/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        (
            "/openai/deployments/d?api-version=2024-10-21",
            "/openai/deployments/d/chat/completions?api-version=2024-10-21",
        ),
    ],
)
def test_base_url(server, base, path):
    """The path is completed, and the query string stays at the end."""
    root = server.url[: -len("/v1")]
    assert ChatPool(base_url=root + base).map(["a"]) == ["a"]
    assert server.requests[0].path == path


def test_repr_shows_settings_and_no_secret():
    """A pool's repr contains neither the key, nor the headers, nor the query of its URL."""
    pool = ChatPool(3, base_url=f"https://host/v1?sig={SECRET}", api_key=SECRET, headers={"api-key": SECRET})
    assert repr(pool) == "ChatPool(max_workers=3, model='gpt-6-luna', base_url='https://host/v1')"
    assert SECRET not in repr(pool._settings)


def test_pool_pickles_as_its_settings(server):
    """An unpickled pool works, with its own Session."""
    copy = pickle.loads(pickle.dumps(ChatPool(3, base_url=server.url, api_key=SECRET, params={"n": 1})))
    assert copy.map(["a"]) == ["a"]
    assert server.requests[0].headers["authorization"] == f"Bearer {SECRET}"
    assert server.requests[0].body["n"] == 1


def test_key_of_the_environment_is_not_pickled(server, monkeypatch):
    """A key from the environment stays out of the pickle; the other process reads its own."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    pickled = pickle.dumps(ChatPool(base_url=server.url))
    assert SECRET.encode() not in pickled
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    assert pickle.loads(pickled).map(["a"]) == ["a"]
    assert server.requests[0].headers["authorization"] == "Bearer sk-other"


def test_plain_http_to_another_host_warns_once():
    """The key would cross the network unencrypted; to this machine it does not."""
    pool = ChatPool(base_url="http://example.invalid/v1", api_key=SECRET)
    with pytest.warns(UserWarning, match="goes over plain http"):
        pool._engine()
    pool._engine()
    ChatPool(base_url=URL, api_key=SECRET)._engine()


def test_own_session_keeps_its_credentials(server):
    """A Session with auth needs no key."""
    session = requests.Session()
    session.auth = ("me", "pw")
    assert ChatPool(base_url=server.url, session=session).map(["a"]) == ["a"]
    assert server.requests[0].headers["authorization"].startswith("Basic ")
    session.close()
