"""HTTP to the engines."""

from types import TracebackType

import aiohttp

from .route import Engine

# Below the 5 s after which a vLLM with its defaults closes an idle connection: one that we close first is
# never reused at the moment in which the engine gives it up.
_IDLE_S = 4


class EngineLost(Exception):
    """The engine could not be reached, or its connection broke."""


class Upstream:
    """Two pools. A second attempt uses a new connection, so that it cannot meet another stale one."""

    async def __aenter__(self) -> "Upstream":
        self._pooled = _session(aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S))
        self._fresh = _session(aiohttp.TCPConnector(limit=0, force_close=True))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pooled.close()
        await self._fresh.close()

    async def post(
        self,
        engine: Engine,
        path: str,
        body: bytes,
        headers: dict[str, str],
        *,
        connect_s: float,
        fresh: bool,
    ) -> aiohttp.ClientResponse:
        """Send a request and wait for the head of its answer. Raises EngineLost."""
        session = self._fresh if fresh else self._pooled
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s)
        try:
            return await session.post(
                engine.url + path, data=body, headers=headers, timeout=timeout, allow_redirects=False
            )
        except aiohttp.ClientConnectorError as error:
            # Nobody listens there: others need not find out by themselves; the poller brings it back.
            engine.reachable = False
            raise EngineLost(f"{type(error).__name__}: {error}") from error
        except aiohttp.ClientError as error:
            raise EngineLost(f"{type(error).__name__}: {error}") from error

    async def get(self, url: str, *, timeout_s: float) -> tuple[int, bytes]:
        """A small document, for the poller. Raises aiohttp.ClientError, TimeoutError."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self._pooled.get(url, timeout=timeout, allow_redirects=False) as response:
            return response.status, await response.content.read(1 << 20)


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        # Bytes pass through as they are, so an engine must not be invited to compress them.
        auto_decompress=False,
        headers={"accept-encoding": "identity", "user-agent": "ec2-inference-proxy"},
        trust_env=False,
    )
