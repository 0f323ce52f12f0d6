"""A column of prompts in a data frame, and beside it the answers, and why there is none.

pip install pandas
OPENAI_API_KEY=… python examples/pandas_column.py
"""

import pandas as pd

from chatpool import ChatPool

df = pd.DataFrame({"country": ["Peru", "Chad", None, "Laos"]})
df["prompt"] = "Name a river in " + df["country"] + "."  # missing where the country is

with ChatPool(max_workers=20) as pool:
    asked = df["prompt"].dropna()  # map refuses a missing prompt, with its position, before anything is sent
    answers = pool.map(asked)

# With the index of what was asked, pandas puts each in its row. A failed call's answer is missing, and so is the answer
# of a row that was not asked; the error tells one from the other.
df["answer"] = pd.Series(answers, index=asked.index, dtype=object)
df["error"] = pd.Series([result.error for result in answers.results], index=asked.index, dtype=object)
df["tokens"] = pd.Series([result.usage and result.usage.total_tokens for result in answers.results], index=asked.index)

print(df[["country", "answer", "error", "tokens"]].to_string())
print(answers.summary())
