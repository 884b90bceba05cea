"""Fifth step: the request to the engine, the engine's answer to the client, bytes as they come."""

import asyncio
import functools
import json
import logging
import time
from typing import Any

import msgspec
from starlette.types import Send

from .account import Exchange
from .engine_answer import Answer, EngineLost, Take, frame
from .errors import ApiError, Header, send_json
from .guard import Guard
from .server_protocol import Client
from .sse import end_of_events
from .usage_event import MARK, split

# An event that is longer than this is passed on in pieces rather than kept.
_EVENT_LIMIT = 256 * 1024
# The line that names an event, with which it begins, is not longer.
_EVENT_NAME_BYTES = 64
_ERROR_BODY_LIMIT = 64 * 1024
# How long a client that was cut off may take to accept the reason.
_FAREWELL_S = 5.0

# Headers of an answer that belong to one connection, or that the server in front writes itself.
_NOT_PASSED_ON = frozenset(
    {b"connection", b"date", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"server", b"te",
     b"trailer", b"transfer-encoding", b"upgrade", b"x-request-id", b"request-id"}
)  # fmt: skip

# How JSON ends that begins so. A number, say, ends anywhere.
_CLOSING = {b"{": b"}", b"[": b"]", b'"': b'"'}
_CUT = "its JSON ends in the middle"
_STOPPING = "it dropped the request because it is stopping"

log = logging.getLogger(__name__)


