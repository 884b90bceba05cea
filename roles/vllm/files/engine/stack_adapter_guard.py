"""ASGI middleware of an engine: only its own host may change its LoRA adapters.

vLLM's endpoints for that have no key, and whoever reaches the engine could call them. Standard library only: it runs with the engine's Python.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# vLLM's own paths, and those that it has for SageMaker, also behind a root path.
_GUARDED = re.compile(r"/(?:v1/(?:un)?load_lora_adapter|adapters(?:/.*)?)/*", re.DOTALL)
_REFUSAL = b'{"error": {"message": "Adapters are changed by the role vllm, on the host of the engine.", "type": "forbidden", "code": 403}}'


class AdapterGuard:
    """Answers requests that would change adapters with 403, unless they come from the address that the engine listens on."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_guarded(scope["path"]) or _is_own_host(scope):
            await self.app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_REFUSAL)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": _REFUSAL})


def _is_guarded(path: str) -> bool:
    return any(_GUARDED.fullmatch(path, start) for start in (match.start() for match in re.finditer("/", path)))


def _is_own_host(scope: Message) -> bool:
    """A host that talks to an address of its own does so from that address."""
    client, server = scope.get("client"), scope.get("server")
    return bool(client and server and client[0] == server[0])
