"""Replies for the tests of the protocol, and what chatpool makes of them."""

from __future__ import annotations

import json

from requests.structures import CaseInsensitiveDict

from chatpool._protocol.replies import Reply, check_answer, read_completion, read_document
from chatpool.errors import CallError


def reply(body, status=200, *, base_url="http://127.0.0.1/v1", **headers):
    """Return a reply; an underscore in a header's name becomes a hyphen."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = CaseInsensitiveDict({name.replace("_", "-"): text for name, text in headers.items()})
    return Reply(status, fields, data, base_url=base_url)


def completion(content="hi", reason="stop", **message):
    """Return a chat completion."""
    return {"choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}]}


def judge(got, read=read_completion):
    """Return the completion in a reply, or the error that it makes."""
    try:
        answer = read(got)
        check_answer(got, answer)
    except CallError as error:
        return error
    return answer


def judge_document(got):
    """The same for a reply of another endpoint than chat."""
    return judge(got, read_document)
