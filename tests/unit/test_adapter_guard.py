"""Who may change an engine's adapters."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stack_adapter_guard import AdapterGuard

LOAD = "/v1/load_lora_adapter"


def status(path: str, client: tuple[str, int] | None, server: tuple[str, int] | None = ("10.0.0.3", 8000)) -> int:
    """The status that a request gets; 200 if it reaches the engine."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "client": client, "server": server, "headers": []}
    asyncio.run(AdapterGuard(app)(scope, None, send))
    return sent[0]["status"]


@pytest.mark.parametrize(
    "path",
    [LOAD, "/v1/unload_lora_adapter", "/adapters", "/adapters/sql", f"/base{LOAD}", f"{LOAD}/", "/adapters/a\nb"],
)
def test_only_the_engine_s_own_host_changes_adapters(path: str) -> None:
    assert status(path, ("10.0.0.3", 50000)) == 200
    assert status(path, ("10.0.0.4", 50000)) == 403
    assert status(path, None) == 403
    assert status(path, ("10.0.0.3", 50000), None) == 403


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/health", "/v1/load_lora_adapters", "/myadapters"])
def test_other_requests_are_let_through(path: str) -> None:
    assert status(path, ("10.0.0.4", 50000)) == 200
