"""Engines that hang, report wrong numbers, break or are only busy, and how requests cope with them."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import WAIT_S, Call, Engine, complete, stream
from expect import expect_error
from harness import Files, Log, Proxy, running_engine, running_proxy
from inference_proxy.config import Retries
from inference_proxy.engines import gauges, poller
from inference_proxy.engines.breaker import Phase
from inference_proxy.engines.gauges import Gauges, Rank
from inference_proxy.engines.progress import Progress
from inference_proxy.scheduling.retry_budget import RetryBudget
from jobs import Clock, a_fleet

pytestmark = pytest.mark.anyio

PAGE = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="big"} 3.0
vllm:num_requests_running{engine="1",model_name="big"} 4.0
vllm:num_requests_waiting{engine="0",model_name="big"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="big",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="big"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="big"} 0.75
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="big"} 7.0
vllm:iteration_tokens_total_count{engine="0",model_name="big"} 5.0
vllm:iteration_tokens_total_sum{engine="0",model_name="big"} 1.2e+06
vllm:iteration_tokens_total_created{engine="0",model_name="big"} 1.7e+09
"""


def test_the_page_of_metrics_is_read() -> None:
    found = gauges.parse(PAGE)
    assert found is not None
    assert (found.running, found.waiting, found.kv_cache_usage) == (7, 2, 0.75)
    assert [rank.tokens for rank in found.ranks.values()] == [1.2e6, 0]


@pytest.mark.parametrize("number", ["1e308", "1e309", "9" * 5000, "NaN", "-1", "-1e400", "1e400"])
def test_absurd_gauges_are_bounded(number: str) -> None:
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    lines = [f'vllm:{name}{{engine="{rank}"}} {number}\n' for name in names for rank in (0, 1)]
    found = gauges.parse("".join(lines).encode())
    if found is not None:
        assert max(found.running, found.waiting) <= 2_000_000
        assert 0 <= found.kv_cache_usage <= 1


@given(st.binary())
def test_whatever_the_page_holds(page: bytes) -> None:
    assert gauges.parse(page) is None
    lines = b"vllm:num_requests_running %b\nvllm:num_requests_waiting 1\n" % page.replace(b"\n", b"")
    found = gauges.parse(lines)
    assert found is not None
    assert found.running >= 0


# Hung or busy.


def seen(**ranks: tuple[int, float]) -> Gauges:
    return Gauges({name.encode(): Rank(running, tokens=tokens) for name, (running, tokens) in ranks.items()})


def test_a_long_generation_is_progress() -> None:
    """ray#54070, vime#350: a busy engine was marked dead."""
    progress = Progress(0)
    for second in range(10_000):
        progress.see(seen(a=(1, second)), second)
    assert progress.stalled_s() == 0


def test_requests_that_run_without_a_token_are_a_stall() -> None:
    """vllm#39863: /health stayed 200 for 85 minutes."""
    progress = Progress(0)
    for second in range(101):
        progress.see(seen(a=(1, 500)), second)
    assert progress.stalled_s() == 100


def test_an_idle_engine_does_not_stall_and_a_quiet_time_is_not_held_against_it() -> None:
    progress = Progress(0)
    for second in range(1000):
        progress.see(seen(a=(0, 500)), second)
    assert progress.stalled_s() == 0
    progress.see(seen(a=(1, 500)), 1000)
    progress.see(seen(a=(1, 500)), 1001)
    assert progress.stalled_s() <= 2


def test_an_idle_engine_whose_metrics_cannot_be_read_does_not_stall() -> None:
    fleet = a_fleet({}, clock=(clock := Clock()))
    (engine,) = fleet.engines
    engine.update_gauges(seen(a=(0, 500)), fleet.now())
    clock.now += 100
    engine.update_gauges(None, fleet.now())
    assert engine.progress.stalled_s() == 0


def test_one_rank_that_hangs_is_not_hidden_by_the_others() -> None:
    progress = Progress(0)
    for second in range(101):
        progress.see(seen(a=(1, 500), b=(1, second)), second)
    assert progress.stalled_s() == 100


