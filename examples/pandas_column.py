"""A column of prompts in a data frame, with columns for the answers and the errors.

pip install pandas
OPENAI_API_KEY=… python examples/pandas_column.py
"""

import pandas as pd

from chatpool import ChatPool

pool = ChatPool(max_workers=20)

df = pd.DataFrame({"prompt": [f"Name a river in {country}." for country in ("Peru", "Chad", "Laos")]})
df["answer"] = answers = pool.map(df["prompt"])  # None where a call failed
df["error"] = [result.error for result in answers.results]
print(df.to_string())

# map rejects a column with missing prompts. dropna keeps the index, by which pandas aligns the answers. A row without a
# prompt has neither an answer nor an error.
df = pd.DataFrame({"country": ["Peru", None, "Laos"]})
present = ("Name a mountain in " + df["country"] + ".").dropna()
answers = pool.map(present)
df["answer"] = pd.Series(answers, index=present.index)
df["error"] = pd.Series([result.error for result in answers.results], index=present.index, dtype=object)
print(df.to_string())
print(answers.summary())
