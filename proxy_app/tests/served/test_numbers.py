"""Numbers from outside: none harms the worker, the caller's limits or another request."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Call, Engine
from harness import KEY, SMALL_KEY, WAIT_S, Files, Proxy, running_proxy, sha256
from inference_proxy.accounting import accounts
from inference_proxy.api.errors import ApiError
from inference_proxy.api.numbers import MOST_CONTEXT_TOKENS
from inference_proxy.config import Routing
from inference_proxy.faults import Faults
from inference_proxy.scheduling import route
from inference_proxy.scheduling.fair_queue import FairQueue
from inference_proxy.scheduling.queues import Queues
from jobs import a_config, a_fleet, a_job

pytestmark = pytest.mark.anyio

ABSURD = ["1" + "0" * 400, "9" * 4299, "-1", "-1e400", "1e400", "1.5", "9223372036854775808", "NaN"]
KEYS = [
    {
        "name": "alice",
        "sha256": sha256(KEY),
        "limits": {"concurrent_requests": 3, "tokens_per_minute": 10**6},
    },
    {"name": "mallory", "sha256": sha256(SMALL_KEY), "limits": {"tokens_per_minute": 10**6}},
]


@pytest.mark.parametrize("number", ABSURD)
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/chat/completions", "max_tokens"),
        ("/v1/chat/completions", "max_completion_tokens"),
        ("/v1/chat/completions", "n"),
        ("/v1/completions", "max_tokens"),
        ("/v1/responses", "max_output_tokens"),
        ("/v1/messages", "max_tokens"),
    ],
)
async def test_an_absurd_number_is_refused_and_named(
    proxy: Proxy, path: str, field: str, number: str
) -> None:
    async with proxy.post(path, data=f'{{"model":"big","{field}":{number}}}') as response:
        assert response.status == 400, await response.text()
        error = (await response.json())["error"]
        if "messages" not in path and number != "NaN":
            assert error["param"] == field
    async with proxy.post() as response:
        assert response.status == 200


@pytest.mark.parametrize("number", ["100", "100.0", '"100"', '"100.0"'])
async def test_whole_numbers_are_taken_as_engines_take_them(
    proxy: Proxy, engine: Engine, number: str
) -> None:
    body = f'{{"model":"big","max_tokens":{number}}}'
    async with proxy.post(data=body) as response:
        assert response.status == 200, await response.text()
    assert (await engine.next_call()).body == body.encode(), "the client's own bytes"


async def test_where_nothing_is_generated_n_is_not_ours(proxy: Proxy) -> None:
    async with proxy.post("/v1/embeddings", {"input": "a", "n": 10**6}) as response:
        assert response.status == 200, await response.text()


@pytest.mark.parametrize("usage", ["9" * 5000, "1" + "0" * 20, "-5", "1e400"])
async def test_what_an_engine_counts_is_bounded_too(files: Files, engine: Engine, usage: str) -> None:
    """Python cannot even parse a number of 4,300 digits: other requests are accounted for all the same."""

    async def counts(call: Call) -> None:
        counted = f'"usage":{{"prompt_tokens":{usage},"completion_tokens":{usage}}}'
        body = f'{{"choices":[],{counted}}}'
        await call.answer(200, body.encode())

    files.write(files.keys, KEYS)
    files.configure(engine)
    engine.script = counts
    async with running_proxy(files) as proxy:
        for _ in range(4):
            async with proxy.post() as response:
                assert response.status == 200
        await proxy.idle()
        assert (await proxy.ready())["fault"] is None


async def test_a_request_in_line_with_an_absurd_number_harms_nobody(files: Files, engine: Engine) -> None:
    release = asyncio.Event()

    async def hold(call: Call) -> None:
        await release.wait()
        await call.answer(200, {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    engine.script = hold
    files.write(files.keys, KEYS)
    files.configure(
        engine,
        queue={"max_in_flight": 1, "max_wait_s": WAIT_S},
        models=[{"name": "big", "max_tokens_limit": 4096}],
    )

    async def ask(key: str, **body: Any) -> int:
        async with proxy.post(body={"messages": []} | body, key=key) as response:
            return response.status

    async with running_proxy(files) as proxy:
        first = asyncio.create_task(ask(KEY))
        await engine.next_call()
        waiting = [
            asyncio.create_task(ask(SMALL_KEY, **body))
            for body in ({"max_tokens": 2**63 - 1, "n": 128}, {"n": 10**400}, {"max_tokens": 10**400})
        ]
        assert [await task for task in waiting[1:]] == [400, 400]
        release.set()
        assert (await first, await waiting[0]) == (200, 200)
        for _ in range(4):
            assert await ask(KEY) == 200
        await proxy.idle()
        assert (await proxy.ready())["status"] == "ready"


async def test_a_cap_beyond_the_context_makes_no_hot_spot(
    files: Files, engine: Engine, other: Engine
) -> None:
    async def hold(call: Call) -> None:
        await call.client_gone.wait()

    for each in (engine, other):
        each.cards[0]["max_model_len"] = 32768
        each.script = hold
    files.configure(engine, other)
    async with running_proxy(files) as proxy:

        async def ask(cap: int) -> None:
            async with proxy.post(body={"max_tokens": cap, "messages": []}):
                pass

        tasks = [asyncio.create_task(ask(cap)) for cap in (2**31 - 1, *[400] * 9)]
        async with asyncio.timeout(WAIT_S):
            while len(engine.calls) + len(other.calls) < len(tasks):
                await asyncio.sleep(0.01)
        assert 4 <= len(engine.calls) <= 6
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await proxy.idle()


def test_the_context_is_told_by_the_engines() -> None:
    """An adapter has its base model's.

    If no engine reports one, or it is impossible, the general bound applies.
    """
    fleet = a_fleet({}, {})
    cards: dict[str, dict[str, Any]] = {
        "big": {"id": "big", "max_model_len": 4096, "parent": None},
        "adapter": {"id": "adapter", "max_model_len": None, "parent": "big"},
        "alone": {"id": "alone", "max_model_len": 10**400},
    }
    for engine, length in zip(fleet.engines, (4096, 8192), strict=True):
        fleet.update_cards(engine, cards | {"big": cards["big"] | {"max_model_len": length}})
    assert (fleet.context_tokens("big"), fleet.context_tokens("adapter")) == (8192, 8192)
    assert fleet.context_tokens("alone") == fleet.context_tokens("unheard of") == MOST_CONTEXT_TOKENS


@given(
    cap=st.none() | st.integers(0, 2**63 - 1),
    choices=st.integers(1, 128),
    prompts=st.integers(1, 2000),
    context=st.integers(1, 1 << 21),
)
def test_the_cost_of_a_job_is_bounded_by_the_context(
    cap: int | None, choices: int, prompts: int, context: int
) -> None:
    body: dict[str, Any] = {"prompt": ["x" * 40] * prompts, "n": choices}
    if cap is not None:
        body["max_tokens"] = cap
    job = a_job("/completions", context_tokens=context, **body)
    routing = Routing()
    cost = route.cost_of(job, routing)
    assert 1 <= cost <= (2 * max(context, routing.assumed_tokens)) * choices * prompts


def test_a_turn_that_used_less_is_given_back() -> None:
    queue: FairQueue[str] = FairQueue()
    for item, name in (("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b")):
        queue.add(item, name, 1, 10**9 if item == "a1" else 10, 100)
    assert queue.take() == "a1"
    queue.settle("a", -(10**9))
    assert [queue.take() for _ in range(3)] == ["a2", "b1", "b2"]


async def test_a_queue_that_fails_refuses_its_requests_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    config = a_config({}, queue={"max_in_flight": 1, "max_wait_s": WAIT_S})
    fleet, faults = a_fleet({}, queue={"max_in_flight": 1}), Faults()
    queues = Queues(fleet, faults)
    first = await queues.enter(a_job(config=config), config)
    waiting = asyncio.create_task(queues.enter(a_job(config=config), config))
    await asyncio.sleep(0)

    def broken(_: object) -> None:
        raise OverflowError("int too large to convert to float")

    with monkeypatch.context() as patch:
        patch.setattr(FairQueue, "take", broken)
        first.leave()
    with pytest.raises(ApiError) as refused:
        await waiting
    assert refused.value.status == 500
    assert faults.reason == "the queue of model 'big' failed"
    (await queues.enter(a_job(config=config), config)).leave()
    assert [engine.in_flight for engine in fleet.engines] == [0]


async def test_a_fault_makes_the_worker_unready_and_others_are_served(
    files: Files, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in accounting, which does not affect other requests."""
    files.configure(engine, admin=files.admin())
    async with running_proxy(files) as proxy:
        with monkeypatch.context() as patch:
            patch.setattr(accounts, "_sample", lambda _: 1 / 0)
            async with proxy.post() as response:
                assert response.status == 200
            status = await proxy.until(lambda status: status["fault"] is not None)
        assert (status["http"], status["status"]) == (503, "unready")
        assert "ZeroDivisionError" in status["fault"]
        async with proxy.post() as response:
            assert response.status == 200
        metrics = await proxy.admin.metrics()
    assert metrics["inference_proxy_faults"] == 1
    assert any(name.startswith("inference_proxy_requests_total") for name in metrics)
