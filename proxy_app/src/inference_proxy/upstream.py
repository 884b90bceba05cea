"""What is said to an engine, and what its silence means for the others that would ask it."""

from collections.abc import Mapping
from types import TracebackType

from .engine_answer import Answer, EngineLost
from .engine_client import ConnectTimeout, EngineClient, EngineUnreachable
from .fleet import Engine

__all__ = ["Answer", "ConnectTimeout", "EngineLost", "EngineUnreachable", "Upstream"]


class Upstream:
    async def __aenter__(self) -> "Upstream":
        self._client = EngineClient()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    async def request(
        self,
        engine: Engine,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        connect_s: float,
    ) -> Answer:
        """As EngineClient.request. Raises EngineLost, ValueError."""
        try:
            return await self._client.request(engine.url, method, target, headers, body, connect_s=connect_s)
        except EngineUnreachable:
            # Nobody listens there: others need not find out by themselves; the poller brings it back.
            engine.reachable = False
            raise

    async def get(self, url: str, *, timeout_s: float) -> tuple[int, bytes]:
        """As EngineClient.get. Raises TimeoutError, EngineLost."""
        return await self._client.get(url, timeout_s=timeout_s)
