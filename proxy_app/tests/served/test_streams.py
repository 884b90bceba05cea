"""Answers as they arrive: one chunk at a time, clients that leave or do not read, engines that break off."""

import asyncio
import contextlib
import gc
import json
import resource
from collections import Counter
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from engine import WAIT_S, Call, Engine, complete, stream, stream_body
from harness import KEY, Files, Log, Proxy, running_proxy
from inference_proxy import app
from inference_proxy.http import server_protocol
from inference_proxy.http.answer import Answer
from inference_proxy.pipeline import pipeline
from inference_proxy.request.guard import Guard

pytestmark = pytest.mark.anyio

STREAM = {"stream": True}


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    text = (await response.read()).decode()
    assert text.endswith("\n\n")
    return [
        event if event == "[DONE]" else json.loads(event)
        for event in (block.removeprefix("data: ") for block in text.removesuffix("\n\n").split("\n\n"))
    ]


@pytest.mark.complaint(4)
async def test_chunks_arrive_one_by_one(proxy: Proxy, engine: Engine, log: Log) -> None:
    seen = asyncio.Semaphore(0)

    async def step_by_step(call: Call) -> None:
        await call.start_stream()
        for number in range(5):
            await call.event(json.dumps({"n": number}))
            # Wait until the client has that event: if chunks were held back, this would hang.
            await asyncio.wait_for(seen.acquire(), WAIT_S)
        await call.event('{"usage":{"prompt_tokens":11,"total_tokens":16,"completion_tokens":5}}')
        await call.event("[DONE]")
        await call.end_stream()

    engine.script = step_by_step
    async with proxy.post(body=STREAM) as response:
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-cache"
        assert "content-length" not in response.headers
        for number in range(5):
            line = await asyncio.wait_for(response.content.readuntil(b"\n\n"), WAIT_S)
            assert line == b'data: {"n": %d}\n\n' % number
            seen.release()
        assert b"[DONE]" in await response.content.read()
    line = await log.last_request()
    assert (line["stream"], line["outcome"], line["status"]) == (True, "ok", 200)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (11, 5)


