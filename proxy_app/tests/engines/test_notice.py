"""Engines whose host will end, as they announce it in a header."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Call, Engine, complete
from expect import expect_error
from harness import Files, Log, Proxy, running_proxy
from inference_proxy.api.errors import Unavailable
from inference_proxy.engines.notice import Notice, read
from jobs import Clock, a_fleet

pytestmark = pytest.mark.anyio

SPOT = "spot interruption (terminate); since 2026-11-27T02:50:00Z"


def announce(engine: Engine, value: str | None) -> None:
    """Have the engine's answers to polls carry this header; None: no header."""

    async def models(call: Call) -> None:
        headers = [] if value is None else [f"X-Engine-Draining: {value}"]
        await call.answer(200, {"object": "list", "data": engine.cards}, *headers)

    engine.models = models


def states(status: dict[str, Any]) -> list[str]:
    return [engine["state"] for engine in status["engines"]]


async def test_an_engine_whose_host_will_end_finishes_its_requests_and_gets_no_others(
    files: Files, engine: Engine, other: Engine, log: Log
) -> None:
    finish = asyncio.Event()

    async def hold(call: Call) -> None:
        await finish.wait()
        await complete(call)

    files.configure(engine, other, admin=files.admin())
    async with running_proxy(files) as proxy:
        engine.script = hold
        running = asyncio.create_task(proxy.post(body={"model": "small"}).__aenter__())
        await engine.next_call()
        announce(engine, f"{SPOT}; ends in 97 s")
        await proxy.until(lambda status: states(status) == ["draining", "serving"])

        for _ in range(10):
            async with proxy.post() as response:
                assert response.status == 200
        assert len(engine.calls) == 1
        first = (await proxy.admin.get("/admin/engines"))["engines"][0]
        assert (first["state"], first["reason"], first["in_flight"]) == ("draining", SPOT, 1)
        state = 'inference_proxy_engine_state{engine="host1:e",state="draining"}'
        assert (await proxy.admin.metrics())[state] == 1
        finish.set()
        async with await running as response:
            assert response.status == 200

        announce(engine, None)
        await proxy.until(lambda status: states(status) == ["serving", "serving"])
        while len(engine.calls) == 1:
            async with proxy.post() as response:
                assert response.status == 200
    assert any(SPOT in record["message"] for record in log.lines("log"))


async def test_a_model_without_another_engine_is_served_as_long_as_there_is_time(
    proxy: Proxy, engine: Engine
) -> None:
    announce(engine, f"{SPOT}; ends in 3600 s")
    status = await proxy.until(lambda status: states(status) == ["draining"])
    assert status["http"] == 200, "the worker still serves"
    async with proxy.post() as response:
        assert response.status == 200
    announce(engine, f"{SPOT}; ends in 3 s")
    await proxy.until(lambda status: status["http"] == 503)
    async with proxy.post() as response:
        await expect_error(response, 503, "model_unavailable")


def serving(fleet: Any) -> list[str]:
    return [engine.id for engine in fleet.serving("big", None)]


def test_of_several_engines_whose_hosts_will_end_those_with_time_are_used() -> None:
    clock = Clock()
    fleet = a_fleet({}, {}, clock=clock)
    one, two = fleet.engines
    fleet.take_notice(one, Notice("spot", clock.now + 120))
    assert serving(fleet) == [two.id]
    fleet.take_notice(two, Notice("maintenance", None))
    assert serving(fleet) == [one.id, two.id]
    clock.now += 100
    assert serving(fleet) == [two.id]
    fleet.set_drained(frozenset({two.id}))
    with pytest.raises(Unavailable):
        fleet.serving("big", None)
    assert two.state == "drained", "what an operator decided is shown first"


@pytest.mark.parametrize(
    ("header", "notice"),
    [
        (None, None),
        (b"going; ends in 97 s", Notice("going", 1097)),
        (b"going", Notice("going", None)),
        (b"", Notice("no reason given", None)),
        (b"; ends in 5 s", Notice("no reason given", 1005)),
        (b"going; ends in -5 s", Notice("going; ends in -5 s", None)),
        (b"going; ends in 99999999999999999999 s", Notice("going; ends in 99999999999999999999 s", None)),
        (b"\x1b[31m\xff<b>\t", Notice("?[31m?<b>?", None)),
    ],
)
def test_the_header_is_read(header: bytes | None, notice: Notice | None) -> None:
    assert read(header, 1000) == notice


@given(st.binary())
def test_whatever_the_header_holds(header: bytes) -> None:
    notice = read(header, 1000)
    assert notice is not None
    assert notice.reason.isprintable()
    assert len(notice.reason) <= 200


@pytest.mark.parametrize(
    ("header", "state"), [("x" * 50_000, "draining"), ("x" * 500_000, "down"), ("\x00", "down")]
)
async def test_an_absurd_header_concerns_its_own_engine_and_no_other(
    pair: Proxy, engine: Engine, header: str, state: str
) -> None:
    announce(engine, header)
    await pair.until(lambda status: states(status) == [state, "serving"])
    async with pair.post() as response:
        assert response.status == 200
