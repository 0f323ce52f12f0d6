"""Other clients talk to the fake server: the OpenAI SDK and LangChain."""

from __future__ import annotations

import pytest

from chatpool.testing import FakeChatServer, Reply, Stream

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lima"}'}}
ASKS_FOR_A_TOOL = Reply(message={"content": None, "tool_calls": [CALL]}, finish_reason="tool_calls")
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
PING = [{"role": "user", "content": "ping"}]


# OpenAI's SDK.


@pytest.fixture
def openai():
    return pytest.importorskip("openai")


@pytest.fixture
def client(openai, server):
    with openai.OpenAI(base_url=server.url, api_key="sk-test", max_retries=0, timeout=10) as client:
        yield client


def test_openai_chat(server, client):
    server.script("ping", Reply("pong"))
    completion = client.chat.completions.create(model="m", messages=PING)
    assert completion.choices[0].message.content == "pong"
    assert completion.usage.total_tokens == 2


def test_openai_chat_streamed(server, client):
    server.script("ping", Reply("one two three"))
    chunks = list(
        client.chat.completions.create(model="m", messages=PING, stream=True, stream_options={"include_usage": True})
    )
    assert [chunk.choices[0].delta.content for chunk in chunks if chunk.choices] == ["", "one", " two", " three", None]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 3


@pytest.mark.parametrize("reply", [ASKS_FOR_A_TOOL, Reply("plain"), Reply(message={"refusal": "no", "content": None})])
def test_openai_puts_a_streamed_answer_together_as_it_came_whole(server, client, reply):
    server.script("ping", reply)
    whole = client.chat.completions.create(model="m", messages=PING).choices[0]
    with client.chat.completions.stream(model="m", messages=PING) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert (streamed.finish_reason, streamed.message.content) == (whole.finish_reason, whole.message.content)
    assert streamed.message.refusal == whole.message.refusal
    calls = [
        [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
        for choice in (streamed, whole)
    ]
    assert calls[0] == calls[1]


def test_openai_sees_an_error_in_the_stream(openai, server, client):
    server.script("ping", Reply("one two", stream=Stream(error_after=2)))
    with pytest.raises(openai.APIError, match="The stream failed"):
        list(client.chat.completions.create(model="m", messages=PING, stream=True))


def test_openai_sees_a_cut_stream(openai, server, client):
    """Which error it is depends on the SDK's version: older ones raise that of httpx."""
    httpx = pytest.importorskip("httpx")
    server.script("ping", Reply("one two", stream=Stream(cut_after=2)))
    with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError)):
        list(client.chat.completions.create(model="m", messages=PING, stream=True))


def test_openai_leaves_a_stream(server, client):
    server.script("ping", Reply("one two", stream=Stream(tokens_per_second=0.1)))
    with client.chat.completions.create(model="m", messages=PING, stream=True) as stream:
        next(iter(stream))
    assert server.requests[0].wait_until_cancelled(5)


def test_openai_models(openai, server, client):
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "chatpool"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_openai_embeddings(client):
    """The SDK asks for base64 unless it is asked for floats."""
    asked = {"model": "m", "input": ["one", "two"], "dimensions": 8}
    decoded = client.embeddings.create(**asked)
    floats = client.embeddings.create(**asked, encoding_format="float")
    assert [item.embedding for item in decoded.data] == [item.embedding for item in floats.data]
    assert (len(floats.data), len(floats.data[0].embedding), floats.usage.total_tokens) == (2, 8, 2)


def test_openai_responses(server, client):
    server.script("ping", Reply("pong"))
    response = client.responses.create(model="m", input="ping")
    assert (response.output_text, response.status) == ("pong", "completed")
    assert (response.usage.input_tokens, response.usage.output_tokens) == (1, 1)


def test_openai_responses_streamed(server, client):
    server.script("ping", Reply("one two", message={"reasoning_content": "hm"}))
    with client.responses.stream(model="m", input="ping") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "one two"
    assert final.output[0].summary[0].text == "hm"


def test_openai_responses_stream_tool_calls(server, client):
    server.script("ping", ASKS_FOR_A_TOOL)
    tool = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
    with client.responses.stream(model="m", input="ping", tools=[tool]) as stream:
        (call,) = stream.get_final_response().output
    assert (call.name, call.arguments, call.call_id) == ("weather", '{"city": "Lima"}', "call_1")


def test_openai_bad_key(openai):
    with FakeChatServer(key="sk-1") as server:
        client = openai.OpenAI(base_url=server.url, api_key="sk-2")
        with client, pytest.raises(openai.AuthenticationError):
            client.models.list()


# LangChain.


@pytest.fixture
def langchain():
    return pytest.importorskip("langchain_openai")


@pytest.fixture
def chat(langchain, server):
    return langchain.ChatOpenAI(model="m", base_url=server.url, api_key="sk-test", max_retries=0)


def test_langchain_chat(server, chat):
    server.script("ping", Reply("pong"))
    message = chat.invoke("ping")
    assert message.content == "pong"
    assert message.usage_metadata["total_tokens"] == 2


def test_langchain_chat_streamed(server, chat):
    server.script("ping", Reply("one two three"))
    pieces = [chunk.content for chunk in chat.stream("ping")]
    assert [piece for piece in pieces if piece] == ["one", " two", " three"]


@pytest.mark.parametrize("streams", [False, True])
def test_langchain_tool_calls(server, chat, streams):
    server.script("ping", ASKS_FOR_A_TOOL)
    bound = chat.bind_tools([TOOL])
    if streams:
        message, *others = bound.stream("ping")
        for chunk in others:
            message += chunk
    else:
        message = bound.invoke("ping")
    (call,) = message.tool_calls
    assert (call["name"], call["args"], call["id"]) == ("weather", {"city": "Lima"}, "call_1")


def test_langchain_embeddings(langchain, server):
    """By default LangChain sends tokens, for which it downloads a vocabulary; without the check it sends texts."""
    embeddings = langchain.OpenAIEmbeddings(
        model="m", base_url=server.url, api_key="sk-test", check_embedding_ctx_length=False, dimensions=8
    )
    one, two = embeddings.embed_documents(["one", "two"])
    assert embeddings.embed_query("one") == one != two
    assert len(one) == 8


def test_langchain_responses(langchain, server):
    server.script("ping", Reply("one two"))
    chat = langchain.ChatOpenAI(model="m", base_url=server.url, api_key="sk-test", use_responses_api=True)
    assert chat.invoke("ping").text == "one two"
    assert "".join(chunk.text for chunk in chat.stream("ping")) == "one two"
