"""Names of models, their settings and fallbacks."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from engine import Call, Engine, complete
from expect import expect_error
from harness import KEY, KEYS, SMALL_KEY, WAIT_S, Files, Proxy, running_engine, running_proxy

pytestmark = pytest.mark.anyio

MODELS: list[dict[str, Any]] = [
    {
        "name": "big",
        "aliases": ["gpt-4o"],
        "deprecated": [{"name": "older", "since": "2026-01-31", "sunset": "2026-12-31"}],
        "defaults": {"temperature": 0.5, "stop": ["###"]},
        "default_max_tokens": 100,
        "max_tokens_limit": 1000,
        "fallback": "small",
    },
    {"name": "small", "deprecated": [{"name": "tiny", "since": "2026-01-31"}]},
]


async def sent(engine: Engine) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((await engine.next_call()).body)
    return body


async def test_an_alias_is_answered_by_its_model(files: Files, engine: Engine) -> None:
    files.configure(engine, models=MODELS)
    body = {"model": "gpt-4o", "temperature": 0}
    async with running_proxy(files) as proxy, proxy.post(body=body) as response:
        assert response.status == 200
        assert "deprecation" not in response.headers
    expected = {"model": "big", "temperature": 0, "stop": ["###"], "max_completion_tokens": 100}
    assert await sent(engine) == expected


@pytest.mark.parametrize(
    ("name", "headers"),
    [
        ("older", {"deprecation": "@1769817600", "sunset": "Thu, 31 Dec 2026 00:00:00 GMT"}),
        ("tiny", {"deprecation": "@1769817600"}),
        ("big", {}),
    ],
)
async def test_a_deprecated_name_is_answered_and_says_so(
    files: Files, engine: Engine, name: str, headers: dict[str, str]
) -> None:
    files.configure(engine, models=MODELS)
    async with running_proxy(files) as proxy, proxy.post(body={"model": name}) as response:
        assert response.status == 200
        told = {key.lower(): value for key, value in response.headers.items()}
        assert {key: value for key, value in told.items() if key in ("deprecation", "sunset")} == headers


@pytest.mark.parametrize(
    ("path", "given", "expected", "told"),
    [
        ("/v1/completions", {}, {"max_tokens": 100}, None),
        ("/v1/completions", {"max_tokens": 7}, {"max_tokens": 7}, None),
        ("/v1/completions", {"max_tokens": 5000}, {"max_tokens": 1000}, "1000"),
        ("/v1/completions", {"max_tokens": None}, {"max_tokens": 100}, None),
        ("/v1/chat/completions", {}, {"max_completion_tokens": 100}, None),
        ("/v1/chat/completions", {"max_tokens": 5000}, {"max_tokens": 1000}, "1000"),
        (
            "/v1/chat/completions",
            {"max_tokens": 5, "max_completion_tokens": 5000},
            {"max_tokens": 1000, "max_completion_tokens": 1000},
            "1000",
        ),
        (
            # An engine may ignore a 0 and use the other field.
            "/v1/chat/completions",
            {"max_tokens": 5000, "max_completion_tokens": 0},
            {"max_tokens": 0, "max_completion_tokens": 0},
            None,
        ),
        ("/v1/responses", {}, {"max_output_tokens": 100}, None),
        ("/v1/messages", {"max_tokens": 2000}, {"max_tokens": 1000}, "1000"),
        ("/v1/embeddings", {}, {}, None),
    ],
)
async def test_tokens_have_a_default_and_a_limit(
    files: Files,
    engine: Engine,
    path: str,
    given: dict[str, Any],
    expected: dict[str, Any],
    told: str | None,
) -> None:
    files.configure(engine, models=[MODELS[0] | {"defaults": {}}])
    async with running_proxy(files) as proxy, proxy.post(path, body=given) as response:
        assert response.status == 200
        assert response.headers.get("x-max-tokens") == told, "a request is never changed in silence"
    assert await sent(engine) == {"model": "big"} | expected


async def test_a_model_in_a_form_is_renamed_too(files: Files, engine: Engine) -> None:
    files.configure(engine, models=MODELS)
    async with running_proxy(files) as proxy:
        for name in ("big", "gpt-4o"):
            form = aiohttp.FormData({"model": name, "language": "en"})
            form.add_field("file", b"RIFF\r\n--not\x00", filename="a.wav")
            async with proxy.session.post(
                f"{proxy.url}/v1/audio/transcriptions", data=form, headers={"authorization": f"Bearer {KEY}"}
            ) as response:
                assert response.status == 200
        direct, renamed = await engine.next_call(), await engine.next_call()
    assert direct.path == "/v1/audio/transcriptions"
    assert direct.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b"RIFF\r\n--not\x00" in renamed.body
    boundaries = [call.headers["content-type"].partition("=")[2].encode() for call in (direct, renamed)]
    assert renamed.body.replace(boundaries[1], boundaries[0]) == direct.body


async def test_a_form_cannot_give_orders(proxy: Proxy, engine: Engine) -> None:
    form = aiohttp.FormData({"model": "big", "priority": "-5"})
    form.add_field("file", b"RIFF", filename="a.wav")
    headers = {"authorization": f"Bearer {KEY}"}
    async with proxy.session.post(
        f"{proxy.url}/v1/audio/transcriptions", data=form, headers=headers
    ) as response:
        await expect_error(response, 400, "not_allowed", "priority")
    assert not engine.calls


async def test_the_list_has_aliases_and_no_old_names(files: Files, engine: Engine) -> None:
    files.configure(engine, models=MODELS)
    async with running_proxy(files) as proxy:
        async with proxy.get("/v1/models") as response:
            cards = (await response.json())["data"]
        assert [card["id"] for card in cards] == ["big", "gpt-4o", "small"]
        for name in ("big", "gpt-4o", "older"):
            async with proxy.get(f"/v1/models/{name}") as response:
                assert (response.status, (await response.json())["id"]) == (200, name)
        for name, key in (("huge", KEY), ("big", SMALL_KEY), ("gpt-4o", SMALL_KEY)):
            async with proxy.get(f"/v1/models/{name}", key=key) as response:
                await expect_error(response, 404, "model_not_found", "model")


async def test_an_alias_gives_no_more_than_its_model(files: Files, engine: Engine) -> None:
    files.configure(engine, models=MODELS)
    async with running_proxy(files) as proxy:
        for name in ("gpt-4o", "older"):
            async with proxy.post(body={"model": name}, key=SMALL_KEY) as response:
                await expect_error(response, 404, "model_not_found", "model")


async def full(call: Call) -> None:
    if json.loads(call.body)["model"] == "big":
        await call.answer(503, {"error": {"message": "the queue is full"}})
    else:
        await complete(call)


async def test_another_model_stands_in_when_the_pool_is_full(files: Files, engine: Engine) -> None:
    engine.script = full
    files.configure(engine, models=MODELS)
    async with (
        running_proxy(files) as proxy,
        proxy.post(body={"max_tokens": 7, "temperature": 1}) as response,
    ):
        assert response.status == 200
        assert response.headers["x-fallback-model"] == "small", "never in silence"
    assert [await sent(engine) for _ in range(2)] == [
        {"model": "big", "max_tokens": 7, "temperature": 1, "stop": ["###"]},
        {"model": "small", "max_tokens": 7, "temperature": 1},
    ]


async def test_another_model_stands_in_when_the_pool_is_down(files: Files, engine: Engine) -> None:
    async with running_engine("lost") as dead:
        files.configure(engine, dead, models=[{"name": "lost", "fallback": "small"}])
    async with running_proxy(files) as proxy, proxy.post(body={"model": "lost"}) as response:
        assert response.status == 200
        assert response.headers["x-fallback-model"] == "small"


async def test_nobody_stands_in_for_whom_the_key_may_not_use(files: Files, engine: Engine) -> None:
    files.write(files.keys, [*KEYS[1:], KEYS[0] | {"models": ["big"]}])
    engine.script = full
    files.configure(engine, models=MODELS)
    async with running_proxy(files) as proxy, proxy.post() as response:
        await expect_error(response, 503, None)
        assert "x-fallback-model" not in response.headers
    assert len(engine.calls) == 1


async def test_when_those_who_stand_in_have_no_room_either(files: Files, engine: Engine) -> None:
    async def all_full(call: Call) -> None:
        await call.answer(503, {"error": {"message": "full"}})

    engine.script = all_full
    files.configure(engine, models=[MODELS[0], MODELS[1] | {"fallback": "big"}])
    async with running_proxy(files) as proxy, proxy.post() as response:
        await expect_error(response, 503, None)
        assert response.headers["retry-after"] == "1"
    assert len(engine.calls) == 2, "no model is asked twice"


async def test_a_default_may_be_overridden_with_null(files: Files, engine: Engine) -> None:
    files.configure(engine, models=MODELS)
    async with running_proxy(files) as proxy, proxy.post(body={"stop": None, "max_tokens": 1}) as response:
        assert response.status == 200
    assert await sent(engine) == {"model": "big", "stop": None, "temperature": 0.5, "max_tokens": 1}


async def test_a_model_under_maintenance_is_refused_until_it_is_over(files: Files, engine: Engine) -> None:
    files.configure(engine, models=[{"name": "big", "maintenance_s": 600}])
    async with running_proxy(files) as proxy:
        async with proxy.post() as response:
            error = await expect_error(response, 503, "maintenance")
            assert "'big' is under maintenance" in error["message"]
            assert response.headers["retry-after"] == "600"
        async with proxy.post(body={"model": "small"}) as response:
            assert response.status == 200, "other models are served"
        assert [json.loads(call.body)["model"] for call in engine.calls] == ["small"]
        files.configure(engine)
        async with asyncio.timeout(WAIT_S):
            while await status_of(proxy) != 200:
                await asyncio.sleep(0.01)


async def test_a_model_whose_pool_is_at_zero_is_known_and_says_when_to_come_back(
    files: Files, engine: Engine
) -> None:
    models = [{"name": "night", "aliases": ["owl"], "cold_start_s": 400}]
    files.configure(engine, models=models, admin=files.admin())
    async with running_proxy(files) as proxy:
        for name in ("night", "owl"):
            async with proxy.post(body={"model": name}) as response:
                error = await expect_error(response, 503, "model_unavailable")
                assert "No engine is serving 'night' at the moment" in error["message"]
                assert response.headers["retry-after"] == "400"
        async with proxy.get("/v1/models") as response:
            listed = [card["id"] for card in (await response.json())["data"]]
        assert listed == sorted([*(card["id"] for card in engine.cards), "night", "owl"])
        async with proxy.get("/v1/models/night") as response:
            assert (response.status, (await response.json())["id"]) == (200, "night")
        # An alert that follows from these wakes the pool: see docs/scaling.md.
        refused = {
            name: value
            for name, value in (await proxy.admin.metrics()).items()
            if "requests_total" in name and "night" in name
        }
        assert sum(refused.values()) == 2
        assert all('code="model_unavailable"' in name and 'model="night"' in name for name in refused), (
            refused
        )
        # Its first engine has come.
        async with running_engine("night") as first:
            files.configure(engine, first, models=models)
            async with asyncio.timeout(WAIT_S):
                while await status_of(proxy, "night") != 200:
                    await asyncio.sleep(0.01)


async def test_the_fallback_of_a_model_at_zero_answers(files: Files, engine: Engine) -> None:
    models = [
        {"name": "night", "cold_start_s": 400, "fallback": "big"},
        # It may be a fallback itself.
        {"name": "small", "fallback": "night"},
    ]
    files.configure(engine, models=models)
    async with running_proxy(files) as proxy, proxy.post(body={"model": "night"}) as response:
        assert response.status == 200
        assert response.headers["x-fallback-model"] == "big"


async def status_of(proxy: Proxy, model: str = "big") -> int:
    async with proxy.post(body={"model": model}) as response:
        status: int = response.status
        return status


async def test_its_fallback_answers_for_a_model_under_maintenance(files: Files, engine: Engine) -> None:
    files.configure(engine, models=[{"name": "big", "maintenance_s": 600, "fallback": "small"}])
    async with running_proxy(files) as proxy, proxy.post() as response:
        assert response.status == 200
        assert response.headers["x-fallback-model"] == "small"
