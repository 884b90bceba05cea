"""The client to the engines, against engines that do what no correct server does."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import pytest

from certificate import self_signed
from engine import WAIT_S, Call, Engine, complete
from harness import running_engine
from inference_proxy.http import client as client_module
from inference_proxy.http.answer import Answer, EngineLost
from inference_proxy.http.client import EngineClient, EngineUnreachable

pytestmark = pytest.mark.anyio

Asker = Callable[..., Coroutine[Any, Any, Answer]]


@pytest.fixture
async def client() -> AsyncIterator[EngineClient]:
    client = EngineClient()
    yield client
    client.close()


@pytest.fixture
async def ask(client: EngineClient, engine: Engine) -> Asker:
    async def ask(method: str = "POST", body: bytes = b"{}") -> Answer:
        return await client.request(engine.url, method, "/x?y=1", {"a": "b"}, body, connect_s=WAIT_S)

    return ask


async def read_all(answer: Answer) -> bytes:
    """Read to the end and close, as an owner does."""
    try:
        body = b""
        while piece := await asyncio.wait_for(answer.read(), WAIT_S):
            body += piece
        return body
    finally:
        answer.close()


def raw(*pieces: bytes, end: Callable[[Call], None] | None = None) -> Callable[[Call], Awaitable[None]]:
    """A script that writes these bytes unchanged, then calls `end` if there is one."""

    async def script(call: Call) -> None:
        for piece in pieces:
            await call.write(piece)
        if end is not None:
            end(call)

    return script


def half_close(call: Call) -> None:
    call.writer.write_eof()


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
LENGTH_5 = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"


async def test_what_goes_out_and_what_comes_back(ask: Asker, engine: Engine) -> None:
    async def script(call: Call) -> None:
        await call.answer(201, b"hello", "X-Twice: 1", "x-twice: 2")

    engine.script = script
    answer = await ask(body=b"question")
    assert answer.status == 201
    assert answer.headers[-2:] == [(b"x-twice", b"1"), (b"x-twice", b"2")]
    assert (answer.header(b"x-twice"), answer.header(b"absent")) == (b"1", None)
    assert await read_all(answer) == b"hello"
    call = await engine.next_call()
    assert (call.method, call.path, call.body) == ("POST", "/x?y=1", b"question")
    assert call.headers == {
        "host": f"127.0.0.1:{engine.port}",
        "accept-encoding": "identity",
        "user-agent": "ec2-inference-proxy",
        "a": "b",
        "content-length": "8",
    }


# The keep-alive race.


async def break_when_reused(call: Call) -> None:
    if call.nth_on_connection > 1:
        call.break_off()
    else:
        await complete(call)


async def test_a_reused_connection_that_died_is_replaced_once(ask: Asker, engine: Engine) -> None:
    engine.script = break_when_reused
    for _ in range(3):
        assert b"hello" in await read_all(await ask())
    assert [call.nth_on_connection for call in engine.calls] == [1, 2, 1, 2, 1]


async def test_a_new_connection_that_dies_is_not_replaced(ask: Asker, engine: Engine) -> None:
    engine.script = raw(end=Call.break_off)
    with pytest.raises(EngineLost, match="before it answered"):
        await ask()
    assert len(engine.calls) == 1


@pytest.mark.complaint(3)
async def test_nothing_is_sent_again_after_a_byte_of_the_answer(ask: Asker, engine: Engine) -> None:
    await read_all(await ask())
    engine.script = raw(b"H", end=Call.break_off)
    with pytest.raises(EngineLost):
        await ask()
    assert [call.nth_on_connection for call in engine.calls] == [1, 2]


async def test_engines_that_close_kept_alive_connections_under_load_cause_no_error(
    ask: Asker, engine: Engine
) -> None:
    """With aiohttp 68 of 4,500 failed, with httpx 61."""

    async def capricious(call: Call) -> None:
        mood = len(engine.calls) % 3
        if mood == 0 and call.nth_on_connection > 1:
            return call.reset()
        await complete(call)
        if mood == 1:
            call.break_off()

    engine.script = capricious

    async def many() -> None:
        for _ in range(150):
            answer = await ask()
            assert answer.status == 200
            assert b"hello" in await read_all(answer)

    async with asyncio.timeout(6 * WAIT_S):
        await asyncio.gather(*(many() for _ in range(20)))
    assert len(engine.calls) > 3000, "no connection died in use: this test has proved nothing"


# Requests of one turn of the event loop: all but the first are sent at its end.


@pytest.fixture
async def two_idle(ask: Asker) -> None:
    """Idle connections in the pool."""
    for answer in [await ask(), await ask()]:
        await read_all(answer)


@pytest.mark.usefixtures("two_idle")
async def test_all_that_is_asked_in_one_turn_is_answered(ask: Asker, engine: Engine) -> None:
    answers = await asyncio.gather(*(ask(body=b"%d" % number) for number in range(2)))
    assert all([b"hello" in await read_all(answer) for answer in answers])
    assert sorted(call.body for call in engine.calls[2:]) == [b"0", b"1"]
    assert [call.nth_on_connection for call in engine.calls[2:]] == [2, 2]


@pytest.mark.usefixtures("two_idle")
async def test_who_leaves_in_the_turn_in_which_it_asked_sends_nothing(ask: Asker, engine: Engine) -> None:
    async def leave() -> None:
        asking = ask(body=b"nobody waits for it")
        asking.send(None)
        asking.close()

    answer, _ = await asyncio.gather(ask(body=b"first"), leave())
    await read_all(answer)
    await asyncio.wait_for(engine.hung_up.get(), WAIT_S)
    assert [call.body for call in engine.calls[2:]] == [b"first"]


class Wire(asyncio.Transport):
    """A connection to an engine that is faster than the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.aborted = False

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.sent += b"".join(list_of_data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


async def test_what_comes_before_the_turn_has_ended_is_no_answer(client: EngineClient) -> None:
    first, second = Wire(), Wire()
    answers = []
    for wire in (first, second):
        connection = client_module._Connection(client, "http://engine")
        connection.connection_made(wire)
        answers.append(connection.ask("POST", b"head", b"body"))
    assert (first.sent, second.sent) == (b"headbody", b"")
    connection.data_received(LENGTH_5 + b"hello")
    assert (second.aborted, answers[1].began) == (True, False)
    await asyncio.sleep(0)
    assert second.sent == b"", "the connection is on its way out"


@pytest.mark.complaint(3)
async def test_an_idle_connection_is_closed_before_the_engine_does_it(
    ask: Asker, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_IDLE_S", 0.02)
    first, second = await ask(), await ask()
    await read_all(first)
    await read_all(second)
    for _ in range(2):
        await asyncio.wait_for(engine.hung_up.get(), WAIT_S)


async def test_unasked_bytes_are_not_the_next_answer(ask: Asker, engine: Engine) -> None:
    """Such as uvicorn's 408 on a connection that it closes, or an answer smuggled in by another request."""
    poison = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"
    for script in (
        raw(LENGTH_5 + b"hello" + poison),
        raw(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n" + poison),
        raw(LENGTH_5 + b"hello\r\n\r\nrubbish"),
    ):
        engine.script = script
        assert await read_all(await ask()) == b"hello"
        assert engine.calls[-1].nth_on_connection == 1
    engine.script = raw(LENGTH_5 + b"hello")
    assert await read_all(await ask()) == b"hello"
    assert engine.calls[-1].nth_on_connection == 1
    await engine.calls[-1].write(poison)
    await asyncio.wait_for(engine.hung_up.get(), WAIT_S)
    while engine.calls[-1].nth_on_connection > 1 or len(engine.calls) < 5:
        assert await read_all(await ask()) == b"hello"


# One owner, which releases once.


async def test_a_connection_given_back_after_a_pause_serves_the_next_request(
    ask: Asker, engine: Engine
) -> None:
    size = 8 << 20

    async def large(call: Call) -> None:
        await call.answer(200, b"x" * size)

    engine.script = large
    for _ in range(3):
        answer = await ask()
        # Not read, so it fills up and is paused, until the engine cannot write any more.
        while not answer._paused:
            await asyncio.sleep(0)
        assert len(await read_all(answer)) == size
    assert [call.nth_on_connection for call in engine.calls] == [1, 2, 3]


async def test_an_old_owner_cannot_break_the_next_ones_answer(ask: Asker, engine: Engine) -> None:
    first = await ask()
    await read_all(first)
    go_on = asyncio.Event()

    async def slow(call: Call) -> None:
        await call.write(LENGTH_5 + b"he")
        await go_on.wait()
        await call.write(b"llo")

    engine.script = slow
    second = await ask()
    assert engine.calls[-1].nth_on_connection == 2
    first.close()
    go_on.set()
    assert await read_all(second) == b"hello"


async def test_an_answer_that_was_not_read_to_its_end_ends_its_connection(ask: Asker, engine: Engine) -> None:
    engine.script = raw(CHUNKED + b"5\r\nhello\r\n")
    answer = await ask()
    assert await answer.read() == b"hello"
    answer.close()
    await asyncio.wait_for(engine.hung_up.get(), WAIT_S)


async def test_a_caller_that_stops_waiting_ends_the_connection(ask: Asker, engine: Engine) -> None:
    async def think(call: Call) -> None:
        await call.client_gone.wait()

    engine.script = think
    asking = asyncio.ensure_future(ask())
    call = await engine.next_call()
    asking.cancel()
    await asyncio.wait_for(call.client_gone.wait(), WAIT_S)
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_an_answer_that_came_before_the_request_was_sent_ends_its_connection(
    client: EngineClient,
) -> None:
    """The rest of the request would be read as the beginning of the next one."""

    async def impatient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"HTTP/1.1 413 X\r\ncontent-length: 0\r\n\r\n")
        await hung_up.wait()
        writer.transport.abort()

    hung_up = asyncio.Event()
    server = await asyncio.start_server(impatient, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    answer = await client.request(
        f"http://127.0.0.1:{port}", "POST", "/", {}, bytes(32 << 20), connect_s=WAIT_S
    )
    assert answer.status == 413
    assert await read_all(answer) == b""
    assert not client._idle
    hung_up.set()
    server.close()


# Backpressure.


async def test_an_answer_that_nobody_reads_stops_the_engine(ask: Asker, engine: Engine) -> None:
    written = 0
    stalled = asyncio.Event()

    async def flood(call: Call) -> None:
        nonlocal written
        await call.start_stream()
        while not call.client_gone.is_set():
            call.writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            written += 0x10000
            drained = asyncio.ensure_future(call.writer.drain())
            if not (await asyncio.wait({drained}, timeout=0.5))[0]:
                stalled.set()
            await drained

    engine.script = flood
    answer = await ask()
    await asyncio.wait_for(stalled.wait(), WAIT_S)
    assert answer._unread < (64 + 256) << 10
    assert written < 16 << 20, "more than sockets hold by themselves"
    answer.close()
    await asyncio.wait_for(engine.hung_up.get(), WAIT_S)


async def test_all_chunks_of_one_read_are_one_piece(ask: Asker, engine: Engine) -> None:
    engine.script = raw(CHUNKED + b"".join(b"1\r\n%d\r\n" % n for n in range(10)) + b"0\r\n\r\n")
    answer = await ask()
    assert await answer.read() == b"0123456789"
    assert await answer.read() == b""
    answer.close()


async def test_whoever_waits_for_the_first_piece_is_told_that_it_was_taken(
    client: EngineClient, engine: Engine
) -> None:
    offered: list[bytes] = []
    waits, told = asyncio.Event(), asyncio.Event()

    def begin(_: Answer, piece: bytes) -> bool:
        offered.append(piece)
        return True

    async def one_by_one(call: Call) -> None:
        await call.start_stream()
        await waits.wait()
        await call.chunk(b"a")
        await told.wait()
        await call.chunk(b"b")
        await call.end_stream()

    engine.script = one_by_one
    answer = await client.request(engine.url, "POST", "/", {}, b"{}", connect_s=WAIT_S, begin=begin)
    reading = asyncio.create_task(answer.read())
    asyncio.get_running_loop().call_soon(waits.set)
    assert await asyncio.wait_for(reading, WAIT_S) == b""
    assert offered == [b"a"]
    assert not answer.at_end
    told.set()
    assert await read_all(answer) == b"b"
    answer.close()


async def test_pieces_are_offered_as_they_come(ask: Asker, engine: Engine) -> None:
    taken: list[bytes] = []
    took = asyncio.Semaphore(0)
    waits = asyncio.Event()

    def take(piece: bytes, _: bytes) -> bool:
        taken.append(piece)
        took.release()
        return piece != b"no"

    async def one_by_one(call: Call) -> None:
        await call.start_stream()
        await waits.wait()
        for piece in (b"a", b"b", b"no", b"c"):
            await call.chunk(piece)
            await took.acquire()
        await call.end_stream()

    engine.script = one_by_one
    answer = await ask()
    reading = asyncio.create_task(answer.read(take))
    asyncio.get_running_loop().call_soon(waits.set)
    assert await reading == b"no"
    assert taken == [b"a", b"b", b"no"]
    took.release()
    assert await read_all(answer) == b"c"


# What an answer may look like.


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (LENGTH_5 + b"hello", b"hello"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
        (CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
        (CHUNKED + b"0\r\n\r\n", b""),
        (CHUNKED + b'5;name="value"\r\nhello\r\n0\r\n\r\n', b"hello"),
        (CHUNKED + b"5\r\nhello\r\n0\r\nx-checksum: 1\r\nx-other: 9\r\n\r\n", b"hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH_5 + b"hello", b"hello"),
        (b"HTTP/1.1 103 Early\r\nlink: </x>\r\n\r\nHTTP/1.1 102 P\r\n\r\n" + LENGTH_5 + b"hello", b"hello"),
        (b"HTTP/1.1 200\r\nContent-Length:5\r\n\r\nhello", b"hello"),
    ],
)
async def test_answers_that_end_by_themselves(ask: Asker, engine: Engine, wire: bytes, body: bytes) -> None:
    engine.script = raw(wire)
    for nth in (1, 2):
        answer = await ask()
        assert 200 <= answer.status < 400
        assert b"link" not in dict(answer.headers)
        assert b"x-checksum" not in dict(answer.headers)
        assert await read_all(answer) == body
        assert answer.complete
        assert engine.calls[-1].nth_on_connection == nth, "the connection was not used again"


@pytest.mark.parametrize("end", [Call.break_off, half_close])
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nx: 1\r\n\r\n"])
async def test_answers_that_end_with_their_connection(
    ask: Asker, engine: Engine, head: bytes, end: Callable[[Call], None]
) -> None:
    engine.script = raw(head, b"hel", b"lo", end=end)
    assert await read_all(await ask()) == b"hello"
    assert await read_all(await ask()) == b"hello"
    assert [call.nth_on_connection for call in engine.calls] == [1, 1]


@pytest.mark.parametrize("extra", ["connection: close", "Connection: x-hop, Close"])
async def test_a_connection_is_not_kept_when_the_engine_says_so(
    ask: Asker, engine: Engine, extra: str
) -> None:
    async def last(call: Call) -> None:
        await call.answer(200, b"hello", extra)

    engine.script = last
    for _ in range(2):
        assert await read_all(await ask()) == b"hello"
    assert [call.nth_on_connection for call in engine.calls] == [1, 1]


async def test_head_has_no_body_whatever_its_length_says(ask: Asker, engine: Engine) -> None:
    engine.script = raw(LENGTH_5)
    answer = await ask("HEAD", b"")
    assert answer.header(b"content-length") == b"5"
    assert await read_all(answer) == b""
    assert "content-length" not in engine.calls[0].headers
    engine.script = raw(LENGTH_5 + b"hello")
    assert await read_all(await ask("HEAD", b"")) == b""
    assert await read_all(await ask("GET", b"")) == b"hello"


# Invalid answers.


@pytest.mark.parametrize("end", [Call.break_off, Call.reset, half_close])
@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        LENGTH_5,
        LENGTH_5 + b"hell",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED,
    ],
)
async def test_answers_that_break_off(
    ask: Asker, engine: Engine, wire: bytes, end: Callable[[Call], None]
) -> None:
    engine.script = raw(wire, end=end)
    with pytest.raises(EngineLost):
        await read_all(await ask())
    assert len(engine.calls) == 1


async def test_what_came_before_a_break_can_still_be_read(ask: Asker, engine: Engine) -> None:
    engine.script = raw(CHUNKED + b"5\r\nhello\r\n", end=half_close)
    answer = await ask()
    await asyncio.wait_for(engine.hung_up.get(), WAIT_S)
    assert await answer.read() == b"hello"
    with pytest.raises(EngineLost, match="in the middle"):
        await answer.read()
    answer.close()


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 099 X\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nx: a\x00b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n folded: b\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx y: a\r\ncontent-length: 0\r\n\r\n",
        CHUNKED + b"5\r\nhelloX\r\n0\r\n\r\n",
        CHUNKED + b"zz\r\nhello\r\n",
        CHUNKED + b"-1\r\nhello\r\n",
        CHUNKED + b"fffffffffffffffff\r\nhello\r\n",
    ],
)
async def test_garbage(ask: Asker, engine: Engine, wire: bytes) -> None:
    engine.script = raw(wire)
    with pytest.raises(EngineLost):
        await read_all(await asyncio.wait_for(ask(), WAIT_S))
    await asyncio.wait_for(engine.hung_up.get(), WAIT_S)


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"HTTP/1.1 200 OK\r\nx: ", b"x" * 1000),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 100),
        (b"HTTP/1.1 200 ", b"x" * 1000),
        (b"", b"HTTP/1.1 103 Early\r\nlink: </x>\r\n\r\n" * 10),
        (CHUNKED + b"0\r\n", b"x: y\r\n" * 100),
        (CHUNKED + b"0\r\nx: ", b"x" * 1000),
        (CHUNKED + b"5;", b"x" * 1000),
    ],
)
async def test_what_goes_on_for_ever_without_content(
    ask: Asker, engine: Engine, begin: bytes, more: bytes
) -> None:
    async def endless(call: Call) -> None:
        await call.write(begin)
        while True:
            await call.write(more)
            # Yield, so that each write is also read before the next one.
            await asyncio.sleep(0)

    engine.script = endless
    with pytest.raises(EngineLost, match="65536 bytes"):
        await read_all(await asyncio.wait_for(ask(), WAIT_S))


