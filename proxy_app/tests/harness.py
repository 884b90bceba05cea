"""The test harness: the proxy's files, a running proxy, and its log."""

import asyncio
import contextlib
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from engine import WAIT_S, Engine
from inference_proxy import worker

KEY = "alice-key-0123456789-0123456789-0123"
SMALL_KEY = "bob-key-0123456789-0123456789-012345"
ADMIN_KEY = "admin-key-0123456789-0123456789-0123"


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


KEYS = [
    {"name": "alice", "sha256": sha256(KEY), "models": []},
    {"name": "bob", "sha256": sha256(SMALL_KEY), "models": ["small"]},
]


@contextlib.asynccontextmanager
async def running_engine(*models: str, **options: Any) -> AsyncIterator[Engine]:
    engine = Engine(*models, **options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


class Files:
    """The proxy's configuration on disk, replaced by renaming, as Ansible does it."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "config.yml"
        self.keys = directory / "keys.yml"
        self.usage = directory
        self.admin_port = 0
        self.drained = directory / "drained"
        self.drained.mkdir()
        self.write(self.keys, KEYS)

    def write(self, path: Path, content: Any) -> None:
        temporary = path.with_suffix(".new")
        temporary.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        temporary.replace(path)

    def admin(self) -> dict[str, Any]:
        """Section `admin` for a proxy whose own port is 0, so that `port_offset` is the admin API's port."""
        self.admin_port = free_port()
        return {"port_offset": self.admin_port, "key_sha256": sha256(ADMIN_KEY)}

    def configure(self, *engines: Engine, **settings: Any) -> None:
        entries = [
            {"id": f"host{number}:e", "url": engine.url, "models": [card["id"] for card in engine.cards]}
            for number, engine in enumerate(engines, 1)
        ]
        paths = {"keys_file": str(self.keys), "drained_dir": str(self.drained)}
        # Most tests check what an engine gets, and expect the client's own bytes.
        self.write(self.config, {"engines": entries, "isolate_prefix_cache": False} | paths | settings)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Admin:
    """An operator's view of a running proxy."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._session = session

    def request(self, method: str, path: str, key: str | None = ADMIN_KEY, **options: Any) -> Any:
        headers = dict(options.pop("headers", {}))
        if key is not None:
            headers.setdefault("authorization", f"Bearer {key}")
        return self._session.request(method, self.url + path, headers=headers, **options)

    async def get(self, path: str) -> Any:
        async with self.request("GET", path) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def metrics(self) -> dict[str, float]:
        """Values by name and labels, as written on the page."""
        async with self.request("GET", "/metrics", key=None) as response:
            assert response.status == 200
            lines = (await response.text()).splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("inference_proxy_"))
        return {name: float(value) for name, value in pairs}


class Proxy:
    """A client's view of a running proxy."""

    def __init__(self, files: Files, url: str, session: aiohttp.ClientSession) -> None:
        self.files = files
        self.url = url
        self.port = int(url.rsplit(":", 1)[1])
        self.session = session
        self.admin = Admin(session, files.admin_port)

    def post(
        self, path: str = "/v1/chat/completions", body: Any = None, key: str | None = KEY, **options: Any
    ) -> Any:
        headers = dict(options.pop("headers", {}))
        if key is not None:
            headers.setdefault("authorization", f"Bearer {key}")
        headers.setdefault("content-type", "application/json")
        if "data" not in options:
            options["data"] = json.dumps({"model": "big"} | (body or {}))
        return self.session.post(self.url + path, headers=headers, **options)

    def get(self, path: str, key: str | None = KEY) -> Any:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return self.session.get(self.url + path, headers=headers)

    async def ready(self) -> dict[str, Any]:
        async with self.get("/health/ready", key=None) as response:
            status: dict[str, Any] = await response.json()
            return status | {"http": response.status}

    async def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Poll /health/ready until it is as wanted."""
        async with asyncio.timeout(WAIT_S):
            while not wanted(status := await self.ready()):
                await asyncio.sleep(0.01)
        return status

    async def until_answer(self, path: str, status: int) -> None:
        """Poll a path until it answers with a status: for changes that take effect by themselves."""
        async with asyncio.timeout(WAIT_S):
            while True:
                async with self.get(path) as response:
                    if response.status == status:
                        return
                await asyncio.sleep(0.01)

    async def idle(self) -> None:
        await self.until(
            lambda status: (
                status["in_flight"] == 0 and all(engine["in_flight"] == 0 for engine in status["engines"])
            )
        )


@contextlib.asynccontextmanager
async def running_proxy(files: Files) -> AsyncIterator[Proxy]:
    uvicorn_server = worker.make_server(files.config, "127.0.0.1", 0)
    uvicorn_server.config.load()
    uvicorn_server.lifespan = uvicorn_server.config.lifespan_class(uvicorn_server.config)
    await uvicorn_server.startup()
    port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
    try:
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            yield Proxy(files, f"http://127.0.0.1:{port}", session)
    finally:
        # Faster than uvicorn's orderly shutdown, which test_process.py tests.
        for listener in uvicorn_server.servers:
            listener.close()
        for connection in list(uvicorn_server.server_state.connections):
            connection.transport.abort()
        await asyncio.gather(*uvicorn_server.server_state.tasks, return_exceptions=True)
        await uvicorn_server.lifespan.shutdown()


class Log:
    """The lines that the proxy has logged so far."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.text = ""

    def lines(self, event: str) -> list[dict[str, Any]]:
        self.text += self._capture.readouterr().out
        records = [json.loads(line) for line in self.text.splitlines() if line.startswith("{")]
        return [record for record in records if record["event"] == event]

    async def last_request(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT_S):
            while not (lines := self.lines("request")):
                await asyncio.sleep(0.01)
        return lines[-1]
