"""The log: JSON lines on stdout, one for each request and one for each other message."""

import contextlib
import functools
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec


class JsonHandler(logging.Handler):
    """Logs what does not belong to a single request: warnings, reloads, the server's own messages."""

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
    """Format time.time()'s seconds for both kinds of log lines."""
    second, rest = divmod(now, 1)
    return f"{_to_the_second(int(second))}.{int(rest * 1000):03d}+00:00"


@functools.lru_cache(maxsize=2)
def _to_the_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def write_lines(lines: Sequence[bytes]) -> None:
    """Write complete lines in one write, so that lines of several writers never mix.

    Lines that cannot be written (the disk is full, or the reader of a pipe is gone) are lost: a request never
    fails because of its log line.
    """
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(b"\n".join((*lines, b"")))
        sys.stdout.buffer.flush()