def test_a_restart_is_not_a_stall() -> None:
    progress = Progress(0)
    progress.see(seen(a=(1, 500)), 0)
    for second in (60, 61):
        progress.see(seen(a=(1, 0)), second)
    assert progress.stalled_s() == 1


# Breakers.


def failing(engines: int, **health: Any) -> Any:
    fleet = a_fleet(*[{}] * engines, clock=Clock(), health={"failures": 3} | health)
    return fleet


def phases(fleet: Any) -> list[Phase]:
    return [engine.breaker.phase for engine in fleet.engines]


def test_failures_open_a_breaker_where_complete_answers_do_not_make_up_for_them() -> None:
    fleet = failing(2)
    engine, other = fleet.engines
    for _ in range(10):
        fleet.failed(engine, "alice")
        fleet.succeeded(other, "alice")
        fleet.succeeded(engine, "alice")
        fleet.succeeded(engine, "alice")
    assert engine.state == "serving", "a third of its answers is no more than it may break"
    for _ in range(3):
        fleet.failed(engine, "alice")
        fleet.succeeded(other, "alice")
    assert (engine.state, other.state) == ("ejected", "serving")
    assert engine.breaker.reason == "it breaks more than a third of its answers"


def test_an_engine_that_breaks_every_other_answer_is_ejected() -> None:
    fleet = failing(2)
    engine, other = fleet.engines
    for _ in range(12):
        fleet.failed(engine, "alice")
        fleet.succeeded(engine, "alice")
        fleet.succeeded(other, "alice")
    assert engine.state == "ejected"


def test_requests_that_break_everywhere_eject_no_engine() -> None:
    """They are the key's fault, however often it sends them, and whatever it sends in between."""
    fleet = failing(2)
    one, two = fleet.engines
    for _ in range(100):
        fleet.failed(one, "mallory")
        fleet.failed(two, "mallory")
    assert (one.state, two.state) == ("serving", "serving")
    for _ in range(200):
        fleet.failed(one, "alice")
        fleet.succeeded(two, "alice")
    assert (one.state, two.state) == ("ejected", "serving"), "that one of them is ill is still found out"


def test_a_key_that_no_other_engine_has_answered_counts_a_third() -> None:
    fleet = failing(2)
    engine, other = fleet.engines
    for _ in range(5):
        fleet.failed(engine, "alice")
    assert engine.state == "serving"
    fleet.succeeded(other, "alice")
    assert engine.state == "ejected"
    fleet = failing(2)
    for _ in range(9):
        fleet.failed(fleet.engines[0], "alice")
    assert fleet.engines[0].state == "ejected", "that nobody knows what others would do is no licence"


def test_who_was_ejected_for_failures_comes_back_on_probation_and_stays_out_longer_each_time() -> None:
    fleet = failing(2)
    engine, other = fleet.engines
    breaker, waits_s = engine.breaker, []
    fleet.succeeded(other, "alice")
    for _ in range(3):
        fleet.failed(engine, "alice")
        fleet.failed(engine, "bob")
        fleet.failed(engine, "alice")
        assert engine.state == "ejected"
        waits_s.append(next(s for s in range(1000) if breaker.has_cooled(fleet.now() + s, 10)))
        breaker.phase = Phase.HALF_OPEN
        fleet.passed(engine)
        assert (engine.state, breaker.failures) == ("serving", 2)
        assert engine in fleet.failing
    assert waits_s == [10, 20, 40]
    for _ in range(4):
        fleet.succeeded(engine, "alice")
    assert (breaker.failures, breaker.relapses, fleet.failing) == (0, 0, set())


def test_an_engine_that_was_mended_recovers_however_much_it_broke() -> None:
    fleet = failing(1)
    engine = fleet.engines[0]
    for _ in range(1000):
        fleet.failed(engine, "alice")
    for _ in range(18):
        fleet.succeeded(engine, "alice")
    assert fleet.failing == set()


def test_without_requests_probes_make_up_for_old_failures() -> None:
    clock = Clock()
    fleet = a_fleet({}, {}, clock=clock)
    engine = fleet.engines[0]
    fleet.failed(engine, "alice")
    fleet.passed(engine)
    fleet.passed(engine)
    assert engine in fleet.failing, "a probe after a failure says nothing of what clients ask for"
    for _ in range(2):
        clock.now += 60
        fleet.passed(engine)
    assert fleet.failing == set()


