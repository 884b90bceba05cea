"""ASGI middleware of an engine: only its own host may change its LoRA adapters, and a loaded one can be renamed.

vLLM's endpoints for adapters have no key, and whoever reaches the engine could call them.

Renaming replaces an adapter without a moment in which the engine does not know its name: the new one is loaded under another name and then
takes over the old one's. vLLM itself has only two other ways: unload the old one before, or load "in place", after which it (0.32) reads the
adapter from the disk again for each step of its requests.
Standard library only: it runs with the engine's Python.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# vLLM's own paths, those that it has for SageMaker, and ours, also behind a root path.
_GUARDED = re.compile(r"/(?:v1/(?:un)?load_lora_adapter|adapters(?:/.*)?|stack/rename_lora_adapter)/*", re.DOTALL)
_RENAME = "/stack/rename_lora_adapter"


class AdapterGuard:
    """Answers requests that would change adapters with 403, unless they come from the address that the engine listens on."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_guarded(scope["path"]):
            await self.app(scope, receive, send)
        elif not _is_own_host(scope):
            await _answer(send, 403, "Adapters are changed by the role vllm, on the host of the engine.")
        elif scope["path"].endswith(_RENAME):
            await _answer(send, *_renamed(scope["app"].state, await _body(receive)))
        else:
            await self.app(scope, receive, send)


def _renamed(state: Any, body: bytes) -> tuple[int, str]:
    """Give an adapter another name, from which one that has it is lost. Returns the response's status and message.

    No request can come between, because nothing is awaited. Requests that run keep the adapter that they began with.
    """
    told = json.loads(body)
    name, new_name = told["lora_name"], told["new_name"]
    # vLLM has no interface for this. Its server looks up each request's adapter here, by the name that the request has.
    adapters = state.openai_serving_models.lora_requests
    if name not in adapters:
        return 404, f"adapter {name!r} is not loaded"
    # A copy, because requests may have the original.
    adapter = copy.copy(adapters[name])
    adapter.lora_name = new_name
    adapters[new_name] = adapter
    del adapters[name]
    return 200, f"adapter {name!r} is {new_name!r} now"


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _answer(send: Send, status: int, message: str) -> None:
    kind = "forbidden" if status == 403 else "adapters"
    body = json.dumps({"error": {"message": message, "type": kind, "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_guarded(path: str) -> bool:
    return any(_GUARDED.fullmatch(path, start) for start in (match.start() for match in re.finditer("/", path)))


def _is_own_host(scope: Message) -> bool:
    """A host that talks to an address of its own does so from that address."""
    client, server = scope.get("client"), scope.get("server")
    return bool(client and server and client[0] == server[0])
