"""A client for Redis and Valkey that only runs scripts: one connection, with pipelined commands.

A connection pool, as in the usual libraries, would cost a request more than all its limits do. The hard part
of the protocol, parsing replies, is done by hiredis.
"""

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import hiredis

from inference_proxy.api.numbers import MOST
from inference_proxy.config import StoreConfig
from inference_proxy.limits.store import StoreAway

# Seconds between two attempts to connect: doubled from the first value to the last, minus a random part.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 2.0
# After a connection that lasted this long, the next attempt comes at once.
_STEADY_S = 10.0

log = logging.getLogger(__name__)

Reply = int | bytes | Sequence["Reply"] | None
Argument = str | int | bytes


class Connection(asyncio.Protocol):
    """One connection. Replies come in the order of the commands.

    A late reply or an error ends the connection, because it is then unknown what the store has done.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[float, asyncio.Future[Reply]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._why = "the connection was closed"
        self.lost: asyncio.Future[str] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, *words: Argument) -> asyncio.Future[Reply]:
        """Send a command. The future is its reply, or fails with StoreAway."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self.lost.done():
            future.set_exception(StoreAway(self._why))
            return future
        self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub: one word
        self._waiting.append((self._loop.time() + self._timeout_s, future))
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._look_at_clock)
        return future

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, hiredis.ReplyError):
                    return self.fail(f"it answered: {reply}")
                _, future = self._waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self.fail(f"it does not speak the protocol: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.lost.done():
            self.lost.set_result(self._why)
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(StoreAway(self._why))
        self._waiting.clear()

    def fail(self, why: str) -> None:
        """End the connection at once."""
        self._why = why
        self._transport.abort()
        self.connection_lost(None)

    def close(self) -> None:
        """End the connection once all commands are sent."""
        self._transport.close()

    def _look_at_clock(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        due, _ = self._waiting[0]
        if due <= self._loop.time():
            self.fail(f"no answer within {self._timeout_s} s")
        else:
            self._timer = self._loop.call_at(due, self._look_at_clock)


class RedisClient:
    """Keeps one connection on which `scripts` are loaded. Without a connection, commands fail at once."""

    def __init__(self, config: StoreConfig, scripts: Sequence[str], trial: Sequence[Argument]) -> None:
        """Start connecting.

        `trial` is the number of keys, the keys and the arguments with which the first script writes
        something.
        """
        self._trial = trial
        self._config = config
        self._scripts = scripts
        self._connection: Connection | None = None
        self._hashes: dict[str, bytes] = {}
        self._tried = asyncio.Event()
        self._task = asyncio.create_task(self._stay_connected())

    async def first_attempt(self) -> None:
        """Wait until the first attempt to connect has succeeded or failed."""
        await self._tried.wait()

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def call(self, script: str, keys: Sequence[str], arguments: Sequence[Argument]) -> asyncio.Future[Reply]:
        """Run a script.

        Raises StoreAway, at once or through the future; OverflowError for a number outside the protocol's
        range.
        """
        for argument in arguments:
            # hiredis would end the process on a number of some thousand digits.
            if type(argument) is int and not -MOST <= argument <= MOST:
                raise OverflowError("a number of more than 64 bits is not for the store of limits")
        if self._connection is None:
            raise StoreAway("not connected")
        return self._connection.send("EVALSHA", self._hashes[script], len(keys), *keys, *arguments)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _stay_connected(self) -> None:
        pause_s, told = _FIRST_PAUSE_S, ""
        while True:
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    connection = await self._connect()
            except (StoreAway, OSError, TimeoutError) as error:
                why = str(error) or f"no connection within {self._config.timeout_s} s"
            except Exception as error:
                # Whatever failed, the next attempt must happen: otherwise the store would be away for good.
                why = repr(error)
                log.exception("connecting to the store of limits failed")
            else:
                log.info("the store of limits at %s is there", self._config.url)
                self._connection = connection
                self._tried.set()
                began = time.monotonic()
                try:
                    why = await connection.lost
                finally:
                    self._connection = None
                    connection.close()
                told = ""
                if time.monotonic() - began > _STEADY_S:
                    pause_s = _FIRST_PAUSE_S
            self._tried.set()
            if why != told:
                log.error("the store of limits at %s is away: %s", self._config.url, why)
                told = why
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))
            pause_s = min(pause_s * 2, _LAST_PAUSE_S)

    async def _connect(self) -> Connection:
        url, timeout_s = urlsplit(self._config.url), self._config.timeout_s
        assert url.hostname, "the configuration has checked it"
        tls = ssl.create_default_context() if url.scheme == "rediss" else None
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(timeout_s), url.hostname, url.port or 6379, ssl=tls
        )
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            if self._config.password_file is not None:
                password = _first_line(self._config.password_file)
                user = [self._config.username] if self._config.username else []
                await connection.send("AUTH", *user, password)
            if database := url.path.strip("/"):
                await connection.send("SELECT", database)
            for script in self._scripts:
                self._hashes[script] = cast(bytes, await connection.send("SCRIPT", "LOAD", script))
            # A replica, or a store whose disk or memory is full, accepts connections but refuses writes: it
            # counts as away until this write succeeds.
            await connection.send("EVALSHA", self._hashes[self._scripts[0]], *self._trial)
            undo.pop_all()
        return connection


def _first_line(path: Path) -> str:
    """The first line of a file. Raises StoreAway."""
    try:
        return path.read_text().partition("\n")[0].strip()
    except OSError as error:
        raise StoreAway(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StoreAway(f"{path} is not a text file") from error
