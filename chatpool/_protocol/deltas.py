"""Puts the deltas of a streamed answer together: text is joined, lists grow, tool calls are found by index or id. Pure.

Source: "The chat completion chunk object" in OpenAI's API reference; what other servers do differently stands beside
the code for it.
"""

from __future__ import annotations

from typing import Any

# Strings that are no pieces of a longer one. Some servers send them with every chunk.
_WHOLE = frozenset({"role", "type", "format", "status", "object", "mime_type"})


class _Pieces(list[Any]):
    """Text that is still being written: its pieces, joined at the end. A content may also have parts among them."""

    def joined(self) -> Any:
        if all(isinstance(piece, str) for piece in self):
            return "".join(self)
        parts: list[Any] = []
        for piece in self:
            if isinstance(piece, str) and parts and isinstance(parts[-1], str):
                parts[-1] += piece
            elif piece != "":
                parts.append(piece)
        return parts


def joined_logprobs(logprobs: Any, more: dict[str, Any]) -> dict[str, Any]:
    """Return log probabilities with those of the next tokens at the end of each list."""
    known: dict[str, Any] = logprobs if isinstance(logprobs, dict) else {}
    for name, value in more.items():
        if isinstance(value, list) and isinstance(known.get(name), list):
            known[name] += value
        elif value is not None or name not in known:
            known[name] = value
    return known


def merge(known: dict[str, Any], delta: dict[str, Any]) -> None:
    """Add the fields of a delta to a message, or to a part of one."""
    for name, value in delta.items():
        old = known.get(name)
        if isinstance(value, str) and name not in _WHOLE:
            if isinstance(old, _Pieces):
                _append(name, old, value)
            else:
                known[name] = _Pieces([value])
        elif value is None:
            known.setdefault(name, None)
        elif name == "content" and isinstance(value, (list, dict)):
            pieces = known[name] = old if isinstance(old, _Pieces) else _Pieces()
            pieces.extend(value if isinstance(value, list) else [value])
        elif isinstance(value, dict):
            known[name] = old if isinstance(old, dict) else {}
            merge(known[name], value)
        elif isinstance(value, list):
            known[name] = old if isinstance(old, list) else []
            _merge_list(name, known[name], value)
        else:
            known[name] = value


def _append(name: str, pieces: _Pieces, value: str) -> None:
    """Add a piece of text. Ids and names come whole; some servers send them again with each chunk."""
    if name == "id":
        if not pieces.joined():
            pieces[:] = [value]
    elif name != "name" or value != pieces.joined():
        pieces.append(value)


def _merge_list(name: str, known: list[Any], parts: list[Any]) -> None:
    """Add the parts of a list: those with an index to the part that has it, others at the end."""
    is_calls = name == "tool_calls"
    for part in parts:
        if not isinstance(part, dict) or not (is_calls or isinstance(part.get("index"), int)):
            known.append(part)
            continue
        old = _find_call(known, part) if is_calls else _find(known, part)
        if old is None:
            old = {}
            known.append(old)
        merge(old, part)


def _find(known: list[Any], part: dict[str, Any]) -> dict[str, Any] | None:
    """Return the latest part with the same index."""
    index = part["index"]
    return next((old for old in reversed(known) if isinstance(old, dict) and old.get("index") == index), None)


def _find_call(known: list[Any], part: dict[str, Any]) -> dict[str, Any] | None:
    """Return the tool call that a part belongs to; None if it is a new one.

    Gemini sends calls without an index, and some gateways give index 0 to all of them: then a new id with a name
    begins a new call. vLLM once sent a new id with every piece, but the name only with the first.
    """
    call_id, function = part.get("id"), part.get("function")
    calls = [old for old in known if isinstance(old, dict)]
    found = _find(calls, part) if isinstance(part.get("index"), int) else next(reversed(calls), None)
    is_named = isinstance(function, dict) and bool(function.get("name"))
    if found is None or not call_id or not is_named:
        return found
    same = next((old for old in calls if _text(old.get("id")) == call_id), None)
    return same if same is not None or _text(found.get("id")) else found


def _text(value: Any) -> Any:
    return value.joined() if isinstance(value, _Pieces) else value


def finished(choice: dict[str, Any]) -> dict[str, Any]:
    """Return a choice as it is without streaming."""
    whole: dict[str, Any] = _joined(choice)
    message = whole["message"]
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        calls.sort(key=_index_of)
        for call in calls:
            if isinstance(call, dict):
                call.pop("index", None)
    whole["message"] = {"role": "assistant", "content": None, **message} if message else {}
    return whole


def _index_of(call: Any) -> int:
    index = call.get("index") if isinstance(call, dict) else None
    return index if isinstance(index, int) else 0


def _joined(value: Any) -> Any:
    if isinstance(value, _Pieces):
        return value.joined()
    if isinstance(value, dict):
        return {name: _joined(part) for name, part in value.items()}
    return [_joined(part) for part in value] if isinstance(value, list) else value
