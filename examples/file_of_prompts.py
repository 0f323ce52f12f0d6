"""Send a text file of prompts, one a line, and write a journal from which the next run resumes.

OPENAI_API_KEY=… python examples/file_of_prompts.py prompts.txt answers.jsonl
"""

import sys

from chatpool import ChatPool

source, target = sys.argv[1:]
with ChatPool(max_workers=20) as pool, open(source) as lines:
    prompts = (line.strip() for line in lines if line.strip())  # a generator: the file may be huge
    for result in pool.imap_unordered(prompts, journal=target):
        print(result.index, result.value if result.ok else result.error)
