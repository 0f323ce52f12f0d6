"""Columns of a data frame as prompts, with columns for the answers, the errors and the tokens.

pip install pandas
OPENAI_API_KEY=… python examples/pandas_column.py
"""

import pandas as pd

from chatpool import ChatPool, table

pool = ChatPool(max_workers=20)

# A column of whole prompts: a record for each has its answer, error, tokens and cost as plain values.
df = pd.DataFrame({"prompt": [f"Name a river in {country}." for country in ("Peru", "Chad", "Laos")]})
answers = pool.map(df["prompt"])
print(pd.DataFrame(answers.to_records())[["prompt", "answer", "error", "prompt_tokens", "completion_tokens"]])
print(answers.summary())

# A template of columns: a row without a value is not sent, and its error says so.
df = pd.DataFrame({"country": ["Peru", None, "Laos"]})
df = table(df, "Name a mountain in {country}.", pool=pool)
print(df)
