"""Where a request ends, whatever it asks for and however it is split: the protocol without a socket."""

import asyncio
import itertools
import tracemalloc
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from inference_proxy.http import server_protocol
from inference_proxy.worker import ApiProtocol as Protocol

Seen = tuple[str, str, bytes]


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


# Bodies that could be taken for the next request, or end a chunk too early.
INNER = b"POST /hidden HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
BODIES = st.sampled_from([b"", b"{}", INNER, b"\r\n\r\n", b"0\r\n\r\n" + INNER]) | st.binary(max_size=40)
UPGRADES = st.sampled_from(
    [
        b"",
        b"connection: Upgrade\r\nupgrade: h2c\r\n",
        b"Upgrade: WebSocket\r\nConnection: keep-alive, UPGRADE\r\n",
        b"connection: upgrade\r\nupgrade:\r\nupgrade: foo/1\r\n",
        b"upgrade: h2c\r\n",
        b"connection: upgrade\r\n",
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, Seen]:
    body, path = draw(BODIES), f"/{draw(st.integers(0, 9))}"
    method = draw(st.sampled_from(["POST", "PUT"]))
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\n".encode() + draw(UPGRADES)
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(body)))
        pieces = [piece for piece in (body[:cut], body[cut:]) if piece]
        framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        return head + b"transfer-encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n", (method, path, body)
    return head + b"content-length: %d\r\n\r\n" % len(body) + body, (method, path, body)


def a_protocol(app: ASGIApp, state: ServerState) -> tuple[Protocol, Wire]:
    config: Any = uvicorn.Config(app, http=Protocol, ws="none", lifespan="off", log_config=None)
    config.load()
    protocol, wire = Protocol(config, state, {}), Wire()
    protocol.connection_made(wire)
    return protocol, wire


async def serve(packets: list[bytes]) -> tuple[list[Seen], bytes]:
    seen: list[Seen] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            body, more = body + message["body"], message["more_body"]
        seen.append((scope["method"], scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    state = ServerState()
    protocol, wire = a_protocol(app, state)
    for packet in packets:
        protocol.data_received(packet)
        await asyncio.sleep(0)
    while state.tasks:
        await asyncio.gather(*state.tasks)
    return seen, wire.written


@settings(deadline=None)
@given(st.lists(requests(), min_size=1, max_size=4), st.lists(st.integers(0, 600), max_size=5))
def test_one_request_gets_one_answer(asked: list[tuple[bytes, Seen]], cuts: list[int]) -> None:
    data = b"".join(written for written, _ in asked)
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    packets = [data[begin:end] for begin, end in itertools.pairwise(places) if begin < end]
    seen, answers = asyncio.run(serve(packets))
    assert seen == [meant for _, meant in asked]
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == answers.count(b"HTTP/1.1 ") == len(asked)


def test_what_follows_a_request_and_is_no_request_is_dropped() -> None:
    """A head without an end, while the request before it runs: it is not kept, and the connection ends."""

    async def feed() -> bytes:
        answered = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await answered.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

        state = ServerState()
        protocol, wire = a_protocol(app, state)
        protocol.data_received(b"GET /1 HTTP/1.1\r\nhost: x\r\n\r\n")
        protocol.data_received(b"GET /2 HTTP/1.1\r\n")
        for _ in range(20):
            protocol.data_received(b"a: b\r\n" * 10_000)
        tracemalloc.start()
        for _ in range(20):
            protocol.data_received(b"a: b\r\n" * 10_000)
        assert tracemalloc.get_traced_memory()[0] < 100_000
        tracemalloc.stop()
        answered.set()
        while state.tasks:
            await asyncio.gather(*state.tasks)
        assert wire.closed
        return wire.written

    assert asyncio.run(feed()).count(b"HTTP/1.1 ") == 1


def test_a_stopping_worker_closes_a_connection_once_it_stays_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stop() -> list[bool]:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            raise AssertionError("nothing was requested")

        protocol, wire = a_protocol(app, ServerState())
        closed = []
        monkeypatch.setattr(wire, "close", lambda: closed.append(asyncio.get_running_loop().time()))
        monkeypatch.setattr(server_protocol, "_IDLE_AT_STOP_S", 0.05)
        stopped = asyncio.get_running_loop().time()
        protocol.shutdown()
        at_once = bool(closed)
        while not closed:
            await asyncio.sleep(0.01)
        return [at_once, closed[0] - stopped >= 0.05]

    assert asyncio.run(stop()) == [False, True]
