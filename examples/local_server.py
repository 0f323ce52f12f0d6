"""A server on this machine, such as llama.cpp, Ollama or vLLM. No API key.

python examples/local_server.py http://localhost:11434/v1 llama3.2
"""

import sys

from chatpool import ChatPool

base_url, model = sys.argv[1:]
with ChatPool(max_workers=4, base_url=base_url, model=model, timeout=(5, 600)) as pool:  # local models may be slow
    answers = pool.map(["Say hello.", "Say goodbye."], params={"max_tokens": 50})
for answer, result in zip(answers, answers.results):
    print(answer if result.ok else f"failed: {result.error}")
