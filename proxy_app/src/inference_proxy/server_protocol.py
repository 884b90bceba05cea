"""uvicorn's HTTP protocol, with short ways past ASGI for what is frequent, and a bound for heads.

A small body need not be waited for, an answer that is all there goes out in one piece, a chunk of a stream
needs no task's turn, and noticing that a client left no task of its own. Under another server they are
missing, and `send()` and `receive()` do the same, only at a higher price.
"""

from collections.abc import Callable, Iterable
from itertools import chain

from starlette.types import Scope
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from .engine_answer import frame
from .errors import Header

_EXTENSION = "inference_proxy.client"
# Of request line and headers while they are incomplete. One read of the event loop (256 KiB) may come on top.
_HEAD_LIMIT = 64 * 1024
_LAST_CHUNK = b"0\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Client:
    """The connection on which a request came, for as long as that request lasts."""

    __slots__ = ("_cycle", "_flow", "_protocol")

    def __init__(self, protocol: "Protocol") -> None:
        self._protocol = protocol
        self._cycle: RequestResponseCycle = protocol.cycle
        self._flow: FlowControl = protocol.flow

    def write(self, chunk: bytes) -> bool:
        """Write a piece of the body as `send()` would, but at once. `chunk` is framed: size and all.

        False means that it did not, and that the piece is for `send()`: the client reads too slowly or has
        left, or the body is not chunked. Not to be called while a `send()` is under way, nor with an empty
        piece, which ends a body.
        """
        cycle = self._cycle
        if self._flow.write_paused or not cycle.chunked_encoding or cycle.disconnected:
            return False
        cycle.transport.write(chunk)
        return True

    def answer(self, status: int, headers: Iterable[Header], body: bytes) -> bool:
        """Write a whole answer as `send()` would, but at once.

        `headers` say nothing of the body's length or the connection, and hold nothing that could end a
        header: an engine's have been through a parser, all others are our own. Not for an answer to HEAD,
        nor for a status without a body. False means that it wrote nothing: then it is for `send()`.
        """
        if not self.may_start:
            return False
        lines = self._head(status, headers)
        lines += (b"content-length: %d\r\n" % len(body), body)
        self._cycle.response_started = True
        self._complete(b"\r\n".join(lines))
        return True

    def begin(self, status: int, headers: Iterable[Header], chunk: bytes) -> bool:
        """Write the head of an answer in chunks, under the same conditions as a whole one, and the first of
        them, framed; empty means none. The others follow by write() or by `send()`."""
        if not self.may_start:
            return False
        cycle = self._cycle
        cycle.response_started = cycle.chunked_encoding = True
        lines = self._head(status, headers)
        lines += (b"transfer-encoding: chunked\r\n", chunk)
        cycle.transport.write(b"\r\n".join(lines))
        return True

    def end(self, chunk: bytes) -> bool:
        """Write the last piece of the body, not framed and perhaps empty, and its end, as write() would."""
        cycle = self._cycle
        if self._flow.write_paused or not cycle.chunked_encoding or cycle.disconnected:
            return False
        self._complete(frame(chunk) + _LAST_CHUNK if chunk else _LAST_CHUNK)
        return True

    async def drain(self) -> None:
        """Wait until it has read enough, or has left, so that nothing else needs to wait for it."""
        if self._flow.write_paused:
            await self._flow.drain()

    def body(self) -> bytes | None:
        """The request's body, if it came with its head, as small ones do; else it is for `receive()`."""
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
        """Its lines, without their ends."""
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
        """Call `gone` when the connection ends, at once if it already has. Not before the body was read."""
        # A large body may have paused it, and then nobody would hear of the end.
        self._flow.resume_reading()
        if self._cycle.disconnected:
            gone()
        else:
            self._protocol.gone = gone

    def unwatch(self) -> None:
        self._protocol.gone = None


class _Trailers(list[tuple[bytes, bytes]]):
    """Where header fields after a body go: nowhere. uvicorn adds them to the request's own, without bound."""

    def append(self, _: tuple[bytes, bytes]) -> None:
        pass


class Protocol(HttpToolsProtocol):
    """`idle_since` is when its last answer ended, by the loop's time; None while it has a request, and before
    the first one."""

    gone: Callable[[], None] | None = None
    idle_since: float | None = None
    _head_size: int | None = None  # None between heads

    def data_received(self, data: bytes) -> None:
        self.idle_since = None
        super().data_received(data)
        if self._head_size is not None:
            self._head_size += len(data)
            if self._head_size > _HEAD_LIMIT and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_size = 0

    def on_headers_complete(self) -> None:
        self._head_size = None
        super().on_headers_complete()
        self.headers = _Trailers()
        # The task that runs the application begins later, so it finds this in its scope.
        self.scope["extensions"] = {_EXTENSION: {"client": Client(self)}}

    def on_response_complete(self) -> None:
        """As uvicorn's, but for a timer: setting one after each answer costs more than all the rest of it."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self.idle_since = self.loop.time()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self.gone is not None:
            self.gone()


def close_idle(connections: Iterable[object], now: float, idle_s: float) -> None:
    """Close those of our protocol that have had no request for so long. `now` is by the loop's time."""
    for connection in list(connections):
        if isinstance(connection, Protocol):
            since = connection.idle_since
            if since is not None and now - since >= idle_s:
                connection.transport.close()


def take_client(scope: Scope) -> Client | None:
    """None under a server that does not run this protocol. It is in the scope no longer: client, uvicorn's
    cycle and scope would hold each other, and each request would be left for the garbage collector."""
    extension = scope.get("extensions", {}).pop(_EXTENSION, None)
    client: Client | None = extension and extension["client"]
    return client
