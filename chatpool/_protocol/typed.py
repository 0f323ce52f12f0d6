"""JSON schemas of Python's own types, and values of these types out of JSON. Pure; no pydantic.

Dataclasses, TypedDicts, Literals, Enums, str, int, float, bool, None, Any, lists, tuples, sets, dicts with str keys,
Optional and Union, and Annotated, at any depth.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from typing import Any, Union

_UNIONS = (Union, getattr(types, "UnionType", Union))
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_LISTS = (list, set, frozenset)


def schema_of(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of a type; raise TypeError for one that has none."""
    kind, origin, args = _parts(kind)
    if kind is Any:
        return {}
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if origin is typing.Literal:
        return _choice(list(args))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _choice([member.value for member in kind])
    if origin in _UNIONS:
        return {"anyOf": [schema_of(option) for option in args]}
    if origin in _LISTS or kind in _LISTS:
        return {"type": "array", "items": schema_of(args[0] if args else Any)}
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return {"type": "array", "items": schema_of(args[0])}
    if (origin is dict or kind is dict) and (not args or args[0] is str):
        return {"type": "object", "additionalProperties": schema_of(args[1] if args else Any)}
    if _is_record(kind):
        fields = {name: schema_of(field) for name, field in _fields(kind).items()}
        title = {"title": kind.__name__, **_description(kind)}
        return {"type": "object", **title, "properties": fields, "required": list(fields)}
    raise TypeError(f"{kind!r} cannot be described by a JSON schema")


def build(kind: Any, value: Any, path: str = "") -> Any:
    """Return a value of a type out of JSON's; raise ValueError, with the path to it, for one that does not fit."""
    kind, origin, args = _parts(kind)
    if kind is Any:
        return value
    if kind in _PLAIN:
        return _plain(kind, value, path)
    if origin is typing.Literal:
        return _chosen(args, value, path)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(_chosen(tuple(member.value for member in kind), value, path))
    if origin in _UNIONS:
        return _option(args, value, path)
    if origin in (*_LISTS, tuple) or kind in _LISTS:
        if not isinstance(value, list):
            _reject(path, "must be a list", value)
        items = [build(args[0] if args else Any, item, f"{path}[{number}]") for number, item in enumerate(value)]
        return (origin or kind)(items)
    if not isinstance(value, dict):
        _reject(path, "must be an object", value)
    if _is_record(kind):
        return _record(kind, value, path)
    return {name: build(args[1] if args else Any, item, f"{path}.{name}") for name, item in value.items()}


def _parts(kind: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    while typing.get_origin(kind) is typing.Annotated or getattr(kind, "__supertype__", None) is not None:
        kind = getattr(kind, "__supertype__", None) or typing.get_args(kind)[0]
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if getattr(origin, "_name", None) in ("Required", "NotRequired", "ReadOnly"):
        return _parts(args[0])
    return type(None) if kind is None else kind, origin, args


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and (dataclasses.is_dataclass(kind) or hasattr(kind, "__total__"))


def _fields(kind: Any) -> dict[str, Any]:
    """Return the fields of a dataclass or TypedDict, and their types."""
    hints = typing.get_type_hints(kind)
    if not dataclasses.is_dataclass(kind):
        return hints
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _record(kind: Any, value: dict[str, Any], path: str) -> Any:
    fields = _fields(kind)
    optional = (
        {f.name for f in dataclasses.fields(kind) if _has_default(f)} if dataclasses.is_dataclass(kind) else set()
    )
    optional |= set(getattr(kind, "__optional_keys__", ()))
    missing = [name for name in fields if name not in value and name not in optional]
    if missing:
        _reject(path, f"lacks {', '.join(missing)}", value)
    return kind(**{name: build(fields[name], value[name], f"{path}.{name}") for name in fields if name in value})


def _has_default(field: Any) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _plain(kind: Any, value: Any, path: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is kind else _reject(path, f"must be of type {_PLAIN[kind]}", value)


def _chosen(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    """Return the choice that equals a value. True equals 1 in Python, and not in JSON."""
    for choice in choices:
        if _same(choice, value):
            return choice
    return _reject(path, f"must be one of {', '.join(map(repr, choices))}", value)


def _option(options: tuple[Any, ...], value: Any, path: str) -> Any:
    problems = []
    for option in options:
        try:
            return build(option, value, path)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError("; or ".join(problems))


def _choice(values: list[Any]) -> dict[str, Any]:
    if any(type(value) not in _PLAIN for value in values):
        raise TypeError("the values of an Enum must be str, int, float, bool or None")
    kinds = list(dict.fromkeys(_PLAIN[type(value)] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": values}


def _same(choice: Any, value: Any) -> bool:
    return choice == value and isinstance(choice, bool) == isinstance(value, bool)


def _description(kind: type) -> dict[str, str]:
    """Return the docstring of a type, unless dataclasses made it."""
    text = " ".join((kind.__doc__ or "").split())
    return {"description": text} if text and not text.startswith((f"{kind.__name__}(", "dict(")) else {}


def _reject(path: str, problem: str, value: Any) -> Any:
    raise ValueError(f"{path.lstrip('.') or 'the answer'} {problem}, not {value!r:.100}")
