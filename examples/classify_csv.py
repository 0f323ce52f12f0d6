"""Classify the rows of a CSV file into an Enum, for a few dollars at most; run again to continue after an interruption.

OPENAI_API_KEY=… python examples/classify_csv.py reviews.csv classified.csv
"""

import csv
import sys
from enum import Enum

from chatpool import ChatPool


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"
    MIXED = "mixed"


source, target = sys.argv[1:]
with open(source, newline="", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))

# Dollars for a million tokens of prompt and of answer; look up those of your model.
prices = {"gpt-6-luna": (0.10, 0.50)}
with ChatPool(
    20, prices=prices, system="Is this review good, bad or mixed?", params={"max_completion_tokens": 500}
) as pool:
    reviews = [row["review"] for row in rows]
    moods = pool.map(reviews, response_format=Mood, journal=f"{target}.jsonl", cost_budget=2.00)

with open(target, "w", newline="", encoding="utf-8") as file:
    table = csv.writer(file)
    table.writerow([*rows[0], "mood"])
    table.writerows([*row.values(), mood.value if mood else ""] for row, mood in zip(rows, moods))
print(moods.summary())
