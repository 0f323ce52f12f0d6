"""A column of prompts in Ray Data, answered by map_batches.

OPENAI_API_KEY=… python examples/engines/ray_map_batches.py
"""

import ray

from chatpool import ChatPool

pool = ChatPool(max_workers=10, progress=False)  # pickled to each worker process as its settings


def answer(batch):
    """Add answer and error to a batch."""
    answers = pool.map(batch["prompt"])
    return {
        "prompt": batch["prompt"],
        "answer": list(answers),
        "error": [None if result.ok else str(result.error) for result in answers.results],
    }


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    prompts = [{"prompt": f"What is {number} times {other}?"} for number in range(40) for other in range(5)]
    asked = ray.data.from_items(prompts).repartition(8)
    for row in asked.map_batches(answer, batch_size=25).take_all():
        print(row["prompt"], row["answer"], row["error"] or "", sep="\t")
    ray.shutdown()