# Ways to an engine.


async def test_nobody_listens(client: EngineClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(EngineUnreachable, match=str(port)):
        await client.request(f"http://127.0.0.1:{port}", "GET", "/", {}, b"", connect_s=WAIT_S)


async def test_an_engine_by_ipv6(client: EngineClient) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    async with running_engine("big", host="::1") as engine:
        answer = await client.request(engine.url, "POST", "/", {}, b"{}", connect_s=WAIT_S)
        assert b"hello" in await read_all(answer)
        assert (await engine.next_call()).headers["host"] == f"[::1]:{engine.port}"


async def test_an_engine_by_https(
    client: EngineClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path, "localhost"))
    async with running_engine("big", host="localhost", tls=context) as engine:
        client_module._tls_context.cache_clear()
        with pytest.raises(EngineUnreachable, match="certificate"):
            await client.request(engine.url, "POST", "/", {}, b"{}", connect_s=WAIT_S)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        client_module._tls_context.cache_clear()
        for _ in range(2):
            answer = await client.request(engine.url, "POST", "/", {}, b"{}", connect_s=WAIT_S)
            assert b"hello" in await read_all(answer)
        assert engine.calls[-1].nth_on_connection == 2
        client_module._tls_context.cache_clear()


async def test_a_document(client: EngineClient, engine: Engine) -> None:
    status, body, headers = await client.get(f"{engine.url}/v1/models", timeout_s=WAIT_S)
    assert status == 200
    assert headers[b"content-type"] == b"application/json"
    assert body == (
        b'{"object":"list","data":[{"id":"big","object":"model","created":7,"owned_by":"vllm",'
        b'"root":"/srv/secret"},{"id":"small","object":"model","created":7,"owned_by":"vllm",'
        b'"root":"/srv/secret"}]}'
    )
    assert not client._idle


