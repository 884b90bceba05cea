"""The table of endpoints is the only place that defines an endpoint."""

import pytest

from engine import Engine
from harness import Files, running_proxy
from inference_proxy.api import endpoints
from inference_proxy.api.endpoints import TABLE, Endpoint
from inference_proxy.config import UTILITY

pytestmark = pytest.mark.anyio


async def test_a_further_endpoint_is_one_row(
    files: Files, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Endpoint("/count_words", UTILITY, prompt=("text",))
    monkeypatch.setattr(endpoints, "TABLE", (row, *TABLE))
    files.configure(engine, api_versions=["v1", "v2"])
    async with running_proxy(files) as proxy:
        async with proxy.get("/openapi.json") as response:
            paths = (await response.json())["paths"]
        assert {"/v1/count_words", "/v2/count_words"} <= paths.keys()
        async with proxy.post("/v2/count_words", {"text": "two words"}) as response:
            assert response.status == 200
        call = await engine.next_call()
        assert call.path == "/v1/count_words"
        async with proxy.post("/count_words", {"text": "two words"}) as response:
            assert "Did you mean /v1/count_words?" in await response.text()


@pytest.mark.parametrize(
    "path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters", "/adapters/sql"]
)
async def test_clients_cannot_change_an_engine_s_adapters(files: Files, engine: Engine, path: str) -> None:
    files.configure(engine)
    async with running_proxy(files) as proxy, proxy.post(path, {"lora_name": "sql"}) as response:
        assert response.status == 404
    assert engine.calls == []
