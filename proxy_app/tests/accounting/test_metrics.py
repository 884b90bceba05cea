"""Metrics: what is counted, under which names, and that the number of series stays bounded."""

import asyncio
import json
import math

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from engine import Call, Engine
from harness import KEY, SMALL_KEY, Files, running_proxy, sha256
from inference_proxy.accounting import metrics
from inference_proxy.accounting.metrics import Labels, Metrics, Sample
from inference_proxy.config import KeyConfig
from jobs import a_settings

pytestmark = pytest.mark.anyio


def labels(owner: str, **more: str) -> str:
    values = {"owner": owner, "model": "big", "engine": "host1:e", "endpoint_class": "generation"} | more
    return "{" + ",".join(f'{name}="{value}"' for name, value in sorted(values.items())) + "}"


@pytest.fixture
def owned(files: Files, engine: Engine) -> Files:
    files.write(
        files.keys,
        [
            {"name": "alice-1", "owner": "alice", "sha256": sha256(KEY)},
            {"name": "bob-1", "owner": "bob", "sha256": sha256(SMALL_KEY)},
        ],
    )
    files.configure(engine, admin=files.admin())
    return files


async def stream_with_usage(call: Call) -> None:
    await call.start_stream()
    for _ in range(3):
        await call.event(json.dumps({"choices": [{"delta": {"content": "x"}}]}))
    await call.event(json.dumps({"usage": {"prompt_tokens": 7, "completion_tokens": 3}}))
    await call.event("[DONE]")
    await call.end_stream()


async def test_a_request_and_a_stream_by_owner_model_engine_and_class(owned: Files, engine: Engine) -> None:
    async with running_proxy(owned) as proxy:
        async with proxy.post() as response:
            assert response.status == 200
        engine.script = stream_with_usage
        async with proxy.post(body={"stream": True}, key=SMALL_KEY) as response:
            await response.read()
        await proxy.idle()
        found = await proxy.admin.metrics()
    ok = {"status": "200", "code": "ok"}
    prefix = "inference_proxy_"
    for owner, prompt, completion in (("alice", 3, 5), ("bob", 7, 3)):
        assert found[f"{prefix}requests_total{labels(owner, **ok)}"] == 1
        assert found[f"{prefix}prompt_tokens_total{labels(owner)}"] == prompt
        assert found[f"{prefix}completion_tokens_total{labels(owner)}"] == completion
        assert found[f"{prefix}queue_seconds_count{labels(owner)}"] == 1
        assert found[f"{prefix}request_duration_seconds_count{labels(owner)}"] == 1
        assert found[f"{prefix}requests_uncounted_total{labels(owner)}"] == 0
    for name in ("time_to_first_token_seconds", "inter_token_seconds"):
        assert found[f"{prefix}{name}_count{labels('bob')}"] == 1
        assert f"{prefix}{name}_count{labels('alice')}" not in found
    assert found[f'{prefix}engine_requests_in_flight{{engine="host1:e"}}'] == 0
    assert found[f'{prefix}engine_state{{engine="host1:e",state="serving"}}'] == 1
    assert found[f"{prefix}ready"] == 1


async def test_in_flight_clocks_and_refusals(owned: Files, engine: Engine) -> None:
    async def never(call: Call) -> None:
        await call.client_gone.wait()

    engine.script = never
    # Enough to look at the metrics meanwhile.
    owned.configure(engine, admin=owned.admin(), timeouts={"first_byte_s": 1})
    async with running_proxy(owned) as proxy:
        late = asyncio.create_task(proxy.post(body={"stream": True}).__aenter__())
        await engine.next_call()
        during = await proxy.admin.metrics()
        async with await late as response:
            assert response.status == 504
        async with proxy.post(key=None) as response:
            assert response.status == 401
        async with proxy.post(body={"model": "invented by a client"}) as response:
            assert response.status == 404
        async with proxy.get("/invented/by/a/client") as response:
            assert response.status == 404
        found = await proxy.admin.metrics()
    prefix = "inference_proxy_"
    assert during[f"{prefix}requests_in_flight{labels('alice')}"] == 1
    assert not [name for name in found if name.startswith(f"{prefix}requests_in_flight")]
    late_labels = labels("alice", status="504", code="first_byte_timeout")
    assert found[f"{prefix}clocks_expired_total{late_labels}"] == 1
    nobody = {"owner": "other", "model": "other", "engine": "other"}
    assert found[f"{prefix}requests_total{labels(**nobody, status='401', code='missing_api_key')}"] == 1
    unknown = {"owner": "alice", "model": "other", "engine": "other"}
    assert found[f"{prefix}requests_total{labels(**unknown, status='404', code='model_not_found')}"] == 1
    assert "invented" not in "".join(found)


async def test_retries_are_counted(files: Files, engine: Engine, other: Engine) -> None:
    async def break_off(call: Call) -> None:
        call.break_off()

    engine.script = break_off
    files.configure(engine, other, admin=files.admin())
    async with running_proxy(files) as proxy:
        while not engine.calls:
            async with proxy.post() as response:
                assert response.status == 200
        found = await proxy.admin.metrics()
    assert found[f"inference_proxy_retries_total{labels('alice', engine='host2:e')}"] == 1


