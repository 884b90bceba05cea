"""The worker's server by itself: what becomes of connections on which nothing happens."""

import asyncio

import pytest

from engine import WAIT_S, Call, Engine, complete
from harness import KEY, Files, free_port
from inference_proxy import server

pytestmark = pytest.mark.anyio

LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
ASK = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"authorization: Bearer " + KEY.encode() + b"\r\ncontent-length: 15\r\n\r\n" + b'{"model":"big"}'
)


async def test_a_connection_without_a_request_is_closed_and_a_busy_one_is_not(
    files: Files, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both had an answer at the same time; only one has nothing to do since."""
    finish = asyncio.Event()

    async def think(call: Call) -> None:
        await finish.wait()
        await complete(call)

    engine.script = think
    files.configure(engine)
    monkeypatch.setattr(server, "_KEEP_ALIVE_S", 0.2)
    monkeypatch.setattr(server, "_TICKS_A_SWEEP", 1)
    monkeypatch.setattr(server, "_NOTICE_S", 0)
    port = free_port()
    worker = server.make_server(files.config, "127.0.0.1", port)
    running = asyncio.create_task(worker.serve())
    try:
        async with asyncio.timeout(WAIT_S):
            while not worker.started:
                await asyncio.sleep(0.01)
            idle, busy = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for reader, writer in (idle, busy):
                writer.write(LIVE)
                assert b" 200 " in await reader.readuntil(b"}")
            busy[1].write(ASK)
            assert await idle[0].read() == b"", "closed, and nothing was said"
            finish.set()
            assert b" 200 " in await busy[0].readline()
            for _, writer in (idle, busy):
                writer.close()
    finally:
        finish.set()
        worker.should_exit = worker.force_exit = True
        await running
