"""Who may change an engine's adapters."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
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
    [
        LOAD,
        "/v1/unload_lora_adapter",
        "/stack/rename_lora_adapter/",
        "/adapters",
        "/adapters/sql",
        f"/base{LOAD}",
        f"{LOAD}/",
        "/adapters/a\nb",
    ],
)
def test_only_the_engine_s_own_host_changes_adapters(path: str) -> None:
    assert status(path, ("10.0.0.3", 50000)) == 200
    assert status(path, ("10.0.0.4", 50000)) == 403
    assert status(path, None) == 403
    assert status(path, ("10.0.0.3", 50000), None) == 403


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/health", "/v1/load_lora_adapters", "/myadapters"])
def test_other_requests_are_let_through(path: str) -> None:
    assert status(path, ("10.0.0.4", 50000)) == 200


def rename(adapters: dict[str, Any], name: str, new_name: str) -> int:
    """The status that the engine's own host gets for renaming an adapter, its request arriving in two parts."""
    body = json.dumps({"lora_name": name, "new_name": new_name}).encode()
    parts = [{"type": "http.request", "body": body[:9], "more_body": True}, {"type": "http.request", "body": body[9:]}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return parts.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/base/stack/rename_lora_adapter",
        "client": ("10.0.0.3", 50000),
        "server": ("10.0.0.3", 8000),
        "app": SimpleNamespace(state=SimpleNamespace(openai_serving_models=SimpleNamespace(lora_requests=adapters))),
    }
    asyncio.run(AdapterGuard(None)(scope, receive, send))
    status: int = sent[0]["status"]
    return status


def test_a_loaded_adapter_takes_over_the_name_of_another() -> None:
    running = SimpleNamespace(lora_name="sql", lora_int_id=1, lora_path="/srv/sql@1")
    adapters = {
        "sql": running,
        "sql@next": SimpleNamespace(lora_name="sql@next", lora_int_id=2, lora_path="/srv/sql@2"),
    }
    assert rename(adapters, "sql@next", "sql") == 200
    assert adapters == {"sql": SimpleNamespace(lora_name="sql", lora_int_id=2, lora_path="/srv/sql@2")}
    assert running == SimpleNamespace(lora_name="sql", lora_int_id=1, lora_path="/srv/sql@1")


def test_what_is_not_loaded_has_no_name_to_change() -> None:
    adapters = {"sql": SimpleNamespace(lora_name="sql")}
    assert rename(adapters, "law@next", "law") == 404
    assert adapters == {"sql": SimpleNamespace(lora_name="sql")}