async def test_a_document_has_its_bounds(client: EngineClient, engine: Engine) -> None:
    async def large(call: Call) -> None:
        await call.answer(200, bytes(5 << 20))

    async def silent(call: Call) -> None:
        await call.client_gone.wait()

    engine.script = large
    with pytest.raises(EngineLost, match="larger"):
        await client.get(f"{engine.url}/large", timeout_s=WAIT_S)
    engine.script = silent
    with pytest.raises(TimeoutError):
        await client.get(f"{engine.url}/silent", timeout_s=0.05)
    await asyncio.wait_for(engine.calls[-1].client_gone.wait(), WAIT_S)


@pytest.mark.complaint(1)
async def test_engines_that_are_gone_leave_nothing(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_IDLE_S", 0.02)
    for _ in range(3):
        async with running_engine("big") as engine:
            answer = await client.request(engine.url, "POST", "/", {}, b"{}", connect_s=WAIT_S)
            await read_all(answer)
            await asyncio.wait_for(engine.hung_up.get(), WAIT_S)
    async with asyncio.timeout(WAIT_S):
        while client._idle or client._sweeping:
            await asyncio.sleep(0.01)


async def test_who_waited_for_a_slow_reader_may_have_lost_patience(ask: Asker, engine: Engine) -> None:
    engine.script = raw(CHUNKED, b"40000\r\n" + b"x" * 0x40000 + b"\r\n", end=half_close)
    answer = await ask()
    async with asyncio.timeout(WAIT_S):
        while not answer._paused:
            await asyncio.sleep(0.01)
    with pytest.raises(EngineLost) as lost:
        await read_all(answer)
    assert lost.value.reader_was_slow


async def test_an_engine_that_dies_of_a_request_has_seen_it(
    client: EngineClient, engine: Engine, ask: Asker
) -> None:
    """It came on a connection that was used before, and no new connection is possible."""

    async def die(call: Call) -> None:
        if call.nth_on_connection == 1:
            return await complete(call)
        assert engine._server is not None
        engine._server.close()
        call.break_off()

    engine.script = die
    await read_all(await ask())
    with pytest.raises(EngineUnreachable) as lost:
        await ask()
    assert lost.value.has_sent
    with pytest.raises(EngineUnreachable) as lost:
        await ask()
    assert not lost.value.has_sent