@given(st.integers(1, 12), st.sampled_from([0, 0.3, 0.5, 1.0]), st.lists(st.integers(0, 11), max_size=200))
def test_never_more_than_the_share_is_ejected(count: int, share: float, failures: list[int]) -> None:
    fleet = failing(count, max_ejected_share=share)
    for number in failures:
        fleet.failed(fleet.engines[number % count], str(number % 2))
    assert sum(phase is not Phase.CLOSED for phase in phases(fleet)) <= share * count


def test_an_only_engine_is_not_ejected_for_failures_but_when_it_hangs() -> None:
    fleet = failing(1)
    for _ in range(100):
        fleet.failed(fleet.engines[0], "alice")
    assert fleet.engines[0].state == "serving"
    fleet.eject(fleet.engines[0], "hung")
    assert fleet.engines[0].state == "ejected"


def test_a_breaker_cools_down_first() -> None:
    fleet = failing(2)
    breaker = fleet.engines[0].breaker
    fleet.eject(fleet.engines[0], "hung")
    assert not breaker.has_cooled(fleet.now() + 9, 10)
    assert breaker.has_cooled(fleet.now() + 10, 10)
    breaker.phase = Phase.HALF_OPEN
    fleet.passed(fleet.engines[0])
    assert (breaker.phase, breaker.failures, breaker.reason) == (Phase.CLOSED, 0, "")


def test_a_probe_that_began_before_the_ejection_takes_no_engine_back() -> None:
    """Each failure has the engine probed, and a probe may go well though clients' answers break."""
    fleet = failing(2)
    engine, other = fleet.engines
    fleet.succeeded(other, "alice")
    for key in ("alice", "bob", "alice"):
        fleet.failed(engine, key)
    assert (engine.state, engine.suspected) == ("ejected", True)
    fleet.passed(engine)
    assert (engine.state, engine.suspected, engine.breaker.phase) == ("ejected", False, Phase.OPEN)
    assert engine.breaker.has_cooled(fleet.now() + 10, 10), "after which it is probed"


# Retries.


@given(st.lists(st.booleans(), max_size=500), st.floats(0, 1), st.integers(1, 20))
def test_retries_stay_within_their_share(steps: list[bool], share: float, burst: int) -> None:
    """litellm#34399: an outage must not become a storm."""
    config = Retries(share=share, burst=burst)
    budget = RetryBudget(config)
    requests = retries = 0
    for fails in steps:
        budget.earn(config)
        requests += 1
        retries += fails and budget.spend()
    assert retries <= burst + share * requests + 1e-6


@pytest.mark.complaint(9)
async def test_an_outage_does_not_become_a_storm(files: Files, engine: Engine, other: Engine) -> None:
    async def break_off(call: Call) -> None:
        call.break_off()

    engine.script = other.script = break_off
    files.configure(
        engine, other, retries={"share": 0.1, "burst": 2, "backoff_s": 0}, health={"max_ejected_share": 0}
    )
    async with running_proxy(files) as proxy:
        for _ in range(30):
            async with proxy.post() as response:
                await expect_error(response, 502, "engine_unreachable")
    assert len(engine.calls) + len(other.calls) <= 30 + 2 + 3


async def test_a_full_engine_is_replaced_once(pair: Proxy, engine: Engine, other: Engine, log: Log) -> None:
    async def full(call: Call) -> None:
        await call.answer(503, {"error": {"message": "full"}})

    engine.script = full
    while not engine.calls:
        async with pair.post(body={"stream": True}) as response:
            assert response.status == 200
    assert (await log.last_request())["retries"] == 1
    other.script = full
    before = len(engine.calls) + len(other.calls)
    async with pair.post() as response:
        await expect_error(response, 503, None)
        assert response.headers["retry-after"] == "1"
    assert len(engine.calls) + len(other.calls) == before + 2


@pytest.mark.complaint(9)
async def test_an_engine_that_says_when_to_come_again_is_left_alone_until_then(
    pair: Proxy, engine: Engine, other: Engine
) -> None:
    async def full(call: Call) -> None:
        await call.answer(503, {"error": {"message": "full"}}, "retry-after: 3600")

    engine.script = full
    for _ in range(30):
        async with pair.post() as response:
            assert response.status == 200
    assert len(engine.calls) == 1


