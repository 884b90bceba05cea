"""An engine's answer as it arrives: parsed by httptools, with backpressure when its reader is slow."""

import asyncio
from collections.abc import Callable
from typing import Any

import httptools

from inference_proxy.http.message import frame

# Stop reading from the engine above this much unread body. One read of the event loop (256 KiB) may be added.
_UNREAD_LIMIT = 64 * 1024
# The most that headers, interim answers, trailers and anything else may take without yielding a byte of body.
# One read of the event loop may be added here, too.
_HEAD_LIMIT = 64 * 1024


_CODING = b"transfer-encoding"
_FRAMING = (b"content-length", _CODING)
# A chunk's size line: its end, and the most digits that are searched for it.
_SIZE_END = b"\r\n"
_SIZE_DIGITS = 8

# Called with a piece of the body, and with the same piece framed as an HTTP/1.1 chunk. Returns whether it has
# taken the piece.
Take = Callable[[bytes, bytes], bool]
# The same for the first piece of the body. By then everything about the answer is known except its end.
Begin = Callable[["Answer", bytes], bool]


class EngineLost(Exception):
    """The engine could not be reached, its connection broke, or what it sent is not HTTP.

    `reader_was_slow`: the engine may have closed the connection because a client did not read.
    """

    reader_was_slow = False


