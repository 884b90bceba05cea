"""uvicorn's HTTP protocol with shortcuts past ASGI for the frequent cases.

It is strict about where requests end. The shortcuts: a small body is there without waiting, a whole answer is
written in one piece, a chunk of a stream is written without switching tasks, and no extra task is needed to
notice that a client has left. Under another server the shortcuts are missing: `send()` and `receive()` then
do the same at a higher cost.
"""

import asyncio
from collections.abc import Callable, Iterable
from itertools import chain

import httptools
from starlette.types import Scope
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from inference_proxy.http.message import Header, frame

_EXTENSION = "inference_proxy.connection"
# For a request line and headers that are still incomplete. One read of the event loop (256 KiB) may be added.
_HEAD_LIMIT = 64 * 1024
_LAST_CHUNK = b"0\r\n\r\n"
# How many pipelined requests are kept while another one runs. Beyond that, reading stops.
_MAX_PIPELINED = 8
# How long the rest of an upload is read after its answer, before the connection is closed.
_LINGER_S = 10
# How long a kept connection is left open after its last request, when the worker stops. Longer than nginx
# keeps one that is idle (4 s): nginx closes it, and sends no request on a connection that is being closed.
_IDLE_AT_STOP_S = 5.0


# Status, code and message of the answers to bytes that are not a valid request.
_TOO_LARGE = (431, "head_too_large", f"Request line and headers exceed {_HEAD_LIMIT} bytes.")
_MALFORMED = (400, "malformed_request", "What was sent is not a valid request of HTTP/1.1.")


class ClientConnection:
    """The connection on which a request came, valid for as long as that request lasts."""

    __slots__ = ("_cycle", "_flow", "_protocol")

    def __init__(self, protocol: "Protocol") -> None:
        self._protocol = protocol
        self._cycle: RequestResponseCycle = protocol.cycle
        self._flow: FlowControl = protocol.flow

    def write(self, chunk: bytes) -> bool:
        """Write a piece of the body at once, as `send()` would. `chunk` is already framed as an HTTP chunk.

        Returns False if it wrote nothing and the piece has to go through `send()`: the client reads too
        slowly or has left, or the body is not chunked. Must not be called while a `send()` is under way, nor
        with an empty piece, which would end the body.
        """
        cycle = self._cycle
        if self._flow.write_paused or not cycle.chunked_encoding or cycle.disconnected:
            return False
        cycle.transport.write(chunk)
        return True

    def answer(self, status: int, headers: Iterable[Header], body: bytes) -> bool:
        """Write a whole answer at once, as `send()` would.

        `headers` must not describe the body's length or the connection, nor contain anything that could end a
        header: an engine's headers have been through a parser, and all others are our own. Not for an answer
        to HEAD, nor for a status without a body. Returns False if it wrote nothing and the answer has to go
        through `send()`.
        """
        if not self.may_start:
            return False
        lines = self._head(status, headers)
        lines += (b"content-length: %d\r\n" % len(body), body)
        self._cycle.response_started = True
        self._complete(b"\r\n".join(lines))
        return True

    def begin(self, status: int, headers: Iterable[Header], chunk: bytes) -> bool:
        """Write the head of a chunked answer and its first chunk, under the same conditions as answer().

        `chunk` is framed; an empty one means that there is no first chunk yet. The others follow through
        write() or `send()`.
        """
        cycle = self._cycle
        if not self.may_start or isinstance(cycle, _UntilClose):
            return False
        cycle.response_started = cycle.chunked_encoding = True
        lines = self._head(status, headers)
        lines += (b"transfer-encoding: chunked\r\n", chunk)
        cycle.transport.write(b"\r\n".join(lines))
        return True

    def end(self, chunk: bytes) -> bool:
        """Write the last piece of the body and its end, under the same conditions as write().

        The piece is not framed and may be empty.
        """
        cycle = self._cycle
        if self._flow.write_paused or not cycle.chunked_encoding or cycle.disconnected:
            return False
        self._complete(frame(chunk) + _LAST_CHUNK if chunk else _LAST_CHUNK)
        return True

    async def wait_until_read(self) -> None:
        """Wait until the client has read enough for more to be written, or has left."""
        if self._flow.write_paused:
            await self._flow.drain()

    def body(self) -> bytes | None:
        """The request's body if it arrived together with its head, as small ones do; otherwise None."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        cycle.message_event.clear()
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    @property
    def may_start(self) -> bool:
        """Whether an answer can be written at once."""
        cycle = self._cycle
        return not (self._flow.write_paused or cycle.disconnected or cycle.response_started)

    def _head(self, status: int, headers: Iterable[Header]) -> list[bytes]:
        """The lines of an answer's head, without line ends."""
        cycle = self._cycle
        lines = [STATUS_LINE[status][:-2]]
        lines += [b": ".join(header) for header in chain(cycle.default_headers, headers)]
        if not cycle.keep_alive:
            lines.append(b"connection: close")
        return lines

    def _complete(self, end: bytes) -> None:
        cycle = self._cycle
        cycle.response_complete = True
        cycle.transport.write(end)
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()

    def watch(self, gone: Callable[[], None]) -> None:
        """Call `gone` when the connection ends, or at once if it already has.

        Call this only after the body was read.
        """
        # A large body may have paused reading, and the end of a paused connection goes unnoticed.
        self._flow.resume_reading()
        if self._cycle.disconnected:
            gone()
        else:
            self._protocol.gone = gone

    def unwatch(self) -> None:
        self._protocol.gone = None


