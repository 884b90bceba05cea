"""The smallest possible proxy, with our client to the engines or with aiohttp's.

It has no keys, no limits and nothing else, so the difference between the two is what a client costs.
"""

import argparse
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

import aiohttp
import uvicorn
from starlette.types import Receive, Scope, Send

from inference_proxy.http.client import EngineClient

_CONNECT_S = 5
_HEADERS = {"content-type": "application/json"}


class _Piece(NamedTuple):
    status: int
    content_type: bytes
    body: bytes


_Ask = Callable[[str, str, bytes], AsyncIterator[_Piece]]
"""Takes engine, path and body of a request; yields the answer as it comes."""


def _ours() -> _Ask:
    client = EngineClient()

    async def ask(engine: str, path: str, body: bytes) -> AsyncIterator[_Piece]:
        answer = await client.request(engine, "POST", path, _HEADERS, body, connect_s=_CONNECT_S)
        try:
            content_type = answer.header(b"content-type") or b""
            while piece := await answer.read():
                yield _Piece(answer.status, content_type, piece)
        finally:
            answer.close()

    return ask


def _aiohttp() -> _Ask:
    session = aiohttp.ClientSession(
        # Like our client: as many connections as requests, and no other time limit.
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        auto_decompress=False,
    )

    async def ask(engine: str, path: str, body: bytes) -> AsyncIterator[_Piece]:
        async with session.post(engine + path, data=body, headers=_HEADERS) as answer:
            content_type = answer.headers.get("content-type", "").encode()
            async for piece in answer.content.iter_any():
                yield _Piece(answer.status, content_type, piece)

    return ask


_CLIENTS = {"ours": _ours, "aiohttp": _aiohttp}


class _App:
    def __init__(self, client: str, engines: Sequence[str]) -> None:
        self._client = _CLIENTS[client]
        self._engines = itertools.cycle(engines)
        self._ask: _Ask | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._ask is None:
            # Both clients need a running loop.
            self._ask = self._client()
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        started = False
        async for piece in self._ask(next(self._engines), scope["path"], body):
            if not started:
                started = True
                headers = [(b"content-type", piece.content_type)]
                await send({"type": "http.response.start", "status": piece.status, "headers": headers})
            await send({"type": "http.response.body", "body": piece.body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--client", choices=_CLIENTS, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("engines", nargs="+")
    options = parser.parse_args()
    uvicorn.run(
        _App(options.client, options.engines),
        port=options.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
