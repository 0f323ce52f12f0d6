"""Answers as dataclass objects: an answer that does not fit is requested again.

OPENAI_API_KEY=… python examples/structured_answers.py
"""

import json
from dataclasses import dataclass

from chatpool import ChatPool


@dataclass
class City:
    name: str
    population: int


def to_city(text: str) -> City:
    fields = json.loads(text)
    if not isinstance(fields, dict) or not isinstance(fields.get("population"), int):
        raise ValueError("population must be a whole number")  # sends the prompt again
    return City(str(fields.get("name")), fields["population"])


pool = ChatPool(
    system='Reply with a JSON object: {"name": string, "population": integer}.',
    params={"response_format": {"type": "json_object"}, "temperature": 0},
)
for city in pool.map(["The largest city of Peru", "The largest city of Chad"], parse=to_city):
    print(city)