class _Trailers(list[tuple[bytes, bytes]]):
    """Discards header fields after a body. uvicorn would add them to the request's own, without a limit."""

    def append(self, _: tuple[bytes, bytes]) -> None:
        pass


class _UntilClose(RequestResponseCycle):
    """A request of HTTP/1.0, which has no chunks: an answer without a length ends when its connection closes.

    Every connection of HTTP/1.0 is closed after its answer.
    """

    _without_length = False

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            if all(name.lower() != b"content-length" for name, _ in message.get("headers", ())):
                self._without_length, self.chunked_encoding = True, False
        elif message["type"] == "http.response.body" and self._without_length:
            # uvicorn counts down to the end of a body, so each piece is declared as long as it is.
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class _LastTransport(asyncio.Transport):
    """The transport of a connection's last answer.

    It closes for writing first, then drops what is still sent: a connection that is closed before the whole
    request has arrived is reset, and the client may lose the answer.
    """

    def __init__(self, protocol: "Protocol") -> None:
        super().__init__()
        self._protocol = protocol
        self._transport = protocol.transport
        self._cycle = protocol.cycle

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        if self._cycle.more_body and not self._transport.is_closing():
            _Lingering(self._protocol)
        else:
            self._transport.close()


class _Lingering(asyncio.Protocol):
    """Takes over a connection whose last answer is written, until the client closes it or time is up."""

    def __init__(self, protocol: "Protocol") -> None:
        protocol.pipeline.clear()
        self._protocol = protocol
        self._transport = protocol.transport
        self._transport.set_protocol(self)
        protocol.flow.resume_reading()
        self._transport.write_eof()
        self._closing = protocol.loop.call_later(_LINGER_S, self._transport.close)

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._closing.cancel()
        self._protocol.connection_lost(error)


