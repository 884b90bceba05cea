"""Configuration, keys and drained engines change while requests run."""

import asyncio
import logging
from typing import Any

import pytest

from engine import Call, Engine, complete
from expect import expect_error
from harness import KEYS, Files, Log, Proxy, sha256

pytestmark = pytest.mark.anyio

NEW_KEY = "carol-key-0123456789-0123456789-0123"


def states(status: dict[str, Any]) -> dict[str, str]:
    return {engine["id"]: engine["state"] for engine in status["engines"]}


async def until_answered(proxy: Proxy, status: int, key: str) -> None:
    async with asyncio.timeout(10):
        while True:
            async with proxy.get("/v1/models", key=key) as response:
                if response.status == status:
                    return
            await asyncio.sleep(0.01)


async def test_keys_come_and_go(proxy: Proxy, files: Files) -> None:
    await until_answered(proxy, 401, NEW_KEY)
    files.write(files.keys, [*KEYS, {"name": "carol", "sha256": sha256(NEW_KEY)}])
    await until_answered(proxy, 200, NEW_KEY)
    files.write(files.keys, KEYS)
    await until_answered(proxy, 401, NEW_KEY)


async def test_a_drained_engine_finishes_and_gets_nothing_new(
    pair: Proxy, files: Files, engine: Engine, other: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "inference_proxy.state")
    finish = asyncio.Event()

    async def hold(call: Call) -> None:
        await finish.wait()
        await complete(call)

    engine.script = hold
    running = asyncio.create_task(pair.post(body={"model": "small"}).__aenter__())
    await engine.next_call()
    reason = files.drained.with_name("reason")
    reason.write_text("a reason; a start takes 84 s")
    reason.replace(files.drained / "host1:e")
    status = await pair.until(lambda status: states(status)["host1:e"] == "drained")
    assert status["status"] == "ready"
    assert [known["in_flight"] for known in status["engines"]] == [1, 0]
    for _ in range(10):
        async with pair.post() as response:
            assert response.status == 200
    async with pair.post(body={"model": "small"}) as response:
        await expect_error(response, 503, "model_unavailable")
        assert response.headers["retry-after"] == "84"
    assert len(engine.calls) == 1
    assert len(other.calls) == 10
    finish.set()
    assert (await running).status == 200
    (await running).release()
    await pair.idle()
    (files.drained / "host1:e").unlink()
    await pair.until(lambda status: states(status)["host1:e"] == "serving")
    said = [message.partition(" is ")[2] for message in caplog.messages if "drained" in message]
    assert said == ["drained: a reason; a start takes 84 s", "no longer drained"]


async def test_engines_come_and_go(proxy: Proxy, files: Files, engine: Engine, other: Engine) -> None:
    finish = asyncio.Event()

    async def hold(call: Call) -> None:
        await finish.wait()
        await complete(call)

    engine.script = hold
    running = asyncio.create_task(proxy.post().__aenter__())
    await engine.next_call()
    files.configure(engine, other)
    status = await proxy.until(lambda status: states(status) == {"host1:e": "serving", "host2:e": "serving"})
    assert status["engines"][0]["in_flight"] == 1, "an engine that stays keeps its count"
    files.configure(other)
    await proxy.until(lambda status: states(status) == {"host1:e": "serving"} and status["in_flight"] == 1)
    async with proxy.post() as response:
        assert response.status == 200
    assert len(other.calls) == 1
    finish.set()
    assert (await running).status == 200, "a request outlives its engine's entry"
    (await running).release()


@pytest.mark.parametrize(
    "content", ["engines: [", "engines: 3", "- a\n- list", "", "unknown: 1", "engines:\n  - {id: a}"]
)
async def test_a_bad_configuration_changes_nothing(
    proxy: Proxy, files: Files, engine: Engine, log: Log, content: str
) -> None:
    good = files.config.read_text()
    files.write(files.config, content)
    status = await proxy.until(lambda status: status["config_error"] is not None)
    assert str(files.config) in status["config_error"]
    assert status["status"] == "ready"
    async with proxy.post() as response:
        assert response.status == 200
    files.write(files.config, good)
    await proxy.until(lambda status: status["config_error"] is None)
    messages = [line["message"] for line in log.lines("log")]
    assert len([text for text in messages if "refused" in text]) == 1, "reported once, not twice a second"


async def test_bad_keys_change_nothing(proxy: Proxy, files: Files, log: Log) -> None:
    files.write(files.keys, [{"name": "carol", "sha256": "not-a-hash-but-maybe-a-key"}])
    status = await proxy.until(lambda status: status["config_error"] is not None)
    assert "keys.0.sha256" in status["config_error"]
    async with proxy.post() as response:
        assert response.status == 200
    files.keys.unlink()
    await proxy.until(lambda status: "cannot be read" in (status["config_error"] or ""))
    files.write(files.keys, KEYS)
    await proxy.until(lambda status: status["config_error"] is None)
    log.lines("log")
    assert "maybe-a-key" not in log.text


async def test_a_configuration_may_wait_for_its_keys(proxy: Proxy, files: Files, engine: Engine) -> None:
    files.write(files.config, files.config.read_text().replace("keys.yml", "later.yml"))
    await proxy.until(lambda status: "later.yml" in (status["config_error"] or ""))
    files.write(files.keys.with_name("later.yml"), [{"name": "carol", "sha256": sha256(NEW_KEY)}])
    await until_answered(proxy, 200, NEW_KEY)
    assert (await proxy.ready())["config_error"] is None
