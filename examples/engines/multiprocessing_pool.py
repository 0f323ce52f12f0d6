"""Many small tasks in the processes of multiprocessing.Pool, each process with one pool of connections.

OPENAI_API_KEY=… python examples/engines/multiprocessing_pool.py
"""

import multiprocessing
import sys
from functools import partial

from chatpool import ChatPool


def answer(pool, prompts):
    """Answer a few prompts with the pool that was pickled with the task."""
    return [(result.prompt, result.text, str(result.error or "")) for result in pool.map(prompts).results]


if __name__ == "__main__":  # a spawned process imports this file
    method = sys.argv[1] if len(sys.argv) > 1 else "spawn"
    tasks = [[f"What is {number} times {other}?" for other in range(5)] for number in range(40)]
    pool = ChatPool(max_workers=10, progress=False)
    with multiprocessing.get_context(method).Pool(2) as processes:
        for rows in processes.imap(partial(answer, pool), tasks):
            for prompt, text, error in rows:
                print(prompt, text, error, sep="\t")
