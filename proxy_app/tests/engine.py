"""An engine that does what a test tells it, over real sockets, including what no correct server does."""

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

WAIT_S = 60.0  # for what must happen, on a busy machine too; never how long something takes


@dataclass
class Call:
    """One request at the engine, and the means to answer it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    nth_on_connection: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    client_gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, data: bytes) -> None:
        if self.writer.transport.is_closing():
            # uvloop raises a RuntimeError for this.
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int, *headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", *headers, "", ""]
        await self.write("\r\n".join(lines).encode())

    async def answer(self, status: int, body: bytes | Any, *headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
        await self.head(status, "content-type: application/json", f"content-length: {len(data)}", *headers)
        await self.write(data)

    async def start_stream(self, *headers: str) -> None:
        await self.head(
            200, "content-type: text/event-stream; charset=utf-8", "transfer-encoding: chunked", *headers
        )

    async def chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def event(self, data: str) -> None:
        await self.chunk(f"data: {data}\n\n".encode())

    async def end_stream(self) -> None:
        await self.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        self.writer.transport.abort()

    def reset(self) -> None:
        """Break off with RST instead of FIN, like a host that has lost its memory."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Call], Awaitable[None]]

COMPLETION = {
    "id": "c-1",
    "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "total_tokens": 8, "completion_tokens": 5},
}


async def complete(call: Call) -> None:
    await call.answer(200, COMPLETION)


async def stream(call: Call) -> None:
    await call.start_stream()
    await stream_body(call)


async def stream_body(call: Call) -> None:
    for word in ("one", "two"):
        await call.event(json.dumps({"choices": [{"delta": {"content": word}}]}))
    await call.event("[DONE]")
    await call.end_stream()


class Engine:
    """Serves `script`; `models` answers /v1/models, `metrics` /metrics, and `prober` probes."""

    def __init__(self, *models: str, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self._host, self._tls = host, tls
        self.script: Script = complete
        self.cards: list[dict[str, Any]] = [
            {"id": model, "object": "model", "created": 7, "owned_by": "vllm", "root": "/srv/secret"}
            for model in models
        ]
        self.models: Script = self._answer_models
        self.metrics: Script = self._answer_metrics
        self.gauges: dict[str, float] | None = None  # names without "vllm:"
        self.prober: Script = complete
        self.calls: list[Call] = []
        self.probed: asyncio.Queue[Call] = asyncio.Queue()
        self.scraped: asyncio.Queue[Call] = asyncio.Queue()
        self.arrived: asyncio.Queue[Call] = asyncio.Queue()
        self.polled: asyncio.Queue[Call] = asyncio.Queue()
        self.hung_up: asyncio.Queue[None] = asyncio.Queue()  # one entry for each connection that has ended
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, self._host, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def next_call(self) -> Call:
        return await asyncio.wait_for(self.arrived.get(), WAIT_S)

    async def _answer_models(self, call: Call) -> None:
        await call.answer(200, {"object": "list", "data": self.cards})

    async def _answer_metrics(self, call: Call) -> None:
        lines = [
            f'vllm:{name}{{engine="0",model_name="big"}} {value}\n'
            for name, value in (self.gauges or {}).items()
        ]
        await call.answer(200, "".join(["# HELP nothing\n", *lines]).encode())

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        nth = 0
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                nth += 1
                await self._serve(head, nth, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self.hung_up.put_nowait(None)

    async def _serve(
        self, head: bytes, nth: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        request, *lines = head.decode("latin-1").strip().split("\r\n")
        method, path, _ = request.split(" ")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        call = Call(method, path, headers, body, nth, reader, writer)
        if path == "/v1/models":
            self.polled.put_nowait(call)
            return await self.models(call)
        if path == "/metrics":
            self.scraped.put_nowait(call)
            return await self.metrics(call)
        if body.startswith(b'{"prompt":"1","max_tokens":1'):
            self.probed.put_nowait(call)
            return await self.prober(call)
        self.calls.append(call)
        watching = asyncio.create_task(self._watch(call))
        self.arrived.put_nowait(call)
        try:
            await self.script(call)
        except ConnectionError:
            call.client_gone.set()
            raise
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, call: Call) -> None:
        with contextlib.suppress(ConnectionError):
            assert await call.reader.read(1) == b"", "the proxy does not pipeline"
        call.client_gone.set()
