"""The published document, and that no request generated from it brings the proxy down."""

import asyncio
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode

from engine import Engine
from expect import expect_error
from harness import KEY, Files, Proxy, running_proxy
from inference_proxy.api import openapi
from inference_proxy.api.endpoints import TABLE, Endpoints
from inference_proxy.config import Config

pytestmark = pytest.mark.anyio

CUSTOM = [
    {"path": "/v1/summarize", "upstream_path": "/v1/chat/completions", "defaults": {"model": "big"}},
    {"path": "/motd", "answer": {"body": "hello"}},
]


def test_the_document_is_valid_and_has_every_row() -> None:
    settings = {"keys_file": "/k", "drained_dir": "/d", "api_versions": ["v1", "v2"]}
    config = Config.model_validate(settings | {"custom_endpoints": CUSTOM})
    document = openapi.document(Endpoints(config))
    validate(document)
    for row in TABLE:
        for prefix in ("/v1", "/v2") if row.versioned else ("",):
            assert set(document["paths"][prefix + row.path]) == {method.lower() for method in row.methods}
    assert {"/v1/models/{model}", "/v2/models/{model}", "/v1/summarize", "/motd"} <= set(document["paths"])


async def test_it_needs_a_key(proxy: Proxy) -> None:
    async with proxy.get("/openapi.json", key=None) as response:
        await expect_error(response, 401, "missing_api_key")
    async with proxy.get("/openapi.json") as response:
        assert (await response.json())["openapi"] == "3.1.0"


def exercise(operation: Any, url: str) -> None:
    """Requests that follow the schema or violate it, each with an existing model or a generated one."""
    strategies = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

    @settings(max_examples=10, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=st.one_of(strategies), known=st.booleans())
    def ask(case: Any, known: bool) -> None:
        if known and isinstance(case.body, dict):
            case.body["model"] = "big"
        response = case.call(base_url=url, headers={"authorization": f"Bearer {KEY}"})
        assert response.status_code < 500, case.as_curl_command()

    ask()


@pytest.mark.filterwarnings("default")
async def test_no_request_made_from_it_is_our_fault(files: Files, engine: Engine) -> None:
    files.configure(engine, custom_endpoints=CUSTOM, body_limit_bytes=100_000)
    async with running_proxy(files) as proxy:
        headers = {"authorization": f"Bearer {KEY}"}
        schema = await asyncio.to_thread(
            schemathesis.openapi.from_url, f"{proxy.url}/openapi.json", headers=headers
        )
        for operation in schema.get_all_operations():
            assert isinstance(operation, Ok)
            await asyncio.to_thread(exercise, operation.ok(), proxy.url)
    assert engine.calls