@pytest.mark.complaint(9)
@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429, 500])
async def test_what_an_engine_refuses_is_not_tried_elsewhere(
    pair: Proxy, engine: Engine, other: Engine, status: int
) -> None:
    """NeMo-RL#3878: a context overflow was masked as a 500, and retried."""

    async def refuse(call: Call) -> None:
        await call.answer(status, {"error": {"message": "no", "code": "x"}})

    engine.script = other.script = refuse
    async with pair.post() as response:
        await expect_error(response, status, "x")
    assert len(engine.calls) + len(other.calls) == 1


async def test_a_full_model_is_stood_in_for(files: Files, engine: Engine) -> None:
    async def full(call: Call) -> None:
        if b'"spare"' in call.body:
            return await complete(call)
        await call.answer(503, {"error": {"message": "full"}})

    engine.script = full
    async with running_engine("spare") as spare:
        spare.script = full
        files.configure(engine, spare, models=[{"name": "big", "fallback": "spare"}])
        async with running_proxy(files) as proxy, proxy.post() as response:
            assert response.status == 200
            assert response.headers["x-fallback-model"] == "spare"


async def test_a_refused_line_counts_as_full(files: Files, engine: Engine) -> None:
    finish = asyncio.Event()

    async def hold(call: Call) -> None:
        await finish.wait()
        await complete(call)

    engine.script = hold
    async with running_engine("spare") as spare:
        files.configure(
            engine,
            spare,
            models=[{"name": "big", "fallback": "spare"}],
            queue={"max_in_flight": 1, "max_wait_s": 0.05},
        )
        async with running_proxy(files) as proxy:
            running = asyncio.create_task(proxy.post().__aenter__())
            await engine.next_call()
            async with proxy.post() as response:
                assert response.headers["x-fallback-model"] == "spare"
            async with proxy.post(body={"model": "small"}) as response:
                await expect_error(response, 503, "queue_timeout")
                assert int(response.headers["retry-after"]) > 0
            finish.set()
            (await running).release()
            await proxy.idle()


@pytest.mark.complaint(2)
async def test_a_client_that_hangs_up_in_the_line_leaves_it(files: Files, engine: Engine, log: Log) -> None:
    async def hold(call: Call) -> None:
        await call.client_gone.wait()

    engine.script = hold
    files.configure(engine, queue={"max_in_flight": 1})
    async with running_proxy(files) as proxy:
        first = asyncio.create_task(proxy.post().__aenter__())
        await engine.next_call()
        second = asyncio.create_task(proxy.post().__aenter__())
        await proxy.until(lambda status: status["in_flight"] == 2)
        second.cancel()
        line = await log.last_request()
        assert (line["outcome"], line["engine"]) == ("client_gone", None)
        first.cancel()
        await proxy.idle()
    assert len(engine.calls) == 1


# Seen from outside.

QUICK = {"stall_s": 0.2, "probe_after_s": 600, "probe_timeout_s": 0.2, "cool_down_s": 0.05}
# For engines that answer probes: on a busy machine, late.
ANSWERED = QUICK | {"probe_timeout_s": WAIT_S}


def states(status: dict[str, Any]) -> list[str]:
    return [engine["state"] for engine in status["engines"]]


async def mute(call: Call) -> None:
    await call.client_gone.wait()


@pytest.mark.complaint(5)
async def test_a_hung_engine_is_found_out_though_it_looks_well(
    files: Files, engine: Engine, other: Engine
) -> None:
    """vllm#39863. It answers /v1/models and /metrics all the time."""
    engine.script = engine.prober = mute
    engine.gauges = {"num_requests_running": 1, "iteration_tokens_total_sum": 77}
    files.configure(engine, other, health=QUICK)
    async with running_proxy(files) as proxy:
        await proxy.until(lambda status: states(status) == ["ejected", "serving"])
        for _ in range(10):
            async with proxy.post() as response:
                assert response.status == 200
        assert len(other.calls) == 10
        await asyncio.wait_for(engine.probed.get(), WAIT_S)
        engine.prober = complete
        engine.gauges = {"num_requests_running": 0, "iteration_tokens_total_sum": 78}
        await proxy.until(lambda status: states(status) == ["serving", "serving"])


