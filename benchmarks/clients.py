"""The clients that are compared: each answers so many prompts with so many workers, as its users would write it.

Every function makes the calls once to warm up, and returns a function that makes them for good. What a peer leaves out
of the job (results in order, retries, a limit on tries, None for what fails) is added in the usual way.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor

MODEL = "bench"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "ping"}]}
HEADERS = {"Authorization": "Bearer sk-bench"}
TRIES = 6


def chatpool(url, workers):
    """ChatPool.map: retries, limits, bar (off) and results included."""
    from chatpool import ChatPool

    pool = ChatPool(workers, base_url=url, api_key="sk-bench", progress=False)
    pool.map(["ping"] * workers)
    return lambda calls: pool.map(["ping"] * calls)


def aiohttp(url, workers, *, limit=None):
    """The asyncio recipe: aiohttp, a Semaphore and tenacity; ``limit``: connections, aiohttp's default is 100."""
    import aiohttp
    from tenacity import retry, stop_after_attempt, wait_random_exponential

    async def run(calls):
        connector = aiohttp.TCPConnector() if limit is None else aiohttp.TCPConnector(limit=limit)
        async with aiohttp.ClientSession(headers=HEADERS, connector=connector) as session:
            semaphore = asyncio.Semaphore(workers)

            @retry(wait=wait_random_exponential(max=60), stop=stop_after_attempt(TRIES))
            async def ask():
                async with semaphore, session.post(f"{url}/chat/completions", json=BODY) as reply:
                    reply.raise_for_status()
                    return (await reply.json())["choices"][0]["message"]["content"]

            return await asyncio.gather(*(ask() for _ in range(calls)))

    asyncio.run(run(workers))
    return lambda calls: asyncio.run(run(calls))


def aiohttp_unlimited(url, workers):
    """The same with aiohttp's limit of 100 connections lifted, which few know of."""
    return aiohttp(url, workers, limit=0)


def session_post(url, workers):
    """requests.Session.post in a ThreadPoolExecutor, with as many connections as workers; no retries."""
    import requests

    session = requests.Session()
    session.headers.update(HEADERS)
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=workers))

    def ask(_):
        reply = session.post(f"{url}/chat/completions", json=BODY, timeout=(5, 120))
        reply.raise_for_status()
        return reply.json()["choices"][0]["message"]["content"]

    threads = ThreadPoolExecutor(workers)
    list(threads.map(ask, range(workers)))
    return lambda calls: list(threads.map(ask, range(calls)))


def openai(url, workers):
    """The OpenAI SDK in a ThreadPoolExecutor."""
    import httpx
    from openai import OpenAI

    limits = httpx.Limits(max_connections=workers, max_keepalive_connections=workers)
    client = OpenAI(base_url=url, api_key="sk-bench", max_retries=TRIES, http_client=httpx.Client(limits=limits))

    def ask(_):
        return client.chat.completions.create(**BODY).choices[0].message.content

    threads = ThreadPoolExecutor(workers)
    list(threads.map(ask, range(workers)))
    return lambda calls: list(threads.map(ask, range(calls)))


def langchain(url, workers):
    """LangChain's batch."""
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL, base_url=url, api_key="sk-bench", max_retries=TRIES)
    config = {"max_concurrency": workers}

    def run(calls):
        return [message.content for message in model.batch(["ping"] * calls, config)]

    run(workers)
    return run


def litellm(url, workers):
    """litellm's batch_completion."""
    from litellm import batch_completion

    def run(calls):
        replies = batch_completion(
            model=f"openai/{MODEL}",
            messages=[BODY["messages"]] * calls,
            max_workers=workers,
            api_base=url,
            api_key="sk-bench",
        )
        return [reply.choices[0].message.content for reply in replies]

    run(workers)
    return run


CLIENTS = {
    "chatpool": (chatpool, ["chatpool"]),
    "aiohttp + tenacity": (aiohttp, ["aiohttp", "tenacity"]),
    "aiohttp, limit lifted": (aiohttp_unlimited, ["aiohttp", "tenacity"]),
    "Session.post in threads": (session_post, ["requests"]),
    "OpenAI SDK in threads": (openai, ["openai"]),
    "LangChain batch": (langchain, ["langchain_openai"]),
    "litellm batch_completion": (litellm, ["litellm"]),
}
