"""What is said to an engine, and what its silence means for the others that would ask it."""

from collections.abc import Iterable, Mapping
from types import TracebackType

from .engine_answer import Answer, EngineLost
from .engine_client import EngineClient, EngineUnreachable
from .route import Engine

__all__ = ["Answer", "EngineLost", "Upstream", "request_headers"]

# What a client may say to an engine. All else stays here: its key, its cookies, and the headers by which vLLM
# takes orders (priority, rank, load metrics).
_FORWARDED = frozenset({b"accept", b"traceparent", b"tracestate"})


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


def request_headers(client: Iterable[tuple[bytes, bytes]], request_id: str) -> dict[str, str]:
    headers = {name.decode(): value.decode("latin-1") for name, value in client if name in _FORWARDED}
    headers["content-type"] = "application/json"
    headers["x-request-id"] = request_id
    return headers
