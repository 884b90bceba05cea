"""ASGI middleware of an engine: logs when each request began and how it ended, by the id that nginx gave it.

vLLM's own request log would also have what clients sent: stop words, schemas, texts in error messages.
Requests without an id (probes, scrapes) are not logged. Standard library only: it runs with the engine's Python.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# A child of vLLM's logger, whose level and format it has.
logger = logging.getLogger("vllm.stack_request_log")


class RequestLog:
    """Logs two lines for each request: ``request ID: POST /v1/completions`` and ``request ID: 200 after 1.234 s``.

    The second has ``broken off`` if the response was not completed, for example because the client disconnected.
    """

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        request_id = _request_id(scope)
        if request_id is None:
            await self.app(scope, receive, send)
            return
        status: int | None = None
        complete = False

        async def watched(message: Message) -> None:
            nonlocal status, complete
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)

        # The query is left out, because it may contain a client's text.
        logger.info("request %s: %s %s", request_id, scope["method"], _plain(scope["path"]))
        began_s = time.monotonic()
        try:
            await self.app(scope, receive, watched)
        finally:
            ending = "after" if complete else "broken off after"
            logger.info(
                "request %s: %s %s %.3f s", request_id, status or "no status", ending, time.monotonic() - began_s
            )


def _request_id(scope: Message) -> str | None:
    """The value of ``X-Request-Id``, or None."""
    if scope["type"] != "http":
        return None
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return _plain(value.decode("latin-1"))
    return None


def _plain(text: str) -> str:
    """The text without characters that begin a new line or control a terminal. The proxy sends none, but other callers could."""
    return ascii(text)[1:-1]
