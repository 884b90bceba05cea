"""The log: JSON lines on stdout, one for each request and one for whatever else there is to say."""

import asyncio
import functools
import logging
import sys
import time
from datetime import UTC, datetime

import msgspec

# A write for each line costs more than all other accounting for a small request. A process that is killed
# loses as much of its log.
_LINGER_S = 0.05


class AccessLog:
    """Lines of requests, gathered for a moment and written together."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, line: bytes) -> None:
        """A JSON object without its newline."""
        self._lines.append(line)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LINGER_S, self.flush)

    def flush(self) -> None:
        """Write what there is, without waiting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lines, self._lines = self._lines, []
        if lines:
            _write(b"\n".join(lines) + b"\n")


class JsonHandler(logging.Handler):
    """What is not about a single request: warnings, reloads, the server's own messages."""

    def emit(self, record: logging.LogRecord) -> None:
        line: dict[str, object] = {
            "time": stamp(),
            "event": "log",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = logging.Formatter().formatException(record.exc_info)
        _write(msgspec.json.encode(line) + b"\n")


def configure() -> None:
    """Route all loggers, uvicorn's included, through one handler."""
    root = logging.getLogger()
    root.handlers[:] = [JsonHandler()]
    root.setLevel(logging.INFO)


def stamp() -> str:
    """Now, as both kinds of lines have it."""
    second, rest = divmod(time.time(), 1)
    return f"{_to_the_second(int(second))}.{int(rest * 1000):03d}+00:00"


@functools.lru_cache(maxsize=1)
def _to_the_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _write(lines: bytes) -> None:
    """Whole lines in one write, so that those of several writers never mix."""
    sys.stdout.buffer.write(lines)
    sys.stdout.buffer.flush()
