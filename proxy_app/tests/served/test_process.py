"""The command as systemd runs it: signals, its log, and its shutdown."""

import asyncio
import json
import os
import signal
import socket
import sys
from datetime import timedelta
from pathlib import Path

import aiohttp
import pytest

from engine import COMPLETION, WAIT_S, Call, Engine
from harness import ADMIN_KEY, Admin, Files, free_port, sha256
from inference_proxy.accounting.usage_store import read_usage, today
from process import running_process

pytestmark = pytest.mark.anyio


@pytest.mark.complaint(16)
async def test_a_stream_outlives_sigterm(files: Files, engine: Engine) -> None:
    go_on = asyncio.Event()

    async def pause(call: Call) -> None:
        await call.start_stream()
        await call.event("1")
        await go_on.wait()
        await call.event("[DONE]")
        await call.end_stream()

    engine.script = pause
    files.configure(engine)
    async with running_process(files) as running:
        proxy = running.proxy
        assert (await proxy.ready())["release"] == "0.1.0-abc"
        async with proxy.post(body={"stream": True}) as response:
            await response.content.readuntil(b"\n\n")
            running.process.terminate()
            status = await proxy.until(lambda status: status["status"] == "unready")
            assert status["http"] == 503
            await running.line(message="Waiting for connections to close")
            # A new connection; one that is kept still serves.
            async with aiohttp.ClientSession() as session:
                with pytest.raises(aiohttp.ClientConnectorError):
                    await session.get(f"{proxy.url}/health/live")
            go_on.set()
            assert await response.content.read() == b"data: [DONE]\n\n"
        await running.line(outcome="ok")
        assert await asyncio.wait_for(running.process.wait(), WAIT_S) == -signal.SIGTERM


async def test_a_kept_connection_serves_until_it_stays_idle(files: Files, engine: Engine) -> None:
    """A POST that nginx sends just as the worker stops is answered, and need not be sent twice."""
    files.configure(engine)
    port = free_port()
    async with running_process(files, port) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def ask() -> bytes:
            writer.write(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
            length = next(line for line in head.lower().splitlines() if line.startswith(b"content-length: "))
            await reader.readexactly(int(length.partition(b": ")[2]))
            return head

        assert b"connection: close" not in await ask()
        running.process.terminate()
        await running.line(message="Waiting for connections to close")
        head = await ask()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in head
        assert await asyncio.wait_for(reader.read(), WAIT_S) == b"", "the answer was the connection's last"
        writer.close()
        assert await asyncio.wait_for(running.process.wait(), WAIT_S) == -signal.SIGTERM


async def test_what_takes_longer_than_shutdown_s_is_told_so(files: Files, engine: Engine) -> None:
    async def endless(call: Call) -> None:
        if b'"stream"' in call.body:
            await call.start_stream()
            await call.event("1")
        await call.client_gone.wait()

    engine.script = endless
    files.configure(engine, shutdown_s=0.2)
    async with running_process(files) as running:
        silent = asyncio.create_task(running.proxy.post().__aenter__())
        await engine.next_call()
        async with running.proxy.post(body={"stream": True}) as response:
            await response.content.readuntil(b"\n\n")
            running.process.terminate()
            event = (await response.content.readuntil(b"\n\n")).removeprefix(b"data: ")
            assert json.loads(event)["error"]["code"] == "shutdown"
        async with await silent as response:
            assert response.status == 503
            assert response.headers["retry-after"]
        assert await asyncio.wait_for(running.process.wait(), WAIT_S) == -signal.SIGTERM


async def test_systemd_hears_that_it_listens_and_that_it_ends(
    files: Files, engine: Engine, tmp_path: Path
) -> None:
    files.configure(engine)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_S)
        async with running_process(files, NOTIFY_SOCKET=str(tmp_path / "notify")) as running:
            assert await asyncio.to_thread(manager.recv, 100) == b"READY=1"
            assert (await running.proxy.ready())["http"] == 200
            running.process.terminate()
            assert await asyncio.to_thread(manager.recv, 100) == b"STOPPING=1"


async def test_systemd_hears_that_it_lives(files: Files, engine: Engine, tmp_path: Path) -> None:
    files.configure(engine)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(WAIT_S)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}
        async with running_process(files, **environment):
            for message in (b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"):
                assert await asyncio.to_thread(manager.recv, 100) == message


async def test_sighup_loads_at_once(files: Files, engine: Engine) -> None:
    files.configure(engine)
    async with running_process(files) as running:
        running.process.send_signal(signal.SIGHUP)
        await running.line(message="configuration loaded")
        files.write(files.config, "nonsense")
        running.process.send_signal(signal.SIGHUP)
        await running.line(message="configuration refused")
        assert (await running.proxy.ready())["status"] == "ready"
        assert not [line for line in running.lines if "time" not in line or "event" not in line]


async def test_it_does_not_start_with_a_bad_configuration(files: Files) -> None:
    files.write(files.config, {"keys_file": "relative"})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inference_proxy", "serve", "--config", str(files.config),
        "--host", "127.0.0.1", "--port", "1",
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": "src"},
    )  # fmt: skip
    _, errors = await asyncio.wait_for(process.communicate(), WAIT_S)
    assert process.returncode == 2
    assert len(errors.splitlines()) == 2


async def test_the_admin_listener_stays_to_the_end_and_usage_is_written(files: Files, engine: Engine) -> None:
    go_on = asyncio.Event()

    async def pause(call: Call) -> None:
        await go_on.wait()
        await call.answer(200, COMPLETION)

    engine.script = pause
    port, admin_port = free_port(), free_port()
    admin = {"port_offset": admin_port - port, "key_sha256": sha256(ADMIN_KEY)}
    files.configure(engine, admin=admin, usage={"directory": str(files.usage)})
    async with running_process(files, port) as running:
        view = Admin(running.proxy.session, admin_port)
        waiting = asyncio.create_task(running.proxy.post().__aenter__())
        await engine.next_call()
        running.process.terminate()
        await running.line(message="Waiting for connections to close")
        metrics = await view.metrics()
        assert metrics["inference_proxy_ready"] == 0
        assert metrics['inference_proxy_engine_requests_in_flight{engine="host1:e"}'] == 1
        go_on.set()
        async with await waiting as response:
            assert response.status == 200
        assert await asyncio.wait_for(running.process.wait(), WAIT_S) == -signal.SIGTERM
    (used,) = read_usage(files.usage, today() - timedelta(days=1), today())
    assert (used.key, used.requests, used.completion_tokens) == ("alice", 1, 5)
    assert list(files.usage.glob("usage-*")) == [files.usage / f"usage-{port}.sqlite"]
