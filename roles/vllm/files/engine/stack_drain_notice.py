"""ASGI middleware of an engine: says in a header that the engine's host will end, so that proxies send it no new requests.

The host knows of it from AWS (instance_notices.py writes the file), but it knows no proxies, which ask the engine for its models every two
seconds. Standard library only: it runs with the engine's Python.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

FILE = Path("/run/vllm/draining.json")
PATHS = ("/health", "/v1/models")
HEADER = b"x-engine-draining"
MOST_CHARACTERS = 150


class DrainNotice:
    """Adds the header to what proxies and other monitors poll, as long as the file exists."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        notice = read() if scope["type"] == "http" and scope["path"] in PATHS else None
        if notice is None:
            await self.app(scope, receive, send)
            return

        async def announce(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), (HEADER, notice)]}
            await send(message)

        await self.app(scope, receive, announce)


def read() -> bytes | None:
    """The header's value; None without the file. A file that makes no sense is a notice, too."""
    try:
        text = FILE.read_text(errors="replace")
    except OSError:
        return None
    try:
        told = json.loads(text)
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(told["since_s"]))
        reason = f"{re.sub(r'[^ -~]', '?', str(told['reason']))[:MOST_CHARACTERS]}; since {since}"
        ends_s = told.get("ends_s")
        if ends_s is None:
            return reason.encode()
        # The seconds that are left, because the clocks of hosts may differ.
        return f"{reason}; ends in {min(max(0, round(ends_s - time.time())), 9_999_999)} s".encode()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return b"its host will end"
