"""Reads the body of a response: whole, or as a stream of events while it arrives. Both from the same connection."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPException

import requests
import urllib3

from chatpool._protocol.streams import StreamedAnswer

from .framing import MAX_BODY, Body, BodyTooLarge, MalformedReply

_PIECE = 64 * 2**10  # bytes read at a time
_MOST_AFTER_END = 0.25  # seconds that the end of a body may take after the end of its answer
_FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError)


def read_body(response: requests.Response, limit: int) -> tuple[bytes, Exception | None]:
    """Read a body; return what could be had of it, and the reason if that is not all."""
    body = bytearray()
    failure: Exception | None = None
    try:
        for piece in _pieces(response):
            body += piece
            if len(body) > limit:
                failure = BodyTooLarge()
                break
    except _FAILURES as error:
        failure = error
    except ValueError as error:  # urllib3's, of a body that makes no sense to it
        failure = MalformedReply(str(error))
    finally:
        response.close()  # a connection whose reply was not read to its end is closed, never reused
    return bytes(body[:limit]), failure


def read_events(response: requests.Response, answer: StreamedAnswer) -> Exception | None:
    """Have an answer take in a response until the answer is over; return the reason if not all could be read."""
    body = getattr(getattr(response.raw, "_original_response", None), "body", None)
    try:
        _feed(answer, body.pieces() if isinstance(body, Body) else _pieces(response))
        if not isinstance(body, Body) or body.drain(_MOST_AFTER_END):
            next(_pieces(response), None)  # at the end urllib3 takes the connection back
    except _FAILURES as error:
        return error
    finally:
        response.close()  # as in read_body
    return None


def _feed(answer: StreamedAnswer, pieces: Iterator[bytes]) -> None:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_BODY:
            raise BodyTooLarge
        answer.feed(piece)
        if answer.is_over:
            return
    answer.end()


def _pieces(response: requests.Response) -> Iterator[bytes]:
    pieces: Iterator[bytes | str] = response.iter_content(_PIECE)
    for piece in pieces:
        yield piece if isinstance(piece, bytes) else piece.encode()
