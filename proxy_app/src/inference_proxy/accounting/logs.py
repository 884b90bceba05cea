"""The log: JSON lines on stdout, one for each request and one for whatever else there is to say."""

import contextlib
import functools
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec


class JsonHandler(logging.Handler):
    """What is not about a single request: warnings, reloads, the server's own messages."""

    def emit(self, record: logging.LogRecord) -> None:
        line: dict[str, object] = {
            "time": stamp(record.created),
            "event": "log",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = logging.Formatter().formatException(record.exc_info)
        write_lines([msgspec.json.encode(line)])


def configure() -> None:
    """Route all loggers, uvicorn's included, through one handler."""
    root = logging.getLogger()
    root.handlers[:] = [JsonHandler()]
    root.setLevel(logging.INFO)


def stamp(now: float) -> str:
    """A time as time.time() has it, as both kinds of lines have it."""
    second, rest = divmod(now, 1)
    return f"{_to_the_second(int(second))}.{int(rest * 1000):03d}+00:00"


@functools.lru_cache(maxsize=2)
def _to_the_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def write_lines(lines: Sequence[bytes]) -> None:
    """Whole lines in one write, so that those of several writers never mix. Where they cannot be written (the
    disk is full, whoever read them is gone) they are lost: no request fails for it."""
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(b"\n".join((*lines, b"")))
        sys.stdout.buffer.flush()
