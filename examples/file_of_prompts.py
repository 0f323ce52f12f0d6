"""A text file of prompts, one a line, to a JSONL file of answers, as they come in.

OPENAI_API_KEY=… python examples/file_of_prompts.py prompts.txt answers.jsonl
"""

import json
import sys

from chatpool import ChatPool

source, target = sys.argv[1:]
with ChatPool(max_workers=20) as pool, open(source) as lines, open(target, "w") as out:
    prompts = (line.strip() for line in lines if line.strip())  # read lazily: the file may be huge
    for result in pool.imap_unordered(prompts):
        row = {"line": result.index, "answer": result.value, "error": str(result.error) if result.error else None}
        out.write(json.dumps(row) + "\n")
