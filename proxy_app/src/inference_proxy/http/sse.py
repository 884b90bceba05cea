"""Server-sent events: where an event ends and what it holds (WHATWG HTML, 9.2)."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

# A line ends with LF, CR LF or CR; an event ends with an empty line. A final CR may be half of a CR LF.
_LINE = rb"(?:\r\n|\n|\r(?!\n))"
_EVENT_END = re.compile(_LINE + _LINE)
_LINE_END = re.compile(_LINE)


def end_of_events(data: bytes) -> int:
    """Where the last complete event in `data` ends; 0 if there is none."""
    end = 0
    for match in _EVENT_END.finditer(data):
        end = match.end()
    return end


def split_events(data: bytes) -> list[bytes]:
    """The events in `data`, each with the empty line that ends it. The last may lack that line."""
    events = []
    start = 0
    for match in _EVENT_END.finditer(data):
        events.append(data[start : match.end()])
        start = match.end()
    if start < len(data):
        events.append(data[start:])
    return events


def documents(data: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects in the events' data, or `data` itself if it is one object. All else is skipped."""
    is_one = data.lstrip()[:1] == b"{"
    for text in [data] if is_one else map(_data, split_events(data)):
        try:
            document = msgspec.json.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        if isinstance(document, dict):
            yield document


def _data(event: bytes) -> bytes:
    lines = (line for line in _LINE_END.split(event) if line.startswith(b"data:"))
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines)
