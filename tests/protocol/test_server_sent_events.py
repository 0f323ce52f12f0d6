"""Server-sent events are read by the rules of the HTML standard, however their bytes are cut into pieces."""

from __future__ import annotations

import random

import pytest

from chatpool._protocol.server_sent_events import Event, EventParser

# (what it shows, the stream, its events). The first ones are the examples of the standard, section 9.2.6.
STREAMS = [
    ("several lines of data", b"data: YHOO\ndata: +2\ndata: 10\n\n", ["YHOO\n+2\n10"]),
    (
        "a comment, an id, an unfinished event",
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event",
        ["first event", "second event"],
    ),
    ("data without a value, and an event that has no end", b"data\n\ndata\ndata\n\ndata:", ["", "\n"]),
    ("one space after the colon is dropped", b"data:test\n\ndata: test\n\ndata:  test\n\n", ["test", "test", " test"]),
    ("lines that end in CR LF", b"data: a\r\ndata: b\r\n\r\n", ["a\nb"]),
    ("lines that end in CR", b"data: a\rdata: b\r\rdata: c\r\r", ["a\nb", "c"]),
    ("all three", b"data: a\r\n\ndata: b\n\r\ndata: c\r\n\rdata: d\n\n", ["a", "b", "c", "d"]),
    ("a byte order mark", b"\xef\xbb\xbfdata: a\n\n", ["a"]),
    ("a second byte order mark is part of the field's name", b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    ("a byte order mark in the middle", "data: a\n\n\ufeffdata: b\n\ndata: \ufeffc\n\n".encode(), ["a", "\ufeffc"]),
    ("comments only", b": keep-alive\n\n:\n\n: keep-alive\n\n", []),
    ("a comment within an event", b"data: a\n: comment\ndata: b\n\n", ["a\nb"]),
    ("types", b"event: error\ndata: a\n\ndata: b\n\nevent:ping\n\ndata: c\n\n", [("error", "a"), "b", "c"]),
    ("the last type counts", b"event: a\nevent: b\ndata: x\n\n", [("b", "x")]),
    ("an empty type", b"event:\ndata: x\n\n", ["x"]),
    ("unknown fields, also in capitals", b"DATA: a\nfoo: b\nfoo\nretry: 10\ndata: x\n data: y\n\n", ["x"]),
    ("characters of several bytes", "data: äöü€😀\n\n".encode(), ["äöü€😀"]),
    ("bytes that are not UTF-8", b"data: a\xe2\x82\ndata: \xff\n\n", ["a\ufffd\n\ufffd"]),
    ("other line separators are text", "data: a\u2028b\x85c\x0bd\n\n".encode(), ["a\u2028b\x85c\x0bd"]),
    ("a null byte is text", b"data: a\0b\n\n", ["a\0b"]),
    ("no data is no event", b"event: a\n\nid: 1\n\n\n\n\n", []),
    ("nothing", b"", []),
    ("a large event", b"data: " + b"x" * 3_000_000 + b"\n\n", ["x" * 3_000_000]),
]


@pytest.mark.parametrize(("stream", "wanted"), [pytest.param(*row[1:], id=row[0]) for row in STREAMS])
def test_events(stream, wanted):
    """In one piece, in two with the cut anywhere, byte by byte, and at random."""
    events = [Event("message", event) if isinstance(event, str) else Event(*event) for event in wanted]
    assert parse([stream]) == events
    if len(stream) > 1000:
        assert parse(stream[start : start + 65_536] for start in range(0, len(stream), 65_536)) == events
        return
    assert parse(stream[place : place + 1] for place in range(len(stream))) == events
    for place in range(len(stream)):
        assert parse([stream[:place], b"", stream[place:]]) == events
    for seed in range(20):
        assert parse(cut(stream, random.Random(seed))) == events


def test_each_event_is_returned_with_the_piece_that_completes_it():
    """The blank line ends an event; with a CR it need not wait for the LF that may follow."""
    parser = EventParser()
    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\ndata: b\r\n\r") == [Event("message", "a"), Event("message", "b")]
    assert parser.feed(b"\ndata: c\n\n") == [Event("message", "c")]


def test_a_line_without_end_costs_no_more_than_its_bytes():
    """Pieces are joined once: 200,000 of them would take minutes if each were added to all before."""
    parser = EventParser()
    assert all(parser.feed(b"data: " + b"x" * 100) == [] for _ in range(200_000))
    assert len(parser.feed(b"\n\n")[0].data) == 200_000 * 106 - 6


def parse(pieces):
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def cut(stream, rng):
    """Return the stream in pieces of random sizes."""
    cuts = sorted(rng.randrange(len(stream) + 1) for _ in range(len(stream) // 4))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)])]