async def test_requests_at_a_hung_engine_end_with_a_reason(files: Files, engine: Engine) -> None:
    async def hang(call: Call) -> None:
        engine.gauges = {"num_requests_running": 1, "iteration_tokens_total_sum": 77}
        await mute(call)

    engine.script, engine.prober = hang, mute
    files.configure(engine, health=QUICK)
    async with running_proxy(files) as proxy, proxy.post() as response:
        await expect_error(response, 502, "engine_hung")


@pytest.mark.complaint(6)
async def test_a_busy_engine_keeps_its_long_generation(files: Files, engine: Engine) -> None:
    tokens = 0
    finish = asyncio.Event()

    async def moving(call: Call) -> None:
        nonlocal tokens
        tokens += 1
        engine.gauges = {"num_requests_running": 1, "iteration_tokens_total_sum": tokens}
        if tokens == 30:
            finish.set()
        await Engine._answer_metrics(engine, call)

    async def long(call: Call) -> None:
        await finish.wait()
        await complete(call)

    engine.metrics, engine.script, engine.prober = moving, long, mute
    files.configure(engine, health=QUICK)
    async with running_proxy(files) as proxy:
        async with proxy.post() as response:
            assert response.status == 200
        assert states(await proxy.ready()) == ["serving"]
    assert engine.probed.empty(), "whose tokens move needs no probe"


async def test_an_expired_clock_is_no_verdict_but_a_reason_to_ask(files: Files, engine: Engine) -> None:
    engine.script = mute
    # Enough for the second request, on a busy machine too.
    files.configure(engine, timeouts={"first_byte_s": 1}, health={"failures": 1, "max_ejected_share": 1})
    async with running_proxy(files) as proxy:
        async with proxy.post(body={"stream": True}) as response:
            await expect_error(response, 504, "first_byte_timeout")
        await asyncio.wait_for(engine.probed.get(), WAIT_S)
        engine.script = stream
        async with proxy.post(body={"stream": True}) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    "lie",
    [
        (500, {"error": "CUDA error"}),
        (200, {"choices": [], "usage": {"completion_tokens": 0}}),
        (200, b"garbage"),
        (404, {"detail": "no such model"}),
    ],
)
async def test_an_idle_engine_that_answers_a_probe_wrongly(
    files: Files, engine: Engine, other: Engine, lie: tuple[int, Any]
) -> None:
    async def wrong(call: Call) -> None:
        await call.answer(*lie)

    engine.prober = wrong
    files.configure(engine, other, health=QUICK | {"probe_after_s": 0.05})
    async with running_proxy(files) as proxy:
        await proxy.until(lambda status: states(status) == ["ejected", "serving"])
        engine.prober = complete
        await proxy.until(lambda status: states(status) == ["serving", "serving"])


async def test_a_full_engine_is_not_ill(files: Files, engine: Engine) -> None:
    async def full(call: Call) -> None:
        await call.answer(503, {"error": {"message": "full"}})

    engine.prober = full
    files.configure(engine, health=ANSWERED | {"probe_after_s": 0.05})
    async with running_proxy(files) as proxy:
        for _ in range(3):
            await asyncio.wait_for(engine.probed.get(), WAIT_S)
            assert states(await proxy.ready()) == ["serving"]


@pytest.mark.parametrize(
    ("probe", "path", "good"),
    [
        ("embeddings", "/v1/embeddings", {"data": [{"embedding": [0.1, -2]}]}),
        ("pooling", "/pooling", {"data": [{"data": [0.1]}]}),
        ("classify", "/classify", {"data": [{"label": "x", "probs": [0.4, 0.6]}]}),
        ("rerank", "/v1/rerank", {"results": [{"index": 0, "relevance_score": 0.5}]}),
        ("transcriptions", "/v1/audio/transcriptions", {"text": ""}),
    ],
)
async def test_an_engine_that_generates_no_text_is_asked_for_what_it_does(
    files: Files, engine: Engine, probe: str, path: str, good: Any
) -> None:
    answers, asked = [good, {}], asyncio.Queue[Call]()

    async def answer(call: Call) -> None:
        await call.answer(200, answers[0])
        asked.put_nowait(call)

    engine.script = answer
    entry = {"id": "host1:e", "url": engine.url, "models": ["big"], "probe": probe}
    files.configure(engine, engines=[entry], health=ANSWERED | {"probe_after_s": 0.05})
    async with running_proxy(files) as proxy:
        call = await asyncio.wait_for(asked.get(), WAIT_S)
        assert call.path == path
        assert b"big" in call.body
        assert states(await proxy.ready()) == ["serving"]
        del answers[0]
        await proxy.until(lambda status: states(status) == ["ejected"])


