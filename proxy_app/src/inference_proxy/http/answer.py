"""An engine's answer while it arrives: parsed by httptools, held back when its reader is slow."""

import asyncio
from collections.abc import Callable
from typing import Any

import httptools

from inference_proxy.http.message import frame

# Unread body that stops the reading of more. One read of the event loop (256 KiB) may come on top.
_UNREAD_LIMIT = 64 * 1024
# Headers, interim answers, trailers and anything else that goes on without yielding a byte of body. One read
# of the event loop may come on top here, too.
_HEAD_LIMIT = 64 * 1024


_CODING = b"transfer-encoding"
_FRAMING = (b"content-length", _CODING)
# A chunk's size and its end, in more than which nobody needs to look for the first.
_SIZE_END = b"\r\n"
_SIZE_DIGITS = 8

# Is offered a piece of the body, and the same as a chunk of HTTP/1.1; says whether it has taken it.
Take = Callable[[bytes, bytes], bool]
# The same for the first piece, of which a whole answer is known by then but its end.
Begin = Callable[["Answer", bytes], bool]


class EngineLost(Exception):
    """The engine could not be reached, its connection broke, or what it said is not HTTP. `reader_was_slow`:
    it may have lost patience with a client that did not read."""

    reader_was_slow = False


class Answer:
    """One answer, owned by whoever asked for it and closed by that owner, once it is done with it.

    `status` (200 to 599) and `headers` (names in lower case, in their order) are known from the start; the
    body comes from `read()`. `complete` tells that its last byte has arrived, read or not.
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
        # It holds methods of this object, and `begin` may be one of who holds this: close() drops both, for
        # answers must not wait for the cycle collector.
        self._parser: Any = httptools.HttpResponseParser(self)
        self._begin = begin
        self._parts: list[bytes] = []
        self._unread = 0
        self._bodiless = 0
        self._keep_alive = False
        self._ends_with_connection = False
        self._paused = False
        self._was_held_back = False  # since its reader was slow
        # The parser stands between two chunks.
        self._between_chunks = False
        self._error: EngineLost | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._take: Take | None = None

    @property
    def at_end(self) -> bool:
        """All of it has come, and has been read."""
        return self.complete and not self._parts

    def header(self, name: bytes) -> bytes | None:
        """The first header of that name (in lower case)."""
        return self._fields.get(name)

    async def head(self) -> "Answer":
        """Wait for status and headers; without them it is closed. Raises EngineLost."""
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
        """All that has come since the last read, in one piece; b"" at the end, and once where `begin` took
        what this waited for. Raises EngineLost.

        `take` spares a switch of tasks for each piece: what arrives while this waits is offered to it from
        within the event loop's callback, and only what it refuses (by False) is returned. What comes together
        with the end is never offered. It must not raise.
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
        """Give the connection back if the answer has come to its end; otherwise break it off, by which the
        engine learns to stop generating. Only the first call counts: the connection may be another's by then.
        """
        if self._release is None:
            return
        release, self._release = self._release, None
        self._parser = self._begin = None
        self._resume()
        release(self.complete and self._keep_alive and self._error is None)

    # What the connection calls.

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
            # But not if the beginning of the next one's size came, too.
            self._between_chunks = data.endswith(_SIZE_END)
        if self._error is None:
            self._deliver()

    def lost(self, error: Exception | None) -> None:
        """The connection has ended, which completes an answer of undeclared length and breaks any other."""
        if self.complete:
            return
        if self._ends_with_connection and error is None:
            self.complete = True
            self._wake()
        else:
            when = "in the middle of its answer" if self.status else "before it answered"
            self._fail(f"it closed the connection {when}" + (f": {error}" if error else ""))

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers, after a status, go nowhere.
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
        # Anything but one length or one plain `chunked` is what request smuggling is made of.
        if len(framing) > 1 or (framing and framing[0][0] == _CODING and framing[0][1].lower() != b"chunked"):
            return self._fail("the length of its answer is declared in an unclear way")
        self.status = status
        self._fields = dict(reversed(self.headers))
        self._ends_with_connection = not framing
        # To what a HEAD was answered the parser expects a body, so it cannot tell whether more came.
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

    # Between them.

    def _fail(self, why: str) -> None:
        """After the end of an answer this only spoils its connection: the answer itself is good."""
        self._keep_alive = False
        if self._error is None and not self.complete:
            self._error = EngineLost(why)
            self._error.reader_was_slow = self._was_held_back
            self._transport.abort()
            self._wake()

    def _take_whole(self, data: bytes, take: Take) -> bool:
        """Past the parser, if this is one whole chunk and nothing else, as each read of a stream is: it goes
        on as it came. Only what we would write ourselves counts: no extension, no leading zero."""
        at = data.find(_SIZE_END, 1, _SIZE_DIGITS + len(_SIZE_END))
        size = len(data) - at - 2 * len(_SIZE_END)
        if at < 0 or size <= 0 or not data.startswith(b"%x\r\n" % size) or not data.endswith(_SIZE_END):
            return False
        if take(data[at + 2 : -2], data):
            return True
        # It need not be asked again.
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
        """For whatever comes next: whether `begin` took it. Who gives up waiting closes the answer, so nobody
        tidies up after them."""
        self._take = take
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        return waiter

    def _wake(self, begun: bool = False) -> None:
        waiter, self._waiter, self._take = self._waiter, None, None
        if waiter is not None and not waiter.done():
            waiter.set_result(begun)
