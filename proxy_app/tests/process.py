"""The proxy as a separate process, as systemd runs it."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from engine import WAIT_S
from harness import Files, Proxy, free_port


class Process:
    def __init__(self, process: asyncio.subprocess.Process, proxy: Proxy) -> None:
        self.process = process
        self.proxy = proxy
        self.lines: list[dict[str, Any]] = []

    async def line(self, **wanted: Any) -> dict[str, Any]:
        """Read the log until a line has these fields; a string must be part of the field's value."""
        assert self.process.stdout is not None
        while raw := await asyncio.wait_for(self.process.stdout.readline(), WAIT_S):
            record: dict[str, Any] = json.loads(raw)
            self.lines.append(record)
            if all(value in record.get(name, "") for name, value in wanted.items()):
                return record
        raise AssertionError(f"the log ended without {wanted}: {self.lines}")


@contextlib.asynccontextmanager
async def running_process(files: Files, port: int = 0, **environment: str) -> AsyncIterator[Process]:
    port = port or free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inference_proxy", "serve", "--config", str(files.config),
        "--host", "127.0.0.1", "--port", str(port),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": "src", "PROXY_RELEASE": "0.1.0-abc", **environment},
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as session:
            running = Process(process, Proxy(files, f"http://127.0.0.1:{port}", session))
            await running.line(message="Uvicorn running on http")
            yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
