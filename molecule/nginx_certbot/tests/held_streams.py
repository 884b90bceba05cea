"""Streams that stay open through every change of the tests, each with one event per second."""

from __future__ import annotations

import asyncio
import ssl
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer any\r\n"
    b'Content-Length: 17\r\n\r\n{"stream":"held"}'
)


@dataclass
class HeldStreams:
    """`count` streams from each address, over TLS, read in a thread of their own. `cut` has a line for each that did not end whole."""

    addresses: list[str]
    name: str
    context: ssl.SSLContext
    count: int
    whole: int = 0
    events: int = 0
    cut: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begun: Future[None] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(self._read_all(),), daemon=True)
        self._thread.start()
        self._begun.result(60)

    def join(self, timeout_s: float) -> None:
        """Wait until all streams have ended, which somebody else causes."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"of the streams {self.whole} have ended, and {len(self.cut)} were cut"

    async def _read_all(self) -> None:
        try:
            streams = [await self._open(address) for address in self.addresses for _ in range(self.count)]
        except Exception as error:
            self._begun.set_exception(error)
            return
        self._begun.set_result(None)
        await asyncio.gather(*(self._read(*stream) for stream in streams))

    async def _open(self, address: str) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(address, 443, ssl=self.context, server_hostname=self.name)
        writer.write(REQUEST % self.name.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        return address, reader, writer

    async def _read(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read chunks of one event each. A stream is whole if no number is missing and the last chunk came."""
        number = 0
        try:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                event = (await reader.readexactly(size + 2)).strip()
                assert event == b"data: %d" % number, f"{event!r} came where event {number} was due"
                number += 1
            self.whole += 1
        except (AssertionError, ValueError, ConnectionError, asyncio.IncompleteReadError, ssl.SSLError) as error:
            self.cut.append(f"from {address} after {number} events: {type(error).__name__}: {error}")
        finally:
            self.events += number
            writer.transport.abort()
