"""Fifth step: send the request to the engine and pass the engine's answer to the client as it arrives."""

import asyncio
import functools
import json
import logging
import time

from starlette.types import Send

from inference_proxy.accounting.exchange import Exchange
from inference_proxy.api.engine_errors import read_error
from inference_proxy.api.errors import ApiError, send_json
from inference_proxy.http.answer import Answer, EngineLost, Take
from inference_proxy.http.message import Header, frame
from inference_proxy.http.server_protocol import ClientConnection
from inference_proxy.pipeline.event_stream import EventStream
from inference_proxy.request.guard import Guard
from inference_proxy.request.stream_usage import MARK, split

_ERROR_BODY_LIMIT = 64 * 1024
# How long a client whose stream is cut off may take to accept the error event.
_FAREWELL_S = 5.0

# Headers of an answer that concern one connection, or that our server writes itself.
_NOT_PASSED_ON = frozenset(
    {b"connection", b"date", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"server", b"te",
     b"trailer", b"transfer-encoding", b"upgrade", b"x-request-id", b"request-id"}
)  # fmt: skip

# How JSON with this beginning must end. Other values, such as numbers, may end in any way.
_CLOSING = {b"{": b"}", b"[": b"]", b'"': b'"'}
_CUT = "its JSON ends in the middle"
_STOPPING = "it dropped the request because it is stopping"

log = logging.getLogger(__name__)