async def test_lines_breakers_and_the_budget_of_retries(files: Files, engine: Engine) -> None:
    go_on = asyncio.Event()

    async def pause(call: Call) -> None:
        await go_on.wait()
        await call.answer(200, {"id": "late"})

    engine.script = pause
    files.configure(engine, admin=files.admin(), queue={"max_in_flight": 1})
    async with running_proxy(files) as proxy:
        running = [asyncio.create_task(proxy.post().__aenter__()) for _ in range(2)]
        await engine.next_call()
        while not (lines := (await proxy.admin.get("/admin/queues"))["queues"]):
            await asyncio.sleep(0.01)
        found = await proxy.admin.metrics()
        go_on.set()
        for response in await asyncio.gather(*running):
            assert response.status == 200
            response.release()
        assert (await proxy.admin.get("/admin/queues"))["queues"] == []
    waits = {"interactive": 0, "default": 1, "batch": 0}
    assert lines == [{"model": "big", "pool": None, **waits, "expected_wait_s": 30}]
    prefix = "inference_proxy_"
    assert found[f'{prefix}queue_waiting{{model="big",pool="",priority="default"}}'] == 1
    assert found[f'{prefix}engine_breaker{{engine="host1:e",state="closed"}}'] == 1
    assert found[f"{prefix}waiting_requests"] == 1
    assert found[f"{prefix}retry_budget"] == 20
    assert found[f"{prefix}limits_store_away"] == 0


async def test_scrapers_get_the_format_that_they_ask_for(owned: Files) -> None:
    async with running_proxy(owned) as proxy:
        async with proxy.post() as response:
            assert response.status == 200
        headers = {"accept": "application/openmetrics-text; version=1.0.0"}
        async with proxy.admin.request("GET", "/metrics", headers=headers) as response:
            assert response.content_type == "application/openmetrics-text"
            parsed = text_string_to_metric_families(await response.text())  # type: ignore[no-untyped-call]
            families = {family.name for family in parsed}
    assert {"inference_proxy_requests", "process_cpu_seconds"} <= families


SAMPLE = Sample(200, "ok", 1, 2, 0.0, None, None, 0.25, 0)


async def read(metrics: Metrics) -> str:
    page, _ = await metrics.exposition("")
    return page.decode()


async def test_what_the_configuration_no_longer_has_is_forgotten() -> None:
    store = Metrics()
    for owner in ("stays", "goes"):
        store.record(Labels(owner, "m", "e", "generation"), SAMPLE)
    store.record(Labels("stays", "former model", "e", "generation"), SAMPLE)
    store.record(Labels("stays", "m", "former engine", "generation"), SAMPLE)
    store.record(Labels(), SAMPLE)
    keys = (KeyConfig(name="stays", sha256="0" * 64),)
    store.reconfigure(a_settings({"id": "e", "models": ["m"]}, keys=keys))
    page = await read(store)
    assert page.count("inference_proxy_requests_total{") == 2
    assert "goes" not in page
    assert "former" not in page
    assert list(store.percentiles()) == ["m", "other"]


@pytest.mark.complaint(1)
async def test_combinations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_MOST_SERIES", 3)
    store = Metrics()
    for number in range(10):
        store.record(Labels(f"owner{number}", "m", "e", "generation"), SAMPLE)
    page = await read(store)
    assert page.count("inference_proxy_requests_total{") == 4
    rest = labels("other", model="other", engine="other", endpoint_class="other", status="200", code="ok")
    assert f"inference_proxy_requests_total{rest} 7.0" in page


async def test_limits_are_told_from_engines_refusals() -> None:
    store = Metrics()
    for code in ("tokens_per_minute", "engine_refused"):
        store.record(Labels("o", "m", "e", "generation"), SAMPLE._replace(status=429, code=code))
    page = await read(store)
    assert page.count("inference_proxy_limit_rejections_total{") == 1
    assert 'code="tokens_per_minute"' in page


async def test_buckets_add_up() -> None:
    store = Metrics()
    for seconds in (0.1, 0.1000001, 3599.0, 1e9):
        store.record(Labels(), SAMPLE._replace(duration_s=seconds))
    lines = [line for line in (await read(store)).splitlines() if "duration_seconds_bucket" in line]
    edges = {line.split('le="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in lines}
    assert (edges["0.1"], edges["0.5"], edges["3600.0"], edges["+Inf"]) == (1, 2, 3, 4)
    assert math.isinf(float(list(edges)[-1]))


async def test_percentiles_are_of_the_latest_requests() -> None:
    store = Metrics()
    for number in range(1000):
        store.record(Labels(model="m"), SAMPLE._replace(duration_s=float(number)))
    found = store.percentiles()["m"]
    assert (found.requests, found.p50["duration_s"], found.p95["duration_s"]) == (256, 872.0, 987.0)
    assert found.p95["first_token_s"] is None


async def test_watched_numbers_are_read_at_each_scrape() -> None:
    store = Metrics()
    opened = {"e": 0}
    store.watch("breaker_opened_total", "Times.", ("engine",), lambda: [((e,), n) for e, n in opened.items()])
    assert 'inference_proxy_breaker_opened_total{engine="e"} 0.0' in await read(store)
    opened["e"] = 2
    assert 'inference_proxy_breaker_opened_total{engine="e"} 2.0' in await read(store)
