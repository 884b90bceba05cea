"""Traces as a collector receives them, and no traces if they are off."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from engine import WAIT_S, Call, Engine
from harness import Files, running_proxy
from inference_proxy.config import ConfigError
from inference_proxy.settings import Settings

pytestmark = pytest.mark.anyio

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


class Collector:
    def __init__(self) -> None:
        self.url = ""
        self.spans: list[Span] = []
        self.service = ""

    async def take(self, request: web.Request) -> web.Response:
        sent = ExportTraceServiceRequest.FromString(await request.read())
        for resource in sent.resource_spans:
            self.service = attributes(resource.resource)["service.name"]
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")


def attributes(of: Any) -> dict[str, Any]:
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value"))
        for pair in of.attributes
        if pair.value.WhichOneof("value") is not None
    }


@contextlib.asynccontextmanager
async def running_collector() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    collector.url = f"http://{host}:{port}/v1/traces"
    try:
        yield collector
    finally:
        await runner.cleanup()


async def test_a_span_between_the_clients_and_the_engines(files: Files, engine: Engine) -> None:
    async with running_collector() as collector:
        traces = {"endpoint": collector.url, "service_name": "gateway"}
        files.configure(engine, traces=traces, models=[{"name": "big", "aliases": ["large"]}])
        async with running_proxy(files) as proxy:
            context = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
            headers = {**context, "x-request-id": "r1"}
            async with proxy.post(body={"model": "large"}, headers=headers) as response:
                assert response.status == 200
            call = await engine.next_call()
        assert collector.service == "gateway"
        (span,) = collector.spans
    assert span.trace_id.hex() == TRACE
    assert span.parent_span_id.hex() == PARENT
    assert call.headers["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    assert call.headers["tracestate"] == "vendor=1"
    assert (span.name, span.kind) == ("chat large", Span.SPAN_KIND_SERVER)
    assert 0 < span.start_time_unix_nano < span.end_time_unix_nano
    found = attributes(span)
    assert found.pop("inference_proxy.queue_s") >= 0
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "large",
        "gen_ai.request.stream": False,
        "gen_ai.response.model": "big",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "http.request.method": "POST",
        "url.path": "/v1/chat/completions",
        "http.response.status_code": 200,
        "inference_proxy.request_id": "r1",
        "inference_proxy.key": "alice",
        "inference_proxy.owner": "alice",
        "inference_proxy.engine": "host1:e",
        "inference_proxy.retries": 0,
    }


async def test_failures_and_refusals(files: Files, engine: Engine) -> None:
    async def break_off(call: Call) -> None:
        call.break_off()

    engine.script = break_off
    async with running_collector() as collector:
        files.configure(engine, traces={"endpoint": collector.url})
        async with running_proxy(files) as proxy:
            for options in ({}, {"body": {"model": "unknown"}}, {"key": "not one of ours"}):
                async with proxy.post(**options) as response:
                    await response.read()
        found = {attributes(span)["error.type"]: span.status.code for span in collector.spans}
    # A request without a valid key has no trace: anyone could fill the collector that way.
    assert found == {
        "engine_unreachable": Status.STATUS_CODE_ERROR,
        "model_not_found": Status.STATUS_CODE_UNSET,
    }


async def test_sampling_leaves_it_to_the_client(files: Files, engine: Engine) -> None:
    async with running_collector() as collector:
        files.configure(engine, traces={"endpoint": collector.url, "sample_ratio": 0})
        async with running_proxy(files) as proxy:
            for headers in ({}, {"traceparent": f"00-{TRACE}-{PARENT}-01"}, {"traceparent": "nonsense"}):
                async with proxy.post(headers=headers) as response:
                    assert response.status == 200
        assert [span.trace_id.hex() for span in collector.spans] == [TRACE]
    sampled = [int(call.headers["traceparent"][-2:], 16) & 1 for call in engine.calls]
    assert sampled == [0, 1, 0]


async def test_it_is_switched_on_and_off_live(files: Files, engine: Engine) -> None:
    async def until_traced(wanted: bool) -> None:
        async with asyncio.timeout(WAIT_S):
            while True:
                async with proxy.post() as response:
                    assert response.status == 200
                if ("traceparent" in (await engine.next_call()).headers) == wanted:
                    break

    files.configure(engine)
    async with running_collector() as collector, running_proxy(files) as proxy:
        await until_traced(False)
        files.configure(engine, traces={"endpoint": collector.url})
        await until_traced(True)
        files.configure(engine)
        await until_traced(False)
        async with asyncio.timeout(WAIT_S):
            while not collector.spans:
                await asyncio.sleep(0.01)


async def test_a_collector_that_is_away_costs_no_request(files: Files, engine: Engine) -> None:
    async with running_collector() as collector:
        gone = collector.url
    files.configure(engine, traces={"endpoint": gone})
    async with running_proxy(files) as proxy, proxy.post() as response:
        assert response.status == 200


def test_nothing_is_imported_where_it_is_off() -> None:
    script = (
        "import sys, inference_proxy.cli\n"
        "sys.exit(any(name.startswith(('opentelemetry', 'requests')) for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": "src"}, check=True)


def test_without_the_packages_the_configuration_is_refused(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    files.configure(traces={"endpoint": "http://127.0.0.1:4318/v1/traces"})
    with pytest.raises(ConfigError, match="requirements-otel"):
        Settings.load(files.config)
