"""Last step: what is left of a request is one line in the log. Never a prompt, a completion or a key."""

import re
import sys
import time
from collections import deque
from datetime import UTC, datetime

import msgspec

from .dialects import Dialect
from .errors import Header

_USAGE = b'"usage":'
_PROMPT = re.compile(rb'"(?:prompt|input)_tokens":\s*(\d+)')
_COMPLETION = re.compile(rb'"(?:completion|output)_tokens":\s*(\d+)')
_TAIL_CHUNKS = 4
_TAIL_BYTES = 8192


class Exchange(msgspec.Struct):
    """What the steps find out about one request: for its answer, for settling and for the log.

    `model` is the client's name of it; `notices` are headers that its answer gets besides the engine's own.
    """

    request_id: str
    method: str
    path: str
    dialect: Dialect = Dialect.CHAT
    notices: tuple[Header, ...] = ()
    key: str | None = None
    model: str | None = None
    engine: str | None = None
    status: int = 0
    stream: bool = False
    outcome: str = "ok"
    bytes_out: int = 0
    queued_s: float = 0.0  # in the proxy's own line
    retries: int = 0
    started: float = msgspec.field(default_factory=time.perf_counter)
    first_byte: float | None = None
    # The last chunks by reference: finding usage costs nothing until the end.
    tail: deque[bytes] = msgspec.field(default_factory=lambda: deque(maxlen=_TAIL_CHUNKS))

    def headers(self) -> list[Header]:
        """What each answer says besides its own: the request's id, by the names that clients look for."""
        request_id = self.request_id.encode()
        headers = [(b"x-request-id", request_id), *self.notices]
        if self.dialect is Dialect.MESSAGES:
            headers.append((b"request-id", request_id))
        return headers

    def usage(self) -> tuple[int | None, int | None]:
        """Tokens of prompt and completion as the engine counted them, once its answer is complete."""
        return usage(b"".join(self.tail)[-_TAIL_BYTES:])


def usage(end: bytes) -> tuple[int | None, int | None]:
    """Prompt and completion tokens from the last usage object in the end of a body, if there is one.

    Text that a model wrote cannot pretend to be it: inside a JSON string the quotes are escaped.
    """
    at = end.rfind(_USAGE)
    if at < 0:
        return None, None
    prompt, completion = _PROMPT.search(end, at), _COMPLETION.search(end, at)
    return int(prompt[1]) if prompt else None, int(completion[1]) if completion else None


def account(exchange: Exchange) -> None:
    """Write the access log line of a finished request to stdout."""
    now = time.perf_counter()
    prompt_tokens, completion_tokens = exchange.usage()
    first = exchange.first_byte
    write_line(
        {
            "event": "request",
            "request_id": exchange.request_id,
            "key": exchange.key,
            "method": exchange.method,
            "path": exchange.path[:256],
            "model": exchange.model and exchange.model[:256],
            "engine": exchange.engine,
            "status": exchange.status,
            "stream": exchange.stream,
            "retries": exchange.retries,
            "queue_ms": round(exchange.queued_s * 1000, 2),
            "ttft_ms": None if first is None else round((first - exchange.started) * 1000, 2),
            "duration_ms": round((now - exchange.started) * 1000, 2),
            "bytes": exchange.bytes_out,
            "outcome": exchange.outcome,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
        }
    )


def write_line(record: dict[str, object]) -> None:
    """One JSON object with its time, in one write, so that lines of several writers never mix."""
    stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
    sys.stdout.write(msgspec.json.encode({"time": stamp, **record}).decode() + "\n")
    sys.stdout.flush()