class Answer:
    """One answer. The caller that asked for it owns it, and must close it when done.

    `status` (200 to 599) and `headers` (lower-case names, in their order) are known from the start; the body
    comes from `read()`. `complete` is true once the last byte has arrived, read or not.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        method: str,
        release: Callable[[bool], None],
        begin: Begin | None = None,
    ) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._fields: dict[bytes, bytes] = {}
        self.began = False
        self.complete = False
        self._transport = transport
        self._release: Callable[[bool], None] | None = release
        self._is_head = method == "HEAD"
        # The parser holds methods of this object, and `begin` may belong to an object that holds this one.
        # close() drops both to break these reference cycles: answers must not wait for the garbage collector.
        self._parser: Any = httptools.HttpResponseParser(self)
        self._begin = begin
        self._parts: list[bytes] = []
        self._unread = 0
        self._bodiless = 0
        self._keep_alive = False
        self._ends_with_connection = False
        self._paused = False
        self._was_held_back = False  # because its reader was slow
        # The parser is between two chunks.
        self._between_chunks = False
        self._error: EngineLost | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._take: Take | None = None

    @property
    def at_end(self) -> bool:
        """Whether the whole answer has arrived and has been read."""
        return self.complete and not self._parts

    def header(self, name: bytes) -> bytes | None:
        """The first header with that name (in lower case), or None."""
        return self._fields.get(name)

    async def head(self) -> "Answer":
        """Wait for status and headers. If they do not come, close the answer. Raises EngineLost."""
        try:
            while not self.status:
                if self._error is not None:
                    raise self._error
                await self._next(None)
        except BaseException:
            self.close()
            raise
        return self

    async def read(self, take: Take | None = None) -> bytes:
        """Everything that has arrived since the last read, in one piece. Raises EngineLost.

        Returns b"" at the end, and also once if `begin` took the piece that this call was waiting for.

        `take` saves a task switch per piece: what arrives while this call waits is offered to `take` inside
        the event loop's callback, and only pieces that it refuses (by returning False) are returned. A piece
        that arrives together with the end is never offered. `take` must not raise.
        """
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            if await self._next(take):
                return b""
        parts = self._parts
        piece = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._unread = 0
        self._resume()
        return piece

    def close(self) -> None:
        """Return the connection to the pool if the answer is complete; otherwise close the connection.

        Closing it tells the engine to stop generating. Only the first call counts: after it, the connection
        may belong to another answer.
        """
        if self._release is None:
            return
        release, self._release = self._release, None
        self._parser = self._begin = None
        self._resume()
        release(self.complete and self._keep_alive and self._error is None)

    # Called by the connection.

    def feed(self, data: bytes) -> None:
        if self._take is not None and self._between_chunks and self._take_whole(data, self._take):
            return
        self.began = True
        before = self._unread
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"its answer is not HTTP/1.1: {error}")
        if self._unread != before:
            self._bodiless = 0
        else:
            self._bodiless += len(data)
            if self._bodiless > _HEAD_LIMIT:
                self._fail(f"its answer has more than {_HEAD_LIMIT} bytes without content")
        if self._between_chunks:
            # Unless the beginning of the next chunk's size has arrived as well.
            self._between_chunks = data.endswith(_SIZE_END)
        if self._error is None:
            self._deliver()

    def lost(self, error: Exception | None) -> None:
        """The connection has ended: this completes an answer of undeclared length and breaks any other."""
        if self.complete:
            return
        if self._ends_with_connection and error is None:
            self.complete = True
            self._wake()
        else:
            when = "in the middle of its answer" if self.status else "before it answered"
            self._fail(f"it closed the connection {when}" + (f": {error}" if error else ""))

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        # Once the status is known these are trailers, which are dropped.
        if not self.status:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self.complete:
            self._keep_alive = False
            return
        if 100 <= status < 200 and status != 101:
            self.headers.clear()
            return
        if not 200 <= status < 600:
            return self._fail(f"its answer has the status {status}")
        framing = [field for field in self.headers if field[0] in _FRAMING]
        # Accept one length or one plain `chunked` and nothing else: ambiguous framing is how requests are
        # smuggled.
        if len(framing) > 1 or (framing and framing[0][0] == _CODING and framing[0][1].lower() != b"chunked"):
            return self._fail("the length of its answer is declared in an unclear way")
        self.status = status
        self._fields = dict(reversed(self.headers))
        self._ends_with_connection = not framing
        # The parser expects a body after the answer to a HEAD, so it cannot tell whether more bytes came.
        self._keep_alive = not self._is_head and self._parser.should_keep_alive()
        self.complete = self._is_head

    def on_body(self, body: bytes) -> None:
        if self.complete:
            self._keep_alive = False
        else:
            self._parts.append(body)
            self._unread += len(body)

    def on_chunk_header(self) -> None:
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        self._between_chunks = True

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True

    # Helpers of both.

    def _fail(self, why: str) -> None:
        """Fail the answer. If it is already complete, it stays good and only its connection is not reused."""
        self._keep_alive = False
        if self._error is None and not self.complete:
            self._error = EngineLost(why)
            self._error.reader_was_slow = self._was_held_back
            self._transport.abort()
            self._wake()

    def _take_whole(self, data: bytes, take: Take) -> bool:
        """Pass on data that is exactly one chunk without parsing it, as almost every read of a stream is.

        Only the form that we would write ourselves counts: no chunk extension, no leading zero.
        """
        at = data.find(_SIZE_END, 1, _SIZE_DIGITS + len(_SIZE_END))
        size = len(data) - at - 2 * len(_SIZE_END)
        if at < 0 or size <= 0 or not data.startswith(b"%x\r\n" % size) or not data.endswith(_SIZE_END):
            return False
        if take(data[at + 2 : -2], data):
            return True
        # Having refused once, `take` is not called again.
        self._take = None
        return False

    def _deliver(self) -> None:
        begun = False
        if self._begin is not None and self._parts and not self.complete:
            begin, self._begin = self._begin, None
            if begun := begin(self, b"".join(self._parts)):
                self._taken()
        if self._waiter is None:
            if self._unread > _UNREAD_LIMIT and not self._paused and not self.complete:
                self._paused = self._was_held_back = True
                self._transport.pause_reading()
        elif self._take is not None and self._parts and not self.complete and self._take_parts(self._take):
            self._taken()
        elif self.status:
            self._wake(begun)

    def _take_parts(self, take: Take) -> bool:
        piece = b"".join(self._parts)
        return take(piece, frame(piece))

    def _taken(self) -> None:
        self._parts.clear()
        self._unread = 0

    def _resume(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._transport.resume_reading()
        self._paused = False

    def _next(self, take: Take | None) -> asyncio.Future[bool]:
        """A future for whatever comes next; its result is whether `begin` took it.

        A caller that stops waiting closes the answer, so an abandoned future needs no cleanup.
        """
        self._take = take
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        return waiter

    def _wake(self, begun: bool = False) -> None:
        waiter, self._waiter, self._take = self._waiter, None, None
        if waiter is not None and not waiter.done():
            waiter.set_result(begun)