class Relay:
    """Passes one answer of an engine to its client, in one of five ways:

        first chunk of a stream       begin()             at once, without a task switch
        its further chunks            _take()             the same
        chunks that are not plain,    run()               by the request's task
        and long answers
        the end of an answer,         finish()            once the request's place and limits are released
        and the whole of a short one
        errors                        refuse(), fail()    in the client's dialect

    Nothing is sent before the first byte of the engine's body, although its headers come earlier: until then
    a broken engine can be replaced by another, and a late one answered with 504. Nor is the end sent before
    the request's place and limits are released: a client that has read the end may send its next request at
    once, also to another worker.
    """

    __slots__ = (
        "_answer",
        "_connection",
        "_events",
        "_exchange",
        "_guard",
        "_hides_usage",
        "_now",
        "_rest",
        "_send",
        "started",
    )

    def __init__(
        self,
        exchange: Exchange,
        guard: Guard,
        send: Send,
        connection: ClientConnection | None,
        *,
        hides_usage: bool,
    ) -> None:
        self._exchange = exchange
        self._guard = guard
        self._send = send
        self._connection = connection
        self._hides_usage = hides_usage
        self._events: EventStream | None = None  # None if the answer is not a stream
        self._rest: bytes | None = None
        self._now = guard.now
        self.started = False

    def begin(self, answer: Answer, chunk: bytes) -> bool:
        """Fast path of a stream's first chunk: write it as soon as it arrives, without a task switch.

        Returns False if it has to go through first_chunk() and run().
        """
        self._adopt(answer)
        if answer.status >= 300 or not self._is_plain(chunk):
            return False
        exchange, connection = self._exchange, self._connection
        if connection is None or not connection.begin(
            answer.status, self._headers(b"content-length"), frame(chunk)
        ):
            return False
        self.started = True
        exchange.status = answer.status
        exchange.first_byte = time.perf_counter()
        exchange.note_chunk(chunk)
        exchange.bytes_out = len(chunk)
        self._guard.reading_since = self._now()
        return True

    async def first_chunk(self, answer: Answer) -> bytes:
        """Wait for the engine's first byte. Returns b"" if begin() has passed it on. Raises EngineLost."""
        self._adopt(answer)
        chunk = await answer.read()
        if self._answer.status < 400 and self._exchange.dialect.is_aborted(chunk):
            raise EngineLost(_STOPPING)
        return chunk

    async def run(self, chunk: bytes) -> None:
        """Pass the answer on, starting with `chunk`, except for its end, which finish() sends.

        If begin() has passed on the first chunk, start after it. Raises EngineLost if the engine's answer
        breaks off. The next chunk is read only when the server has taken the last one, so a client that does
        not read stops its own stream and fills no memory.
        """
        exchange, guard, events = self._exchange, self._guard, self._events
        if events is None:
            exchange.outcome = exchange.dialect.fault_of(chunk) or exchange.outcome
            if self._answer.at_end:
                if self._is_cut(chunk):
                    raise EngineLost(_CUT)
                if chunk and self._at_once(chunk):
                    return
        take = self._take if events is not None and self._connection is not None else None
        if self.started and not chunk:
            chunk = await self._next(take)
        beginning = chunk.lstrip()[:1] if events is None else b""
        while chunk:
            if events is None:
                exchange.note_part(chunk)
            else:
                chunk = events.whole(chunk)
                if exchange.dialect.is_aborted(chunk):
                    raise EngineLost(_STOPPING)
                if self._hides_usage and MARK in chunk:
                    chunk, hidden = split(chunk)
                    exchange.note_chunk(hidden)
                if chunk:
                    exchange.note_chunk(chunk)
            if self._answer.at_end and (events is None or events.is_complete()):
                # The last event arrived together with the end of the body.
                rest = chunk if events is None else chunk + events.held
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
            if events is not None and not events.is_complete():
                raise EngineLost("its stream ended before its last event")
            rest = b"" if events is None else events.held
        guard.reading_since = None
        if events is not None:
            exchange.outcome = exchange.dialect.fault_in(events.end(rest)) or exchange.outcome
        elif self.started and self._is_open(beginning):
            raise EngineLost(_CUT)
        exchange.bytes_out += len(rest)
        if not self.started:
            await self._start(b"")
        if self._connection is not None:
            # Wait for a slow reader here, so that finish() need not.
            await self._connection.wait_until_read()
        self._rest = rest

    async def finish(self) -> None:
        """Send what run() has kept for the end."""
        rest, connection = self._rest, self._connection
        if rest is None:
            return
        if not self.started and connection is not None:
            self.started = connection.answer(self._answer.status, self._headers(b"content-length"), rest)
        elif connection is None or not connection.end(rest):
            await self._send({"type": "http.response.body", "body": rest})

    async def _next(self, take: Take | None) -> bytes:
        """The next chunk, or b"" at the end.

        A connection that breaks after a stream's last event counts as its end.
        """
        try:
            return await self._answer.read(take)
        except EngineLost:
            if self._events is not None and self._events.is_complete():
                return b""
            raise

    def _at_once(self, body: bytes) -> bool:
        """Fast path of an answer that has arrived completely. Returns False if it has to go the other way."""
        if self._connection is None or not self._connection.may_start:
            return False
        exchange = self._exchange
        exchange.status = self._answer.status
        exchange.note_part(body)
        exchange.bytes_out = len(body)
        self._rest = body
        return True

    def _take(self, chunk: bytes, framed: bytes) -> bool:
        """Fast path of a chunk, from the engine's socket to the client's without a task switch.

        Called while `run` waits for the next chunk. Anything unusual is left for `run`. `framed` is the same
        chunk, framed for HTTP.
        """
        exchange, connection, events = self._exchange, self._connection, self._events
        if connection is None or events is None or events.is_open or not self._is_plain(chunk):
            return False
        if not connection.write(framed):
            return False
        exchange.note_chunk(chunk)
        exchange.bytes_out += len(chunk)
        self._guard.reading_since = self._now()
        return True

    def _is_plain(self, chunk: bytes) -> bool:
        """Whether the chunk is made of complete events that are passed on unchanged."""
        return (
            self._events is not None
            and chunk.endswith(b"\n\n")
            and not self._exchange.dialect.is_aborted(chunk)
            and not (self._hides_usage and chunk.find(MARK) >= 0)
        )

    async def refuse(self, chunk: bytes) -> None:
        """Pass on a 4xx or 5xx, translated from the engine's error shape into ours. Raises EngineLost."""
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
        """Tell a client in the middle of its answer that the answer has failed.

        A stream gets an error event. Any other answer stays incomplete and the server closes the connection,
        which no client takes for success.
        """
        if self._events is None:
            return
        event = self._exchange.dialect.error_event(error, self._exchange.request_id)
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await self._send({"type": "http.response.body", "body": event})
        except TimeoutError:
            log.warning("request %s: its client does not read", self._exchange.request_id)

    async def _start(self, chunk: bytes) -> None:
        """Send the head, and a first piece of the body if there is one."""
        status = self._answer.status
        # The length of an event stream is unknown: events may be held back or added.
        headers = self._headers() if self._events is None else self._headers(b"content-length")
        self._exchange.status = status
        self.started = True
        framed = frame(chunk) if chunk else b""
        if (
            self._events is not None
            and self._connection is not None
            and self._connection.begin(status, headers, framed)
        ):
            return
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        if chunk:
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    def _adopt(self, answer: Answer) -> None:
        self._answer = answer
        if self._events is None and _is_events(answer.header(b"content-type") or b""):
            self._events = EventStream(self._exchange)

    def _is_cut(self, body: bytes) -> bool:
        """Whether a JSON body ends too early, although its length is as declared.

        Only bodies with unbalanced braces are parsed.
        """
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
        """The same for JSON that came in parts, of which only the first byte and the last parts are kept."""
        end = b"".join(self._exchange.tail).rstrip()
        return bool(end) and self._is_json() and not end.endswith(_CLOSING.get(beginning, b""))

    def _is_json(self) -> bool:
        return (self._answer.header(b"content-type") or b"").startswith(b"application/json")

    def _headers(self, *more: bytes) -> list[Header]:
        """Our headers and the engine's, without those that concern one connection and without `more`."""
        answer = self._answer
        headers = self._exchange.headers()
        unwanted = _NOT_PASSED_ON.union(more) if more else _NOT_PASSED_ON
        if connection := answer.header(b"connection"):
            unwanted |= {name.strip().lower() for name in connection.split(b",")}
        headers += [header for header in answer.headers if header[0] not in unwanted]
        if self._events is not None:
            # Set on the answer itself, so that it works with any server in front of us.
            headers.append((b"x-accel-buffering", b"no"))
            if answer.header(b"cache-control") is None:
                headers.append((b"cache-control", b"no-cache"))
        return headers


@functools.lru_cache(maxsize=64)
def _is_events(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip().lower() == b"text/event-stream"
