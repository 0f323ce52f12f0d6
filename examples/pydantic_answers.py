"""Answers as pydantic models: the server is told their schema, and an answer that does not fit is asked for again.

pip install pydantic
OPENAI_API_KEY=… python examples/pydantic_answers.py
"""

from pydantic import BaseModel

from chatpool import ChatPool


# What OpenAI's strict mode wants of a schema: an object may have no field that is not named (extra="forbid", for the
# models within a model too), and every field is required, so none has a default: what may be missing is Optional[int].
class City(BaseModel, extra="forbid"):
    name: str
    population: int


schema = {"name": "City", "strict": True, "schema": City.model_json_schema()}
pool = ChatPool(params={"response_format": {"type": "json_schema", "json_schema": schema}, "temperature": 0})

# pydantic's ValidationError is a ValueError, and so a bad answer, which is asked for again.
cities = pool.map([f"The largest city of {country}" for country in ("Peru", "Chad")], parse=City.model_validate_json)
for city in cities:
    print(city)
print(cities.summary())