async def test_a_head_may_come_long_before_the_first_chunk(
    proxy: Proxy, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's does: it is sent before the prompt is processed."""
    waits = asyncio.Event()
    read = Answer.read

    def noting(answer: Answer, take: Any = None) -> Any:
        waits.set()
        return read(answer, take)

    async def in_two(call: Call) -> None:
        await call.start_stream()
        await asyncio.wait_for(waits.wait(), WAIT_S)
        await stream_body(call)

    monkeypatch.setattr(Answer, "read", noting)
    engine.script = in_two
    async with proxy.post(body=STREAM) as response:
        assert len(await events(response)) == 3


@pytest.mark.complaint(15)
async def test_a_chunk_needs_no_switch_of_tasks(
    proxy: Proxy, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also fails if a new uvicorn breaks the fast path: everything would still work, only slower."""
    short: list[bytes] = []

    write = server_protocol.ClientConnection.write

    def noting(client: server_protocol.ClientConnection, chunk: bytes) -> bool:
        if written := write(client, chunk):
            short.append(chunk)
        return written

    monkeypatch.setattr(server_protocol.ClientConnection, "write", noting)
    seen = asyncio.Semaphore(0)

    async def step_by_step(call: Call) -> None:
        await call.start_stream()
        for number in range(5):
            await call.event(str(number))
            await asyncio.wait_for(seen.acquire(), WAIT_S)
        await call.event("[DONE]")
        await call.end_stream()

    engine.script = step_by_step
    async with proxy.post(body=STREAM) as response:
        for _ in range(5):
            await asyncio.wait_for(response.content.readuntil(b"\n\n"), WAIT_S)
            seen.release()
        assert await response.content.read() == b"data: [DONE]\n\n"
    assert short[:4] == [b"9\r\ndata: %d\n\n\r\n" % number for number in range(1, 5)]


class _Noting:
    """A transport that records what is written to it, piece by piece."""

    def __init__(self, transport: asyncio.Transport, pieces: list[bytes]) -> None:
        self._transport = transport
        self._pieces = pieces

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._pieces.append(bytes(data))
        self._transport.write(data)


@pytest.mark.parametrize("told", [False, True], ids=["usage hidden", "usage asked for"])
async def test_a_stream_takes_no_write_for_its_head_and_none_for_its_end(
    proxy: Proxy, engine: Engine, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    """The head is sent with the first chunk, and the end with the last: each write wakes the client."""
    pieces: list[bytes] = []
    made = server_protocol.Protocol.connection_made
    monkeypatch.setattr(
        server_protocol.Protocol,
        "connection_made",
        lambda protocol, transport: made(protocol, cast(asyncio.Transport, _Noting(transport, pieces))),
    )
    seen = asyncio.Event()

    async def step_by_step(call: Call) -> None:
        await call.start_stream()
        await call.event("1")
        await asyncio.wait_for(seen.wait(), WAIT_S)
        await call.write(b"9\r\ndata: 2\n\n\r\n" + b"e\r\ndata: [DONE]\n\n\r\n" + b"0\r\n\r\n")

    engine.script = step_by_step
    async with proxy.post(body=STREAM | {"stream_options": {"include_usage": told}}) as response:
        assert await asyncio.wait_for(response.content.readuntil(b"\n\n"), WAIT_S) == b"data: 1\n\n"
        seen.set()
        assert await response.content.read() == b"data: 2\n\ndata: [DONE]\n\n"
    first, last = pieces
    assert first.startswith(b"HTTP/1.1 200 ")
    assert first.endswith(b"\r\n\r\n9\r\ndata: 1\n\n\r\n")
    assert last == b"17\r\ndata: 2\n\ndata: [DONE]\n\n\r\n0\r\n\r\n"


async def test_while_a_client_takes_its_time_no_engine_is_to_blame(
    proxy: Proxy, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While anything is sent, also the end of a stream, the clock between chunks stands still."""
    guards: list[Guard] = []
    since: list[float | None] = []
    send = RequestResponseCycle.send

    class Kept(Guard):
        def __enter__(self) -> Guard:
            guards.append(self)
            return super().__enter__()

    async def noting(cycle: RequestResponseCycle, message: Any) -> None:
        since.append(guards[-1].reading_since)
        await send(cycle, message)

    monkeypatch.setattr(pipeline, "Guard", Kept)
    monkeypatch.setattr(app, "take_connection", lambda _: None)
    monkeypatch.setattr(RequestResponseCycle, "send", noting)
    engine.script = stream
    async with proxy.post(body=STREAM) as response:
        assert len(await events(response)) == 3
    assert since
    assert set(since) == {None}


async def test_a_stream_without_anything_in_it_is_no_answer(proxy: Proxy, engine: Engine) -> None:
    async def nothing(call: Call) -> None:
        await call.start_stream()
        await call.end_stream()

    engine.script = nothing
    async with proxy.post(body=STREAM) as response:
        assert response.status == 502
        assert (await response.json())["error"]["code"] == "engine_unreachable"


async def test_a_server_without_the_short_way_will_do(
    proxy: Proxy, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "take_connection", lambda _: None)
    engine.script = stream
    async with proxy.post(body=STREAM) as response:
        assert len(await events(response)) == 3


async def test_requests_leave_nothing_for_the_garbage_collector(proxy: Proxy, engine: Engine) -> None:
    """Reference cycles wait for the garbage collector, and each of its runs stops all streams."""
    gc.collect()
    gc.disable()
    try:
        for script, body in ((stream, STREAM), (complete, None)) * 10:
            engine.script = script
            async with proxy.post(body=body) as response:
                assert await response.read()
        await proxy.idle()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = Counter(type(one).__qualname__ for one in gc.garbage if _is_ours(one))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not left


def _is_ours(thing: object) -> bool:
    return type(thing).__module__.startswith(("inference_proxy", "uvicorn"))


@pytest.mark.complaint(15)
async def test_bytes_are_not_touched(proxy: Proxy, engine: Engine) -> None:
    body = b": comment\r\n\r\ndata: {\ndata: }\n\nid: 1\nevent: x\ndata: \xc3\xa9\n\ndata: [DONE]\n\ntrailing"

    async def byte_by_byte(call: Call) -> None:
        await call.start_stream()
        for byte in body:
            await call.chunk(bytes([byte]))
        await call.end_stream()

    engine.script = byte_by_byte
    async with proxy.post(body=STREAM) as response:
        assert await response.read() == body


async def test_an_event_may_be_large(proxy: Proxy, engine: Engine) -> None:
    body = b"data: " + b"x" * 3_000_000 + b"\n\ndata: [DONE]\n\n"

    async def large(call: Call) -> None:
        await call.start_stream()
        await call.chunk(body)
        await call.end_stream()

    engine.script = large
    async with proxy.post(body=STREAM) as response:
        assert await response.read() == body


async def test_connections_are_used_again(proxy: Proxy, engine: Engine) -> None:
    engine.script = stream
    for _ in range(5):
        async with proxy.post(body=STREAM) as response:
            assert (await events(response))[-1] == "[DONE]"
    assert max(call.nth_on_connection for call in engine.calls) > 1


async def leave_after(proxy: Proxy, call_started: Any, body: dict[str, Any], wait_for: bytes) -> None:
    """A client with a bare socket that hangs up once it has read `wait_for` (b"": before any answer)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    data = json.dumps({"model": "big"} | body).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\n"
        b"content-length: %d\r\n\r\n%s" % (KEY.encode(), len(data), data)
    )
    if wait_for:
        await asyncio.wait_for(reader.readuntil(wait_for), WAIT_S)
    await call_started()
    writer.transport.abort()


@pytest.mark.complaint(2)
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("short_way", [False, True])
@pytest.mark.parametrize("size", [1, 400_000])
async def test_a_client_that_leaves_early_stops_the_engine(
    proxy: Proxy,
    engine: Engine,
    log: Log,
    streaming: bool,
    short_way: bool,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A large body makes the server stop reading from its client, which must not hide that it left."""
    if not short_way:
        monkeypatch.setattr(app, "take_connection", lambda _: None)

    async def think(call: Call) -> None:
        if streaming:
            await call.start_stream()
        await asyncio.wait_for(call.client_gone.wait(), WAIT_S)

    engine.script = think
    calls: list[Call] = []

    async def started() -> None:
        calls.append(await engine.next_call())

    await leave_after(proxy, started, {"stream": streaming, "prompt": "x" * size}, b"")
    await asyncio.wait_for(calls[0].client_gone.wait(), WAIT_S)
    line = await log.last_request()
    assert (line["outcome"], line["status"]) == ("client_gone", 499)
    await proxy.idle()
    assert len(engine.calls) == 1


@pytest.mark.complaint(2)
async def test_a_client_that_leaves_a_stream_stops_the_engine(proxy: Proxy, engine: Engine, log: Log) -> None:
    async def talk(call: Call) -> None:
        await call.start_stream()
        await call.event("first")
        await asyncio.wait_for(call.client_gone.wait(), WAIT_S)

    engine.script = talk
    calls: list[Call] = []

    async def started() -> None:
        calls.append(await engine.next_call())

    await leave_after(proxy, started, STREAM, b"first")
    await asyncio.wait_for(calls[0].client_gone.wait(), WAIT_S)
    line = await log.last_request()
    assert (line["outcome"], line["status"]) == ("client_gone", 200)
    await proxy.idle()


async def test_a_client_that_leaves_its_upload_is_forgotten(proxy: Proxy, engine: Engine, log: Log) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\ncontent-length: 99\r\n\r\n{"
        % KEY.encode()
    )
    await proxy.until(lambda status: status["in_flight"] == 1)
    writer.transport.abort()
    assert (await log.last_request())["outcome"] == "client_gone"
    await proxy.idle()
    assert not engine.calls


async def test_a_client_that_does_not_read_stops_its_stream_only(proxy: Proxy, engine: Engine) -> None:
    total, piece = 256 << 20, b"data: " + b"x" * 65_528 + b"\n\n"
    written = 0
    stalled = asyncio.Event()

    async def flood(call: Call) -> None:
        nonlocal written
        await call.start_stream()
        while written < total:
            call.writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            drained = asyncio.ensure_future(call.writer.drain())
            if not (await asyncio.wait({drained}, timeout=0.5))[0]:
                stalled.set()
            await drained
            written += len(piece)
        await call.event("[DONE]")
        await call.end_stream()

    engine.script = flood
    async with proxy.post(body=STREAM) as response:
        await asyncio.wait_for(stalled.wait(), WAIT_S)
        # What the kernel's four socket buffers and a few in the processes hold, and no more.
        assert written < 40 << 20
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
    assert size == total + len(b"data: [DONE]\n\n")


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


@pytest.mark.complaint(1)
async def test_clients_that_do_not_read_take_no_memory(proxy: Proxy, engine: Engine) -> None:
    """vllm-router went from 82 to 376 MB. Engine and clients, which are part of this process, keep little."""
    count, total, piece = 16, 64 << 20, b"data: " + b"x" * 65_528 + b"\n\n"
    stalled = asyncio.Semaphore(0)

    async def flood(call: Call) -> None:
        await call.start_stream()
        for _ in range(0, total, len(piece)):
            call.writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            drained = asyncio.ensure_future(call.writer.drain())
            if not (await asyncio.wait({drained}, timeout=0.5))[0]:
                stalled.release()
            await drained

    engine.script = flood
    before = resident_bytes()
    async with contextlib.AsyncExitStack() as clients:
        for _ in range(count):
            await clients.enter_async_context(proxy.post(body=STREAM))
        async with asyncio.timeout(2 * WAIT_S):
            for _ in range(count):
                await stalled.acquire()
        # Twice what an event loop reads at once (256 KiB), and the last events, for each client.
        assert resident_bytes() - before < count << 21
        assert len([call for call in engine.calls if not call.client_gone.is_set()]) == count
    async with asyncio.timeout(WAIT_S):
        for call in engine.calls:
            await call.client_gone.wait()
    await proxy.idle()


@pytest.mark.complaint(11)
async def test_two_thousand_streams_at_once(files: Files, engine: Engine) -> None:
    """production-stack's router fell over at 1,000 connections."""
    count = 2000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5 * count:
        pytest.skip(f"needs {5 * count} open files, may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    go_on = asyncio.Event()

    async def together(call: Call) -> None:
        await call.start_stream()
        await call.event("1")
        await go_on.wait()
        await call.event("[DONE]")
        await call.end_stream()

    engine.script = together
    body = b'{"model":"big","stream":true}'
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer %s\r\n"
        b"content-length: %d\r\n\r\n%s" % (KEY.encode(), len(body), body)
    )
    begun = 0

    async def one(port: int) -> bytes:
        nonlocal begun
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        first = await reader.readuntil(b"data: 1\n\n")
        begun += 1
        if begun == count:
            go_on.set()
        rest = await reader.read()
        writer.close()
        return first + rest

    # Two thousand connections at once overflow the engine's backlog, and take seconds on a busy machine.
    files.configure(engine, timeouts={"connect_s": WAIT_S})
    async with running_proxy(files) as proxy, asyncio.timeout(6 * WAIT_S):
        answers = await asyncio.gather(*(one(proxy.port) for _ in range(count)))
        await proxy.idle()
    assert len(answers) == count
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"data: [DONE]\n\n" in answer
        assert answer.endswith(b"0\r\n\r\n")


@pytest.mark.complaint(7)
async def test_a_trickle_cannot_hold_a_stream_for_ever(files: Files, engine: Engine) -> None:
    async def trickle(call: Call) -> None:
        await call.start_stream()
        while not call.client_gone.is_set():
            await call.event('{"n": 1}')
            await asyncio.sleep(0.01)

    engine.script = trickle
    files.configure(engine, timeouts={"total_s": {"generation": 0.3}})
    async with running_proxy(files) as proxy:
        async with proxy.post(body=STREAM) as response:
            *_, error = await events(response)
        assert error["error"]["code"] == "total_timeout"
        call = await engine.next_call()
        await asyncio.wait_for(call.client_gone.wait(), WAIT_S)


async def test_an_abort_is_found_wherever_reads_cut_it(proxy: Proxy, engine: Engine) -> None:
    said = b'data: {"choices":[{"delta":{},"finish_reason":"abort"}]}\n\n'

    async def cut(call: Call) -> None:
        await call.start_stream()
        await call.event('{"n": 1}')
        for byte in said:
            await call.chunk(bytes([byte]))
        await call.event("[DONE]")
        await call.end_stream()

    engine.script = cut
    async with proxy.post(body=STREAM) as response:
        first, error = await events(response)
    assert (first, error["error"]["code"]) == ({"n": 1}, "engine_lost")


@pytest.mark.parametrize("how", ["fin", "rst", "half-close"])
async def test_an_engine_that_dies_in_mid_stream(proxy: Proxy, engine: Engine, log: Log, how: str) -> None:
    async def die(call: Call) -> None:
        await call.start_stream()
        await call.event('{"n": 1}')
        await call.chunk(b'data: {"half')
        if how == "fin":
            call.break_off()
        elif how == "rst":
            # A reset discards what was written and not yet read.
            await proxy_has_sent_first.wait()
            call.reset()
        else:
            call.writer.write_eof()
            await call.client_gone.wait()

    proxy_has_sent_first = asyncio.Event()

    engine.script = die
    async with proxy.post(body=STREAM) as response:
        assert response.status == 200
        assert await response.content.readuntil(b"\n\n") == b'data: {"n": 1}\n\n'
        proxy_has_sent_first.set()
        (error,) = await events(response)
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert error["error"]["code"] == "engine_lost"
    assert len(engine.calls) == 1
    line = await log.last_request()
    assert (line["outcome"], line["status"]) == ("engine_lost", 200)


@pytest.mark.parametrize("how", ["no [DONE]", "abort"])
async def test_a_stream_that_only_seems_complete(proxy: Proxy, engine: Engine, how: str) -> None:
    async def cheat(call: Call) -> None:
        await call.start_stream()
        await call.event('{"n": 1}')
        assert (await call.reader.read(0)) == b""
        if how == "abort":
            await proxy_has_sent_first.wait()
            await call.event('{"choices":[{"delta":{},"finish_reason":"abort"}]}')
            await call.event("[DONE]")
        await call.end_stream()

    proxy_has_sent_first = asyncio.Event()
    engine.script = cheat
    async with proxy.post(body=STREAM) as response:
        assert await response.content.readuntil(b"\n\n") == b'data: {"n": 1}\n\n'
        proxy_has_sent_first.set()
        (error,) = await events(response)
    assert error["error"]["code"] == "engine_lost"


async def test_an_answer_that_is_cut_off_is_no_success(proxy: Proxy, engine: Engine, log: Log) -> None:
    async def cut(call: Call) -> None:
        await call.head(200, "content-type: application/json", "content-length: 1000")
        await call.write(b'{"half":')
        await had_first.wait()
        call.break_off()

    had_first = asyncio.Event()
    engine.script = cut
    async with proxy.post() as response:
        assert response.status == 200
        assert await response.content.readany() == b'{"half":'
        had_first.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert (await log.last_request())["outcome"] == "engine_lost"


@pytest.mark.parametrize(
    ("timeouts", "code"),
    [
        ({"between_chunks_s": 0.2}, "between_chunks_timeout"),
        # Enough for the first byte, on a busy machine too.
        ({"total_s": {"generation": 1}}, "total_timeout"),
        ({"first_byte_s": 1, "per_token_s": 0.01}, "total_timeout"),
    ],
)
async def test_clocks_end_a_stream_with_a_reason(
    files: Files, engine: Engine, timeouts: dict[str, Any], code: str
) -> None:
    async def stall(call: Call) -> None:
        await call.start_stream()
        await call.event('{"n": 1}')
        await call.client_gone.wait()

    engine.script = stall
    files.configure(engine, timeouts=timeouts)
    async with running_proxy(files) as proxy:
        async with proxy.post(body=STREAM | {"max_tokens": 10}) as response:
            first, error = await events(response)
        assert first == {"n": 1}
        assert error["error"]["code"] == code
        call = await engine.next_call()
        await asyncio.wait_for(call.client_gone.wait(), WAIT_S)


async def test_many_at_once(pair: Proxy, engine: Engine, other: Engine) -> None:
    engine.script = other.script = stream

    async def one(number: int) -> None:
        async with pair.post(body={"stream": True, "n": number}) as response:
            if number % 3 == 0:
                return  # leave in the middle
            assert (await events(response))[-1] == "[DONE]"

    async with asyncio.timeout(WAIT_S):
        for _ in range(3):
            await asyncio.gather(*(one(number) for number in range(60)))
    await pair.idle()


async def test_a_pipelined_disconnect_leaks_nothing(proxy: Proxy, engine: Engine) -> None:
    engine.script = stream
    for _ in range(20):
        with contextlib.suppress(aiohttp.ClientError):
            async with proxy.post(body=STREAM) as response:
                await response.content.readany()
                response.close()
    await proxy.idle()