class Protocol(HttpToolsProtocol):
    """One connection's protocol.

    `idle_since` is when its last answer ended, by the loop's time; None while a request runs and before the
    first one.
    """

    gone: Callable[[], None] | None = None
    idle_since: float | None = None
    _stopping = False
    _head_size: int | None = None  # None between heads
    # Of pipelined requests, the one that is being answered.
    _running: RequestResponseCycle | None = None
    _upgrading = False
    _discards_input = False  # input is dropped; reading goes on only to notice that the client leaves

    def data_received(self, data: bytes) -> None:
        if self._discards_input:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(memoryview(data)[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(*_MALFORMED)
        if self._head_size is not None:
            self._head_size += len(data)
            if self._head_size > _HEAD_LIMIT and not self.transport.is_closing():
                self._refuse(*_TOO_LARGE)

    def _parse_without_upgrade(self, rest: memoryview) -> None:
        """Parse a head that asked for a protocol upgrade again, without the upgrade.

        Any server may ignore an upgrade (RFC 9110, 7.8). What follows the head is then the request's body,
        and after it the next request. llhttp would take what follows for the other protocol, and httptools
        for the next request.
        """
        while True:
            self._upgrading = False
            lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self._version())]
            lines += [b": ".join(header) for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            try:
                self.parser.feed_data(b"\r\n".join((*lines, b"", b"")))
                return self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
            except httptools.HttpParserError:
                return self._refuse(*_MALFORMED)

    def _version(self) -> bytes:
        version: str = self.parser.get_http_version()
        return version.encode()

    def error_body(self, code: str, message: str) -> bytes:
        """The JSON body of the protocol's own answer to bytes that are not a valid request."""
        raise NotImplementedError

    def _refuse(self, status: int, code: str, message: str) -> None:
        """End the connection after bytes that cannot be parsed.

        A complete request gets its answer first: these bytes came after it, and an answer to them would land
        in the middle of its own.
        """
        cycle: RequestResponseCycle | None = self.cycle
        if self.pipeline and self.cycle.more_body:
            # The body of the last pipelined request cannot be parsed; the requests before it are complete.
            self.pipeline.popleft()
            cycle = self.pipeline[0][0] if self.pipeline else self._running
        if cycle is not None and not cycle.response_complete and not cycle.more_body:
            cycle.keep_alive = False
            self._discards_input = True
            return
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or self.pipeline:
                return self.transport.close()
            cycle.disconnected = True
            cycle.message_event.set()
        self.logger.warning("Invalid HTTP request received.")
        body = self.error_body(code, message)
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head % len(body) + body)
        _Lingering(self)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_size = 0

    def on_headers_complete(self) -> None:
        self._head_size = None
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("CONNECT asks for a tunnel, and there is none here")
            self._upgrading = True
            return
        if self.expect_100_continue and self._version() != b"1.1":
            # A client of HTTP/1.0 would take the interim answer for the final one (RFC 9110, 10.1.1).
            self.expect_100_continue = False
        super().on_headers_complete()
        self.idle_since = None
        if self._stopping:
            self.cycle.keep_alive = False
        if not self.pipeline:
            self._running = self.cycle
        elif len(self.pipeline) < _MAX_PIPELINED:
            # uvicorn has paused reading, so the end of the connection would go unnoticed.
            self.flow.resume_reading()
        self.headers = _Trailers()
        if self.expect_100_continue or not self.cycle.keep_alive:
            self._prepare_to_close(self.cycle)
        # The task that runs the application starts later, so it finds this in its scope.
        self.scope["extensions"] = {_EXTENSION: {"connection": ClientConnection(self)}}

    def _prepare_to_close(self, cycle: RequestResponseCycle) -> None:
        # A client that was answered without a `100 Continue` may send its body or leave it out, so what
        # follows on this connection is ambiguous.
        cycle.keep_alive = False
        cycle.transport = _LastTransport(self)
        if self.scope["http_version"] != "1.1":
            cycle.__class__ = _UntilClose

    def on_body(self, body: bytes) -> None:
        """uvicorn's method without its check of each piece for a protocol upgrade."""
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        cycle = self.cycle
        # The message that ends before an upgrade is not the whole request yet.
        if not self._upgrading and not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()

    def on_response_complete(self) -> None:
        """uvicorn's method without its keep-alive timer.

        Setting a timer after each answer costs more than the rest of the method.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._running, app = self.pipeline.pop()
            self._start_asgi_task(self._running, app)
        else:
            self.idle_since = self.loop.time()

    def shutdown(self) -> None:
        """Answer one more request if there is one, and close the connection once it stays idle.

        uvicorn would close an idle connection at once. A request that is sent at that moment would be lost:
        its sender cannot know whether it was read, and must not send a POST twice.
        """
        self._stopping = True
        if self._is_idle:
            since = self.loop.time() if self.idle_since is None else self.idle_since
            self.loop.call_at(since + _IDLE_AT_STOP_S, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _close_if_idle(self) -> None:
        if self._is_idle:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        running = self._running
        if running is not None and running is not self.cycle and not running.response_complete:
            # uvicorn notifies the last request only; without this the running one would continue without a
            # client.
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(error)
        if self.gone is not None:
            self.gone()


def close_idle(connections: Iterable[object], now: float, idle_s: float) -> None:
    """Close connections of this protocol that have been idle for `idle_s`. `now` is by the loop's time."""
    for connection in list(connections):
        if isinstance(connection, Protocol):
            since = connection.idle_since
            if since is not None and now - since >= idle_s:
                connection.transport.close()


def take_connection(scope: Scope) -> ClientConnection | None:
    """Take the connection out of the scope; None under a server that does not run this protocol.

    Left in the scope it would form a reference cycle of client, uvicorn's cycle and scope, and each request
    would wait for the garbage collector.
    """
    extension = scope.get("extensions", {}).pop(_EXTENSION, None)
    connection: ClientConnection | None = extension and extension["connection"]
    return connection