class Relay:
    """One answer of an engine on its way to the client.

    Nothing is sent before the engine's first byte, although its headers come earlier: until then a broken
    engine can be replaced by another, and a late one still answered with 504. Nor is the end, before nothing
    is held for the request any more: who has read it may ask again at once, of another worker as well.
    """

    __slots__ = (
        "_answer",
        "_client",
        "_exchange",
        "_guard",
        "_held",
        "_hides_usage",
        "_in_pieces",
        "_now",
        "_opened",
        "_rest",
        "_send",
        "is_events",
        "started",
    )

    def __init__(
        self,
        exchange: Exchange,
        guard: Guard,
        send: Send,
        client: Client | None,
        *,
        hides_usage: bool,
    ) -> None:
        self._exchange = exchange
        self._guard = guard
        self._send = send
        self._client = client
        self._hides_usage = hides_usage
        self._held = b""
        self._in_pieces = False  # an event that is too long to be kept is on its way
        self._opened = b""  # the beginning of the last such event
        self._rest: bytes | None = None
        self._now = guard.now
        self.started = False
        self.is_events = False

    def begin(self, answer: Answer, chunk: bytes) -> bool:
        """The short way of a stream's first chunk: as soon as it comes, without a switch of tasks. False: it
        is for first_chunk() and run()."""
        self._adopt(answer)
        if answer.status >= 300 or not self._is_plain(chunk):
            return False
        exchange, client = self._exchange, self._client
        if client is None or not client.begin(answer.status, self._headers(b"content-length"), frame(chunk)):
            return False
        self.started = True
        exchange.status = answer.status
        exchange.first_byte = time.perf_counter()
        exchange.keep(chunk)
        exchange.bytes_out = len(chunk)
        self._guard.reading_since = self._now()
        return True

    async def first_chunk(self, answer: Answer) -> bytes:
        """Wait for the engine's first byte, of which begin() may have left nothing. Raises EngineLost."""
        self._adopt(answer)
        chunk = await answer.read()
        if self._answer.status < 400 and self._exchange.dialect.is_aborted(chunk):
            raise EngineLost(_STOPPING)
        return chunk

    async def run(self, chunk: bytes) -> None:
        """Pass the answer on, beginning with `chunk` (or with what begin() has passed on), but for its end,
        which is for finish(). Raises EngineLost when it does not come to its end.

        The next chunk is read only when the server has taken the last one, so a client that does not read
        stops its own stream and fills no memory.
        """
        exchange, guard = self._exchange, self._guard
        if not self.is_events:
            exchange.outcome = exchange.dialect.fault_of(chunk) or exchange.outcome
            if self._answer.at_end:
                if self._is_cut(chunk):
                    raise EngineLost(_CUT)
                if chunk and self._at_once(chunk):
                    return
        take = self._take if self.is_events and self._client is not None else None
        if self.started and not chunk:
            chunk = await self._next(take)
        beginning = b"" if self.is_events else chunk.lstrip()[:1]
        while chunk:
            if self.is_events:
                chunk = self._whole_events(chunk)
                if exchange.dialect.is_aborted(chunk):
                    raise EngineLost(_STOPPING)
                if self._hides_usage and MARK in chunk:
                    chunk, hidden = split(chunk)
                    exchange.keep(hidden)
            if self.is_events:
                if chunk:
                    exchange.keep(chunk)
            else:
                exchange.keep_part(chunk)
            if self._answer.at_end and self._is_complete():
                # Together with the end of the body.
                self._held = chunk + self._held
                break
            guard.reading_since = None
            exchange.bytes_out += len(chunk)
            if not self.started:
                await self._start(chunk)
            elif chunk:
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
            guard.reading_since = guard.now()
            chunk = await self._next(take)
        else:
            if not self._is_complete():
                raise EngineLost("its stream ended before its last event")
        guard.reading_since = None
        if self.is_events:
            exchange.outcome = exchange.dialect.fault_in(self._end()) or exchange.outcome
        elif self.started and self._is_open(beginning):
            raise EngineLost(_CUT)
        exchange.bytes_out += len(self._held)
        if not self.started:
            await self._start(b"")
        if self._client is not None:
            # However slowly it reads, finish() need not wait.
            await self._client.drain()
        self._rest = self._held

    async def finish(self) -> None:
        """Send what run() has left."""
        rest, client = self._rest, self._client
        if rest is None:
            return
        if not self.started and client is not None:
            self.started = client.answer(self._answer.status, self._headers(b"content-length"), rest)
        elif client is None or not client.end(rest):
            await self._send({"type": "http.response.body", "body": rest})

    async def _next(self, take: Take | None) -> bytes:
        """The next chunk; empty at the end. After its last event a stream has nothing to lose."""
        try:
            return await self._answer.read(take)
        except EngineLost:
            if self.is_events and self._is_complete():
                return b""
            raise

    def _at_once(self, body: bytes) -> bool:
        """The short way of an answer that is all there. False: it has to take the other."""
        if self._client is None or not self._client.may_start:
            return False
        exchange = self._exchange
        exchange.status = self._answer.status
        exchange.keep_part(body)
        exchange.bytes_out = len(body)
        self._rest = body
        return True

    def _take(self, chunk: bytes, framed: bytes) -> bool:
        """The short way of a chunk, from the engine's socket to the client's without a switch of tasks, while
        `run` waits for the next one. Whatever is out of the ordinary is left for `run`. `framed` is the same
        as it stands on the wire."""
        exchange, client = self._exchange, self._client
        if client is None or self._held or self._in_pieces or not self._is_plain(chunk):
            return False
        if not client.write(framed):
            return False
        exchange.keep(chunk)
        exchange.bytes_out += len(chunk)
        self._guard.reading_since = self._now()
        return True

    def _is_plain(self, chunk: bytes) -> bool:
        """Whole events for the client, as they are."""
        return (
            self.is_events
            and chunk.endswith(b"\n\n")
            and not self._exchange.dialect.is_aborted(chunk)
            and not (self._hides_usage and chunk.find(MARK) >= 0)
        )

    async def refuse(self, chunk: bytes) -> None:
        """Pass on an answer of 4xx or 5xx, in our one shape whatever its own. Raises EngineLost."""
        body = chunk
        while chunk and len(body) <= _ERROR_BODY_LIMIT:
            chunk = await self._answer.read()
            body += chunk
        status = self._answer.status
        headers = self._exchange.headers()
        retry_after = self._answer.header(b"retry-after") or (b"1" if status == 503 else None)
        if retry_after is not None:
            headers.append((b"retry-after", retry_after))
        body = self._exchange.dialect.error_body(read_error(status, body), self._exchange.request_id)
        self._exchange.bytes_out = len(body)
        self._exchange.status = status
        self._exchange.outcome = "engine_error" if status >= 500 else "engine_refused"
        self.started = True
        await send_json(self._send, status, body, headers)

    async def fail(self, error: ApiError) -> None:
        """Tell a client in mid-answer that this is not its end. A stream gets an event; any other answer is
        left incomplete, and the server then closes the connection, which no client takes for success."""
        if not self.is_events:
            return
        event = self._exchange.dialect.error_event(error, self._exchange.request_id)
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await self._send({"type": "http.response.body", "body": event})
        except TimeoutError:
            log.warning("request %s: its client does not read", self._exchange.request_id)

    async def _start(self, chunk: bytes) -> None:
        """The head, and a first piece of the body if there is one."""
        status = self._answer.status
        # Events are of a length that nobody knows: they may be held back or added.
        headers = self._headers(b"content-length") if self.is_events else self._headers()
        self._exchange.status = status
        self.started = True
        framed = frame(chunk) if chunk else b""
        if self.is_events and self._client is not None and self._client.begin(status, headers, framed):
            return
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        if chunk:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    def _adopt(self, answer: Answer) -> None:
        self._answer = answer
        self.is_events = _is_events(answer.header(b"content-type") or b"")

    def _is_complete(self) -> bool:
        """Whether a stream has come to an end that the engine meant; any other answer says how long it is."""
        if not self.is_events:
            return True
        return not self._in_pieces and self._exchange.dialect.is_complete(self._end())

    def _end(self) -> bytes:
        return b"".join((self._opened, *self._exchange.tail, self._held))

    def _is_cut(self, body: bytes) -> bool:
        """Whether JSON ends in its middle, although it is as long as it said. Few are parsed: those whose
        braces are not balanced."""
        if body and body.count(b"{") == body.count(b"}"):
            return False
        if not self._is_json():
            return False
        try:
            json.loads(body)
        except (ValueError, RecursionError):
            return True
        return False

    def _is_open(self, beginning: bytes) -> bool:
        """The same of JSON that came in parts, of which there are only the first byte and the last parts."""
        end = b"".join(self._exchange.tail).rstrip()
        return bool(end) and self._is_json() and not end.endswith(_CLOSING.get(beginning, b""))

    def _is_json(self) -> bool:
        return (self._answer.header(b"content-type") or b"").startswith(b"application/json")

    def _headers(self, *more: bytes) -> list[Header]:
        """Ours and the engine's, without those of one connection and `more`."""
        answer = self._answer
        headers = self._exchange.headers()
        unwanted = _NOT_PASSED_ON.union(more) if more else _NOT_PASSED_ON
        if connection := answer.header(b"connection"):
            unwanted |= {name.strip().lower() for name in connection.split(b",")}
        headers += [header for header in answer.headers if header[0] not in unwanted]
        if self.is_events:
            # Said in the answer itself, so that it holds for whatever stands in front of us.
            headers.append((b"x-accel-buffering", b"no"))
            if answer.header(b"cache-control") is None:
                headers.append((b"cache-control", b"no-cache"))
        return headers

    def _whole_events(self, chunk: bytes) -> bytes:
        """Keep the beginning of an unfinished event for the next time. So an error event never lands in the
        middle of another, where no client could read it. Engines write event by event: this is rare."""
        data = self._held + chunk if self._held else chunk
        self._held = b""
        if data.endswith(b"\n\n") and not self._in_pieces:
            return data
        cut = end_of_events(data)
        if self._in_pieces and not cut:
            # The end of a line may be half of the event's end.
            cut = len(data.rstrip(b"\r\n"))
            self._exchange.find_usage(data[:cut])
        elif len(data) - cut > _EVENT_LIMIT:
            self._in_pieces = True
            self._opened = data[cut : cut + _EVENT_NAME_BYTES]
            cut = len(data)
            self._exchange.find_usage(data)
        elif self._in_pieces:
            self._in_pieces = False
            self._exchange.find_usage(data[:cut])
        self._held = data[cut:]
        return data[:cut]


@functools.lru_cache(maxsize=64)
def _is_events(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip().lower() == b"text/event-stream"


def read_error(status: int, body: bytes) -> ApiError:
    """An engine's error. vLLM's own mostly have OpenAI's shape; those of its guard, its router and FastAPI's
    checks do not: {"error": "Unauthorized"}, {"detail": "Not Found"}, {"detail": [{"loc": …, "msg": …}]}."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    message: Any = None
    param: Any = None
    code: Any = None
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        document = None
    if isinstance(document, dict):
        error = document.get("error", document)
        if isinstance(error, dict):
            message = error.get("message", error.get("detail"))
            param, code = error.get("param"), error.get("code")
            kind = error["type"] if isinstance(error.get("type"), str) else kind
        else:
            message = error
    if isinstance(message, list):
        message = "; ".join(_detail(item) for item in message)
    if not isinstance(message, str) or not message:
        message = f"The engine answered {status}."
    return ApiError(
        status,
        None if code is None else str(code),
        message,
        kind=kind,
        param=None if param is None else str(param),
    )


def _detail(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    loc = item.get("loc")
    where = ".".join(str(part) for part in loc) if isinstance(loc, list) else ""
    return f"{where}: {item.get('msg')}"
