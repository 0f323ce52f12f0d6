"""Many small tasks through joblib, which reuses its processes.

OPENAI_API_KEY=… python examples/engines/joblib_parallel.py
"""

from joblib import Parallel, delayed

from chatpool import ChatPool


def answer(pool, prompts):
    """Answer a few prompts with the pool that was pickled with the task."""
    return [(result.prompt, result.text, str(result.error or "")) for result in pool.map(prompts).results]


if __name__ == "__main__":
    tasks = [[f"What is {number} times {other}?" for other in range(5)] for number in range(40)]
    pool = ChatPool(max_workers=10, progress=False)
    for rows in Parallel(n_jobs=2)(delayed(answer)(pool, prompts) for prompts in tasks):
        for prompt, text, error in rows:
            print(prompt, text, error, sep="\t")
