"""Answers as dataclass objects: an answer that does not fit is requested again, with the error.

OPENAI_API_KEY=… python examples/structured_answers.py
"""

from dataclasses import dataclass

from chatpool import ChatPool


@dataclass
class City:
    name: str
    population: int


with ChatPool(params={"max_completion_tokens": 500}) as pool:
    cities = pool.map(["The largest city of Peru", "The largest city of Chad"], response_format=City)
for city in cities:
    print(city)
cities.raise_for_failures()
