"""Answers as pydantic models: the request has their schema, and an answer that does not fit is requested again.

pip install pydantic
OPENAI_API_KEY=… python examples/pydantic_answers.py
"""

from pydantic import BaseModel

from chatpool import ChatPool


# OpenAI's strict mode: objects forbid unnamed fields (extra="forbid", also for the models inside a model), and every
# field is required, so none has a default. A field that may be missing is Optional[int].
class City(BaseModel, extra="forbid"):
    name: str
    population: int


schema = {"name": "City", "strict": True, "schema": City.model_json_schema()}
pool = ChatPool(params={"response_format": {"type": "json_schema", "json_schema": schema}, "temperature": 0})

# pydantic's ValidationError is a ValueError, so the prompt is sent again.
cities = pool.map([f"The largest city of {country}" for country in ("Peru", "Chad")], parse=City.model_validate_json)
for city in cities:
    print(city)
print(cities.summary())
