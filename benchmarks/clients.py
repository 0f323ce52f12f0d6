"""The clients that are compared: each answers so many prompts with so many workers, as its users would write it.

Every function returns another one that makes so many calls and returns their answers, in order. What a peer leaves out
of the job (results in order, retries, a limit on attempts) is added in the usual way. Over https they find the test's
authority in REQUESTS_CA_BUNDLE or SSL_CERT_FILE.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

MODEL = "bench"
KEY = "sk-bench"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "ping"}]}
HEADERS = {"Authorization": f"Bearer {KEY}"}
ATTEMPTS = 6


def chatpool(url, workers):
    """ChatPool.map: retries, limits, bar (off) and results included."""
    from chatpool import ChatPool

    pool = ChatPool(workers, base_url=url, api_key=KEY, progress=False)
    return lambda calls: pool.map(["ping"] * calls)


def aiohttp(url, workers, *, limit=None):
    """The asyncio recipe: aiohttp, a Semaphore and tenacity; ``limit``: connections, aiohttp's default is 100."""
    import aiohttp
    from tenacity import retry, stop_after_attempt, wait_random_exponential

    async def run(calls):
        connector = aiohttp.TCPConnector() if limit is None else aiohttp.TCPConnector(limit=limit)
        async with aiohttp.ClientSession(headers=HEADERS, connector=connector) as session:
            semaphore = asyncio.Semaphore(workers)

            @retry(wait=wait_random_exponential(max=60), stop=stop_after_attempt(ATTEMPTS))
            async def ask():
                async with semaphore, session.post(f"{url}/chat/completions", json=BODY) as reply:
                    reply.raise_for_status()
                    return (await reply.json())["choices"][0]["message"]["content"]

            return await asyncio.gather(*(ask() for _ in range(calls)))

    return lambda calls: asyncio.run(run(calls))


def aiohttp_unlimited(url, workers):
    """The same with aiohttp's limit of 100 connections lifted, which few know of."""
    return aiohttp(url, workers, limit=0)


def session_post(url, workers):
    """requests.Session.post in a ThreadPoolExecutor, with as many connections as workers; no retries."""
    import requests

    session = requests.Session()
    session.headers.update(HEADERS)
    session.mount(url.partition("//")[0] + "//", requests.adapters.HTTPAdapter(pool_maxsize=workers))

    def ask(_):
        reply = session.post(f"{url}/chat/completions", json=BODY, timeout=(5, 120))
        reply.raise_for_status()
        return reply.json()["choices"][0]["message"]["content"]

    threads = ThreadPoolExecutor(workers)
    return lambda calls: list(threads.map(ask, range(calls)))


def openai(url, workers):
    """The OpenAI SDK in a ThreadPoolExecutor."""
    from openai import DefaultHttpxClient, OpenAI

    http = DefaultHttpxClient()  # allows 1,000 connections
    client = OpenAI(base_url=url, api_key=KEY, max_retries=ATTEMPTS, http_client=http)

    def ask(_):
        return client.chat.completions.create(**BODY).choices[0].message.content

    threads = ThreadPoolExecutor(workers)
    return lambda calls: list(threads.map(ask, range(calls)))


def langchain(url, workers):
    """LangChain's batch."""
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL, base_url=url, api_key=KEY, max_retries=ATTEMPTS)
    config = {"max_concurrency": workers}
    return lambda calls: [message.content for message in model.batch(["ping"] * calls, config)]


def litellm(url, workers):
    """litellm's batch_completion."""
    from litellm import batch_completion

    def run(calls):
        replies = batch_completion(
            model=f"openai/{MODEL}",
            messages=[BODY["messages"]] * calls,
            max_workers=workers,
            api_base=url,
            api_key=KEY,
        )
        return [reply.choices[0].message.content for reply in replies]

    return run


def lm_deluge(url, workers):
    """lm-deluge's process_prompts_sync, with its limits on rates out of the way."""
    from lm_deluge import LLMClient
    from lm_deluge.models import register_model

    os.environ["BENCH_KEY"] = KEY
    register_model(MODEL, MODEL, url, "BENCH_KEY")
    unlimited = {"max_requests_per_minute": 10**9, "max_tokens_per_minute": 10**12}
    client = LLMClient(MODEL, max_concurrent_requests=workers, max_attempts=ATTEMPTS, **unlimited)
    return lambda calls: [
        reply.completion for reply in client.process_prompts_sync(["ping"] * calls, show_progress=False)
    ]


def flexllm(url, workers):
    """flexllm's chat_batch."""
    from flexllm import LLMClient

    async def run(calls):
        client = LLMClient(base_url=url, model=MODEL, api_key=KEY, concurrency_limit=workers, retry_times=ATTEMPTS)
        try:
            replies = await client.chat_batch([BODY["messages"]] * calls, show_progress=False)
            return [reply.content for reply in replies]
        finally:
            await client.aclose()

    return lambda calls: asyncio.run(run(calls))


# Each with the distributions that it needs.
CLIENTS = {
    "chatpool": (chatpool, ["chatpool"]),
    "aiohttp + tenacity": (aiohttp, ["aiohttp", "tenacity"]),
    "aiohttp, limit lifted": (aiohttp_unlimited, ["aiohttp", "tenacity"]),
    "Session.post in threads": (session_post, ["requests"]),
    "lm-deluge": (lm_deluge, ["lm-deluge"]),
    "flexllm": (flexllm, ["flexllm"]),
    "OpenAI SDK in threads": (openai, ["openai"]),
    "LangChain batch": (langchain, ["langchain-openai"]),
    "litellm batch_completion": (litellm, ["litellm"]),
}