async def test_a_slow_start_is_no_failure(files: Files, engine: Engine, log: Log, monkeypatch: Any) -> None:
    """It listens long before it answers; once it does, the time before does not count against it."""
    monkeypatch.setattr(poller, "_TIMEOUT_S", 0.05)
    answer = engine.models

    async def loading(call: Call) -> None:
        await call.client_gone.wait() if call.nth_on_connection > 1 else await call.reader.read(1)

    engine.models = loading
    files.configure(engine, health=QUICK | {"failures": 1, "max_ejected_share": 1})
    async with running_proxy(files) as proxy:
        while not engine.polled.empty():
            engine.polled.get_nowait()
        for _ in range(6):
            await asyncio.wait_for(engine.polled.get(), WAIT_S)
            assert states(await proxy.ready()) == ["starting"]
        engine.models = answer
        await proxy.until(lambda status: states(status) == ["serving"])
        async with proxy.post() as response:
            assert response.status == 200
    assert not [line for line in log.lines("log") if line["level"] == "warning"]


async def test_an_engine_that_breaks_every_answer_is_ejected_and_comes_back(
    files: Files, engine: Engine, other: Engine
) -> None:
    async def break_off(call: Call) -> None:
        call.break_off()

    other.script = other.prober = break_off
    files.configure(engine, other, health=QUICK | {"failures": 2}, retries={"backoff_s": 0})
    async with running_proxy(files) as proxy:
        async with asyncio.timeout(WAIT_S):
            while "ejected" not in states(await proxy.ready()):
                async with proxy.post() as response:
                    assert response.status in (200, 502)
        other.script = other.prober = complete
        await proxy.until(lambda status: states(status) == ["serving", "serving"])


async def test_an_engine_without_gauges_is_used_like_any_other(
    files: Files, engine: Engine, other: Engine
) -> None:
    async def none(call: Call) -> None:
        await call.answer(404, {"detail": "Not Found"})

    engine.metrics = none
    files.configure(engine, other)
    async with running_proxy(files) as proxy:
        for _ in range(40):
            async with proxy.post() as response:
                assert response.status == 200
    assert engine.calls
    assert other.calls


async def test_a_model_that_an_engine_lacks_is_asked_for_elsewhere(
    files: Files, engine: Engine, other: Engine
) -> None:
    """It did not load an adapter: its refusals are quick, so it would look idle and attract all requests."""

    async def lacks(call: Call) -> None:
        await call.answer(404, {"error": {"message": "The model does not exist.", "code": "x"}})

    engine.script = lacks
    files.configure(engine, other)
    engine.cards = []
    async with running_proxy(files) as proxy:
        models = [{"id": "big"}]
        while not engine.calls:
            async with proxy.post() as response:
                await response.read()
        for _ in range(30):
            async with proxy.post() as response:
                assert response.status == 200
        assert len(engine.calls) == 1
        # It gets requests again as soon as it lists the model.
        engine.cards, engine.script = models, complete
        async with asyncio.timeout(WAIT_S):
            while len(engine.calls) == 1:
                async with proxy.post() as response:
                    assert response.status == 200


async def test_an_engine_that_refuses_the_proxy_is_probed(pair: Proxy, engine: Engine, other: Engine) -> None:
    async def refuse(call: Call) -> None:
        await call.answer(401, {"error": "Unauthorized"})

    engine.script = engine.prober = refuse
    async with asyncio.timeout(WAIT_S):
        while "ejected" not in states(await pair.ready()):
            async with pair.post() as response:
                assert response.status in (200, 401)
