"""HTTP/1.1 client for the engines: a connection pool, with one request at a time per connection."""

import asyncio
import functools
import ssl
from collections.abc import Mapping
from typing import NamedTuple, cast
from urllib.parse import urlsplit

from inference_proxy.http.answer import Answer, Begin, EngineLost
from inference_proxy.http.request_head import request_head
from inference_proxy.http.tcp import probe_when_silent

# Shorter than the 5 s after which vLLM by default closes an idle connection. A connection that we close first
# cannot be reused at the very moment when the engine closes it.
_IDLE_S = 4.0
# For the poller's documents: a list of models, a page of metrics.
_DOCUMENT_LIMIT = 4 * 1024 * 1024


class EngineUnreachable(EngineLost):
    """No connection could be made, so the engine has seen nothing of the request.

    The exception is `has_sent`: the request was sent before, on a pooled connection that then broke.
    """

    has_sent = False


class ConnectTimeout(EngineUnreachable):
    """The connection was neither made nor refused in time: the engine's host is silent."""


class Document(NamedTuple):
    """A small answer that has been read whole. Names of headers are in lower case."""

    status: int
    body: bytes
    headers: Mapping[bytes, bytes]


class EngineClient:
    """Connections to any number of engines, each named by its origin: scheme, host and port of a URL.

    A connection serves one request at a time and is then kept for the next, idle for a few seconds at most.
    There are as many connections as requests in flight: the caller that admits requests limits their number.
    """

    def __init__(self) -> None:
        # Per origin, longest idle first. Empty entries are dropped, so engines that are gone leave nothing
        # behind.
        self._idle: dict[str, dict[_Connection, float]] = {}
        # Kept, because looking it up is a system call before Python 3.12.
        self._loop = asyncio.get_running_loop()
        self._sweeping: asyncio.TimerHandle | None = None
        # Connections whose request is sent at the end of this turn of the event loop. None: nothing has been
        # sent in this turn yet.
        self._deferred: list[_Connection] | None = None

    async def request(
        self,
        origin: str,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        connect_s: float,
        begin: Begin | None = None,
    ) -> Answer:
        """Send a request and wait for the head of its answer, without a time limit: the caller sets one.

        The caller owns the Answer and must close() it.

        `origin` is, for example, "http://10.0.0.5:8000" or "https://[fd00::5]"; `target` is path and query.
        Headers that frame the message (host, content-length …) are written here and refused in `headers`.

        `begin` is called with the first piece of the body inside the event loop's callback, before any task
        wakes. A piece that arrives together with the end is not offered. `begin` must not raise.

        Raises EngineUnreachable (nothing was sent), EngineLost (the engine may have begun to work),
        ValueError for a method, target or header that cannot be sent.
        """
        host = _Address.of(origin).netloc
        head = request_head(method, host, target, headers, len(body))
        connection = self._reuse(origin)
        if connection is not None:
            answer = connection.ask(method, head, body, begin)
            try:
                return await answer.head()
            except EngineLost:
                # The engine closed the idle connection just as we wrote to it. As far as can be known it has
                # not read the request, and a new connection cannot fail in the same way.
                if answer.began:
                    raise
        try:
            fresh = await self._connect_within(origin, connect_s)
        except EngineUnreachable as error:
            error.has_sent = connection is not None
            raise
        return await fresh.ask(method, head, body, begin).head()

    async def get(self, url: str, *, timeout_s: float) -> Document:
        """A small document, as from ask()."""
        return await self.ask("GET", url, {}, b"", timeout_s=timeout_s)

    async def ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, *, timeout_s: float
    ) -> Document:
        """A small answer, fetched over a new connection.

        So it also tests whether the engine accepts new connections. Raises TimeoutError and EngineLost (also
        when the answer is larger than 4 MiB).
        """
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        head = request_head(method, parts.netloc, parts.path or "/", headers, len(body), close=True)
        async with asyncio.timeout(timeout_s):
            connection = await self._connect(origin)
            answer = await connection.ask(method, head, body, last=True).head()
            try:
                document = bytearray()
                while piece := await answer.read():
                    document += piece
                    if len(document) > _DOCUMENT_LIMIT:
                        raise EngineLost(f"{parts.path} is larger than {_DOCUMENT_LIMIT} bytes")
                return Document(answer.status, bytes(document), dict(answer.headers))
            finally:
                answer.close()

    def close(self) -> None:
        """Close the idle connections. Answers in use are closed by their owners."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for idle in self._idle.values():
            for connection in idle:
                connection.transport.abort()
        self._idle.clear()

    def _reuse(self, origin: str) -> "_Connection | None":
        """The connection that was used last. The others stay idle until they are old enough to be closed."""
        idle = self._idle.get(origin)
        while idle:
            connection, _ = idle.popitem()
            if not connection.transport.is_closing():
                return connection
        return None

    def send(self, connection: "_Connection") -> None:
        """Send the connection's request, at once or at the end of this turn of the event loop.

        It is deferred if another request was already sent in this turn. Sent one after another, requests cost
        less than when each is sent between the steps of other requests, and the engines' answers arrive
        together as well (docs/performance.md has the numbers).
        """
        if self._deferred is None:
            self._deferred = []
            self._loop.call_soon(self._send_deferred)
            connection.send()
        else:
            self._deferred.append(connection)

    def _send_deferred(self) -> None:
        deferred, self._deferred = self._deferred, None
        for connection in deferred or ():
            try:
                connection.send()
            except Exception as error:
                # Only this request fails: the others are still sent.
                connection.fail(error)

    def give_back(self, connection: "_Connection") -> None:
        self._idle.setdefault(connection.origin, {})[connection] = self._loop.time()
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_IDLE_S, self._sweep)

    def forget(self, connection: "_Connection") -> None:
        if idle := self._idle.get(connection.origin):
            idle.pop(connection, None)

    def _sweep(self) -> None:
        """Close connections that have been idle too long, and schedule the next sweep."""
        now = self._loop.time()
        for origin, idle in list(self._idle.items()):
            for connection, since in list(idle.items()):
                if since + _IDLE_S > now:
                    break
                del idle[connection]
                connection.transport.abort()
            if not idle:
                del self._idle[origin]
        oldest = min((next(iter(idle.values())) for idle in self._idle.values()), default=None)
        self._sweeping = None if oldest is None else self._loop.call_at(oldest + _IDLE_S, self._sweep)

    async def _connect_within(self, origin: str, connect_s: float) -> "_Connection":
        try:
            async with asyncio.timeout(connect_s):
                return await self._connect(origin)
        except TimeoutError as error:
            raise ConnectTimeout(f"{origin}: no connection within {connect_s} s") from error

    async def _connect(self, origin: str) -> "_Connection":
        address = _Address.of(origin)
        try:
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self, origin),
                address.host,
                address.port,
                ssl=_tls_context() if address.secure else None,
            )
        except OSError as error:
            raise EngineUnreachable(f"{origin}: {error}") from error
        return connection


class _Connection(asyncio.Protocol):
    """A connection, and the answer that is being read from it, if any."""

    transport: asyncio.Transport

    def __init__(self, client: EngineClient, origin: str) -> None:
        self.origin = origin
        self._client = client
        self._answer: Answer | None = None
        self._last = False
        self._unsent: tuple[bytes, ...] | None = None

    def ask(
        self, method: str, head: bytes, body: bytes, begin: Begin | None = None, *, last: bool = False
    ) -> Answer:
        self._last = last
        self._answer = Answer(self.transport, method, self._release, begin)
        self._unsent = (head, body) if body else (head,)
        self._client.send(self)
        return self._answer

    def send(self) -> None:
        """Send the request that ask() prepared, unless it was cancelled in the meantime."""
        unsent, self._unsent = self._unsent, None
        if unsent is not None and not self.transport.is_closing():
            self.transport.writelines(unsent)

    def fail(self, error: Exception) -> None:
        """The request cannot be sent: fail its answer."""
        self.transport.abort()
        self.connection_lost(error)

    def _release(self, reusable: bool) -> None:
        self._answer = self._unsent = None
        # If the answer came before the request was sent in full, the rest is still in the write buffer.
        sent = not self.transport.is_closing() and not self.transport.get_write_buffer_size()
        if reusable and sent and not self._last:
            self._client.give_back(self)
        else:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # cast and not isinstance: uvloop's transports do not inherit from asyncio's classes.
        self.transport = cast(asyncio.Transport, transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:  # a transport need not have one
            probe_when_silent(connection)

    def data_received(self, data: bytes) -> None:
        if self._answer is not None and self._unsent is None:
            self._answer.feed(data)
        else:
            # Unsolicited data, which must not become the beginning of the next answer.
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._client.forget(self)
        if self._answer is not None:
            self._answer.lost(error)


class _Address(NamedTuple):
    """Where an origin is. `netloc` is the value for the host header."""

    secure: bool
    host: str
    port: int
    netloc: str

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def of(origin: str) -> "_Address":
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{origin!r} is not the origin of an engine, such as http://10.0.0.5:8000")
        secure = parts.scheme == "https"
        return _Address(secure, parts.hostname, parts.port or (443 if secure else 80), parts.netloc)


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """A TLS context that trusts the system's authorities and those in the file that SSL_CERT_FILE names."""
    return ssl.create_default_context()
