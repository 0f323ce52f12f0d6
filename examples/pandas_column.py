"""A column of prompts in a data frame, and beside it the answers, or why there is none.

pip install pandas
OPENAI_API_KEY=… python examples/pandas_column.py
"""

import pandas as pd

from chatpool import ChatPool

pool = ChatPool(max_workers=20)

df = pd.DataFrame({"prompt": [f"Name a river in {country}." for country in ("Peru", "Chad", "Laos")]})
df["answer"] = answers = pool.map(df["prompt"])  # missing where a call failed
df["error"] = [result.error for result in answers.results]  # and why
print(df.to_string())

# Where prompts are missing, map would refuse the column before it sends anything. What dropna leaves keeps its index,
# by which pandas puts each answer in its row. Rows that were not asked have neither answer nor error.
df = pd.DataFrame({"country": ["Peru", None, "Laos"]})
asked = ("Name a mountain in " + df["country"] + ".").dropna()
answers = pool.map(asked)
df["answer"] = pd.Series(answers, index=asked.index)
df["error"] = pd.Series([result.error for result in answers.results], index=asked.index, dtype=object)
print(df.to_string())
print(answers.summary())
