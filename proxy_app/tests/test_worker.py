"""The worker's server: idle connections, and the end of a worker with a fault."""

import asyncio
import socket
import sys
import types

import pytest

from engine import WAIT_S, Call, Engine, Script, complete, stream
from harness import KEY, Files, Proxy, free_port
from inference_proxy import worker
from inference_proxy.http import client
from inference_proxy.http.tcp import probe_when_silent
from inference_proxy.request.guard import Guard

pytestmark = pytest.mark.anyio

LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
ASK = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"authorization: Bearer " + KEY.encode() + b"\r\ncontent-length: 15\r\n\r\n" + b'{"model":"big"}'
)


async def test_a_connection_without_a_request_is_closed_and_a_busy_one_is_not(
    files: Files, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were answered at the same time; only one has been idle since."""
    finish = asyncio.Event()

    async def think(call: Call) -> None:
        await finish.wait()
        await complete(call)

    engine.script = think
    files.configure(engine)
    monkeypatch.setattr(worker, "_TICKS_PER_SWEEP", 1)
    monkeypatch.setattr(worker, "_NOTICE_S", 0)
    port = free_port()
    serving = worker.make_server(files.config, "127.0.0.1", port)
    running = asyncio.create_task(serving.serve())
    try:
        async with asyncio.timeout(WAIT_S):
            while not serving.started:
                await asyncio.sleep(0.01)
            idle, busy = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for reader, writer in (idle, busy):
                writer.write(LIVE)
                assert b" 200 " in await reader.readuntil(b"}")
            busy[1].write(ASK)
            await engine.next_call()
            # Not before: on a busy machine both would have been idle for so long.
            monkeypatch.setattr(worker, "_KEEP_ALIVE_S", 0.2)
            assert await idle[0].read() == b"", "closed, and nothing was said"
            finish.set()
            assert b" 200 " in await busy[0].readline()
            for _, writer in (idle, busy):
                writer.close()
    finally:
        finish.set()
        serving.should_exit = serving.force_exit = True
        await running


async def test_a_worker_with_a_fault_ends_once_it_has_no_request(files: Files, engine: Engine) -> None:
    """systemd starts it again, so the fault is repaired and no request is lost."""
    files.configure(engine)
    serving = worker.make_server(files.config, "127.0.0.1", 0)
    serving.config.load()
    state = serving._state
    assert not await serving.on_tick(600)
    try:
        raise ArithmeticError
    except ArithmeticError:
        state.faults.note_wrong_counts()
    assert not await serving.on_tick(50), "not at once after its start"
    with Guard(state.guards, WAIT_S):
        assert not await serving.on_tick(650)
    assert await serving.on_tick(700)


async def test_a_log_that_cannot_be_written_fails_no_request(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, _: bytes) -> None:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", types.SimpleNamespace(buffer=Full()))
        for _ in range(3):
            async with proxy.post() as response:
                assert response.status == 200
        await proxy.idle()
    assert (await proxy.ready())["fault"] is None


async def in_pieces(call: Call) -> None:
    await call.head(200, "content-type: application/json", "transfer-encoding: chunked")
    await call.chunk(b'{"choices":')
    await call.chunk(b"[]}")
    await call.end_stream()


EVENTS = (
    b'data: {"choices": [{"delta": {"content": "one"}}]}\n\n'
    b'data: {"choices": [{"delta": {"content": "two"}}]}\n\ndata: [DONE]\n\n'
)


@pytest.mark.parametrize(
    ("script", "body", "answer"), [(stream, b',"stream":true', EVENTS), (in_pieces, b"", b'{"choices":[]}')]
)
async def test_a_client_of_http_1_0_gets_no_chunks(
    proxy: Proxy, engine: Engine, script: Script, body: bytes, answer: bytes
) -> None:
    engine.script = script
    body = b'{"model":"big"' + body + b"}"
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    head = ASK.partition(b"content-length")[0].replace(b"HTTP/1.1", b"HTTP/1.0")
    writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    received = await asyncio.wait_for(reader.read(), WAIT_S)
    writer.close()
    head, _, rest = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    assert rest == answer


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_what_has_a_length_keeps_it_in_http_1_0(proxy: Proxy, method: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(LIVE.replace(b"GET", method).replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, _, body = (await asyncio.wait_for(reader.read(), WAIT_S)).partition(b"\r\n\r\n")
    writer.close()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    assert len(body) == (length if method == b"GET" else 0)


def probing(connection: socket.socket) -> tuple[int, ...]:
    """Is it probed, the seconds before the first probe and between two, and the number of probes."""
    tcp = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    on = connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return (on, *(connection.getsockopt(socket.IPPROTO_TCP, option) for option in tcp))


async def test_silent_connections_are_probed_on_both_sides(
    files: Files, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EC2 forgets them after 350 s. A client's inherits it from the listener."""
    to_engines: list[tuple[int, ...]] = []

    def probe(connection: socket.socket) -> None:
        probe_when_silent(connection)
        to_engines.append(probing(connection))

    monkeypatch.setattr(client, "probe_when_silent", probe)
    files.configure(engine)
    port = free_port()
    serving = worker.make_server(files.config, "127.0.0.1", port)
    running = asyncio.create_task(serving.serve())
    try:
        while not serving.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(LIVE)
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
        (connection,) = serving.server_state.connections
        accepted = probing(connection.transport.get_extra_info("socket"))
        writer.close()
    finally:
        serving.should_exit = True
        await asyncio.wait_for(running, WAIT_S)
    assert (accepted, set(to_engines)) == ((1, 120, 30, 4), {(1, 120, 30, 4)})
