"""Keys that are revoked while their requests wait or run, and what requests that end early cost."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from engine import Call, Engine, stream
from harness import KEY, SMALL_KEY, WAIT_S, Files, Proxy, running_proxy, sha256

pytestmark = pytest.mark.anyio

ALICE, BOB = {"name": "alice", "sha256": sha256(KEY)}, {"name": "bob", "sha256": sha256(SMALL_KEY)}
LONG = [{"role": "user", "content": "word " * 4000}]


async def held(call: Call) -> None:
    """A stream that begins and continues until its client leaves."""
    await call.start_stream()
    await call.event('{"choices":[{"delta":{"content":"x"}}]}')
    await call.client_gone.wait()


async def silent(call: Call) -> None:
    await call.client_gone.wait()


async def revoked(proxy: Proxy) -> None:
    proxy.files.write(proxy.files.keys, [BOB])
    await proxy.until_answer("/v1/models", 401)


async def test_a_key_revoked_in_line_starts_nothing(files: Files, engine: Engine) -> None:
    release = asyncio.Event()

    async def hold(call: Call) -> None:
        await release.wait()
        await stream(call)

    async def ask(key: str) -> int:
        async with proxy.post(body={"stream": True}, key=key) as response:
            await response.read()
            return response.status

    engine.script = hold
    files.write(files.keys, [ALICE, BOB])
    files.configure(engine, queue={"max_in_flight": 1, "max_wait_s": WAIT_S})
    async with running_proxy(files) as proxy:
        first = asyncio.create_task(ask(SMALL_KEY))
        await engine.next_call()
        waiting = asyncio.create_task(ask(KEY))
        await proxy.until(lambda status: status["in_flight"] == 2)
        await revoked(proxy)
        release.set()
        assert (await first, await waiting) == (200, 401)
        assert len(engine.calls) == 1
        await proxy.idle()


@pytest.mark.parametrize("end_revoked", [False, True])
async def test_what_runs_with_a_revoked_key_ends_by_choice(
    files: Files, engine: Engine, end_revoked: bool
) -> None:
    release = asyncio.Event()

    async def begin(call: Call) -> None:
        await call.start_stream()
        await call.event('{"choices":[{"delta":{"content":"x"}}]}')
        await release.wait()
        await call.event("[DONE]")
        await call.end_stream()

    engine.script = begin
    files.write(files.keys, [ALICE, BOB])
    files.configure(engine, end_revoked=end_revoked)
    async with running_proxy(files) as proxy:
        async with proxy.post(body={"stream": True}) as response:
            await response.content.readany()
            await revoked(proxy)
            if not end_revoked:
                release.set()
            rest = await response.read()
        release.set()
        assert (b"key_revoked" in rest) == end_revoked
        assert rest.endswith(b"[DONE]\n\n") != end_revoked
        await proxy.idle()


@asynccontextmanager
async def counting(files: Files, engine: Engine, **settings: Any) -> AsyncIterator[Proxy]:
    files.write(files.keys, [ALICE | {"limits": {"tokens_per_day": 10**9}}])
    files.configure(engine, **settings)
    async with running_proxy(files) as proxy:
        yield proxy


async def left(proxy: Proxy, engine: Engine) -> int:
    async def free(call: Call) -> None:
        await call.answer(200, {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}})

    engine.script = free
    await proxy.idle()
    async with proxy.post(body={"messages": [], "max_tokens": 1}) as response:
        await response.read()
        return int(response.headers["x-ratelimit-remaining-tokens"])


@pytest.mark.parametrize("n", [1, 3])
async def test_a_clock_before_the_first_byte_costs_nothing(files: Files, engine: Engine, n: int) -> None:
    async with counting(files, engine, timeouts={"first_byte_s": 1, "per_1k_prompt_tokens_s": 0}) as proxy:
        before = await left(proxy, engine)
        engine.script = silent
        async with proxy.post(body={"messages": LONG, "stream": True, "max_tokens": 9, "n": n}) as response:
            assert response.status == 504
        assert await left(proxy, engine) == before


async def test_a_client_that_leaves_before_the_first_byte_pays_its_prompt(
    files: Files, engine: Engine
) -> None:
    async with counting(files, engine) as proxy:
        before = await left(proxy, engine)
        engine.script = silent
        asking = asyncio.create_task(proxy.post(body={"messages": LONG, "stream": True}).__aenter__())
        await engine.next_call()
        while engine.calls[-1].body.find(b"word") < 0:
            await engine.next_call()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert before - await left(proxy, engine) > 4000


@pytest.mark.parametrize(
    "answer", [b"-READONLY You can't write against a read only replica.", b"-MISCONF full"]
)
@pytest.mark.parametrize("fail_open", [True, False])
async def test_a_store_that_takes_no_writes_is_away_and_stays_so(
    files: Files, engine: Engine, caplog: pytest.LogCaptureFixture, answer: bytes, fail_open: bool
) -> None:
    connections = 0

    async def store(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while line := await reader.readline():
                words = []
                for _ in range(int(line[1:])):
                    length = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(length + 2))[:-2])
                hashed = b"$40\r\n" + b"a" * 40
                writer.write({b"SCRIPT": hashed, b"EVALSHA": answer}.get(words[0], b"+OK") + b"\r\n")
        except (ConnectionError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(store, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    caplog.set_level(logging.INFO, "inference_proxy")
    files.write(files.keys, [ALICE | {"limits": {"requests_per_minute": 1000}}])
    # A stalled machine must not make the store's silence a second reason that is logged.
    settings = {"url": url, "workers": 1, "fail_open": fail_open, "timeout_s": WAIT_S}
    files.configure(engine, limits={"store": settings})
    async with server, running_proxy(files) as proxy, asyncio.timeout(WAIT_S):
        while connections < 4:
            async with proxy.post() as response:
                assert response.status == (200 if fail_open else 503)
            assert (await proxy.ready())["limits_store_away"]
    assert sum("store of limits" in record.getMessage() for record in caplog.records) == 1
