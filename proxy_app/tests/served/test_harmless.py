"""Whatever a client or an engine sends, others are served as before, and no resource stays taken."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import WAIT_S, Call, Engine, Script, complete
from harness import KEY, SMALL_KEY, Files, Proxy, running_proxy, sha256
from inference_proxy.api.endpoints import JSON, TABLE, Endpoint
from store_server import running_valkey

pytestmark = pytest.mark.anyio

_MOST_CHARACTERS = 200_000
PLACES = 3
BUDGET = 2**50
KEYS = [
    {"name": "alice", "sha256": sha256(KEY), "limits": {"concurrent_requests": PLACES}},
    {
        "name": "mallory",
        "sha256": sha256(SMALL_KEY),
        "priority": "batch",
        "limits": {"concurrent_requests": 8, "tokens_per_day": BUDGET, "tokens_per_minute": BUDGET},
    },
]

# Clients' JSON as text, because Python would not write most of it.
DIGITS = [1, 18, 19, 20, 40, 308, 309, 400, 4300, 4301, 9000]
numbers = st.one_of(
    st.sampled_from(
        ["0", "-1", "1", "2", "128", "129", "1e400", "-1e400", "1e308", "1.5", "100.0", "1e-400"]
    ),
    st.sampled_from(
        [str(2**31 - 1), str(2**53 + 1), str(2**63 - 1), str(2**63), str(2**64), "NaN", "-0", "1E5"]
    ),
    st.sampled_from(DIGITS).map(lambda digits: "9" * digits),
    st.sampled_from(DIGITS).map(lambda digits: "-1" + "0" * digits),
)
scalars = st.one_of(
    numbers,
    numbers.map(lambda number: f'"{number}"'),
    st.sampled_from(
        ["null", "true", "false", '""', '"a"', '"\\ud800"', '"\\u0000"', "{}", "[]", '"' + "x" * 5000 + '"']
    ),
)
NESTED = ["content", "include_usage", "role", "text", "url", "x"]


def as_list(items: list[str]) -> str:
    return f"[{','.join(items)}]"


def as_object(fields: dict[str, str]) -> str:
    return "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"


def repeated(item: str, times: int) -> str:
    """Up to a size: lists of lists of lists would fill the machine's memory."""
    return as_list([item] * min(times, 1 + _MOST_CHARACTERS // len(item)))


values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(as_list),
        st.dictionaries(st.sampled_from(NESTED), inner, max_size=3).map(as_object),
        st.builds(repeated, inner, st.sampled_from([2, 300])),
    ),
    max_leaves=4,
)
OTHER_FIELDS = {"best_of", "stream_options", "user", "metadata", "seed", "logprobs", "temperature"}
FIELDS = sorted(OTHER_FIELDS.union(*(row.prompt + row.refused for row in TABLE)))
HEADERS = [
    "x-session-id",
    "x-request-id",
    "traceparent",
    "tracestate",
    "x-forwarded-for",
    "x-stainless-timeout",
]


class Odd(NamedTuple):
    """A request. `leaves`: the client leaves before its answer is there."""

    path: str
    body: str
    headers: dict[str, str]
    leaves: bool


def body_of(stream: str, limits: dict[str, str], fields: dict[str, str]) -> str:
    return as_object({"model": '"big"', "stream": stream} | fields | limits)


def path_of(row: Endpoint) -> str:
    return ("/v1" if row.versioned else "") + row.path


GENERATING = [row for row in TABLE if row.cap]
LIMITS = sorted({"n"}.union(*(row.cap for row in GENERATING)))
requests = st.builds(
    Odd,
    path=st.sampled_from([row for row in TABLE if row.body is JSON] + 3 * GENERATING).map(path_of),
    body=st.builds(
        body_of,
        st.sampled_from(["true", "false"]),
        st.dictionaries(st.sampled_from(LIMITS), numbers, max_size=2),
        st.dictionaries(st.sampled_from(FIELDS), values, max_size=2),
    ),
    headers=st.dictionaries(st.sampled_from(HEADERS), numbers, max_size=2),
    leaves=st.sampled_from([False, False, False, True]),
)


# What an engine answers to them.
async def refuse(call: Call) -> None:
    detail = f'{{"message":"no","code":{"9" * 400},"param":{{"loc":1}}}}'
    await call.answer(400, f'{{"error":{detail}}}'.encode())


async def refuse_oddly(call: Call) -> None:
    await call.answer(422, b'{"detail":[{"loc":7,"msg":1},{"loc":null},3]}')


async def be_full(call: Call) -> None:
    # Respected for at most a minute.
    await call.answer(503, {"error": "full"}, f"retry-after: {'0' * 5000}")


async def fail(call: Call) -> None:
    await call.answer(500, b"\xff" * 10)


async def break_off(call: Call) -> None:
    call.break_off()


async def break_in_the_middle(call: Call) -> None:
    await call.start_stream()
    await call.event('{"choices":[{"delta":{"content":"x"}}]}')
    call.break_off()


def counting(number: str) -> Script:
    async def answer(call: Call) -> None:
        usage = f'"usage":{{"prompt_tokens":{number},"completion_tokens":{number},"input_tokens":{number}}}'
        if b'"stream":true' not in call.body:
            return await call.answer(200, f'{{"choices":[],{usage}}}'.encode())
        await call.start_stream()
        await call.event(f'{{"choices":[],{usage}}}')
        await call.event("[DONE]")
        await call.end_stream()

    return answer


async def say_nothing(call: Call) -> None:
    await call.client_gone.wait()


scripts = st.one_of(
    st.sampled_from([complete, refuse, refuse_oddly, be_full, fail, break_off, break_in_the_middle]),
    numbers.map(counting),
)
GAUGES = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "iteration_tokens_total_sum"]


@contextlib.asynccontextmanager
async def running_store(directory: Path, kind: str) -> AsyncIterator[dict[str, Any]]:
    if kind == "local":
        yield {}
    else:
        async with running_valkey(directory) as valkey:
            yield {"store": valkey.settings()}


@pytest.fixture(params=["local", "store"])
async def proxy(
    request: pytest.FixtureRequest, tmp_path: Path, files: Files, engine: Engine, other: Engine
) -> AsyncIterator[Proxy]:
    """Two engines with one place each, so that requests queue.

    Neither is ejected for what its script does.
    """
    files.write(files.keys, KEYS)
    (tmp_path / "store").mkdir()
    engine.cards[0]["max_model_len"] = 4096
    async with running_store(tmp_path / "store", request.param) as limits:
        files.configure(
            engine,
            other,
            admin=files.admin(),
            limits=limits,
            queue={"max_in_flight": 1, "max_wait_s": WAIT_S},
            health={"failures": 10**6},
            retries={"backoff_s": 0},
        )
        async with running_proxy(files) as running:
            yield running


async def send(proxy: Proxy, odd: Odd) -> None:
    """Any valid answer is accepted, except an internal error of the proxy."""
    with contextlib.suppress(aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError):
        async with proxy.post(odd.path, data=odd.body, key=SMALL_KEY, headers=odd.headers) as response:
            text = await response.text(errors="replace")
            assert response.status < 600
            assert "internal_error" not in text, (odd, text)
            if response.status >= 400:
                assert "error" in json.loads(text), (odd, text)


async def ordinary(proxy: Proxy) -> int:
    async with proxy.post(body={"messages": "ordinary", "max_tokens": 5}) as response:
        await response.read()
        return int(response.status)


async def nothing_is_taken(proxy: Proxy) -> None:
    """Neither at an engine, nor in the queue, nor of a limit."""
    await proxy.idle()
    status = await proxy.ready()
    assert (status["http"], status["fault"]) == (200, None)
    engines = (await proxy.admin.get("/admin/engines"))["engines"]
    assert [(e["in_flight"], e["outstanding_tokens"], e["state"]) for e in engines] == [(0, 0, "serving")] * 2
    assert (await proxy.admin.get("/admin/queues"))["queues"] == []
    metrics = await proxy.admin.metrics()
    left = {name: n for name, n in metrics.items() if "_in_flight" in name or "queue_waiting" in name}
    assert not any(left.values()), left
    assert metrics["inference_proxy_faults"] == metrics["inference_proxy_limits_store_away"] == 0


async def budget(proxy: Proxy) -> int:
    """Mallory's remaining tokens, from a request that uses none."""
    async with proxy.post(body={"messages": "probe", "max_tokens": 0}, key=SMALL_KEY) as response:
        return int(response.headers["x-ratelimit-remaining-tokens"])


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(odd=st.lists(requests, min_size=1, max_size=4), script=scripts)
async def test_odd_requests_harm_nobody(
    proxy: Proxy, engine: Engine, other: Engine, odd: list[Odd], script: Script
) -> None:
    async def by_whose_it_is(call: Call) -> None:
        await (complete if b"ordinary" in call.body else script)(call)

    engine.script = other.script = by_whose_it_is
    tasks = [asyncio.create_task(send(proxy, one)) for one in odd]
    others = [asyncio.create_task(ordinary(proxy)) for _ in range(PLACES)]
    await asyncio.sleep(0)
    for one, task in zip(odd, tasks, strict=True):
        if one.leaves:
            task.cancel()
    assert await asyncio.gather(*others) == [200] * PLACES
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result
    await nothing_is_taken(proxy)
    # All of alice's places are free, at the same time.
    assert await asyncio.gather(*(ordinary(proxy) for _ in range(PLACES))) == [200] * PLACES


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(
    odd=st.lists(requests, min_size=1, max_size=3), script=st.sampled_from([refuse, refuse_oddly, be_full])
)
async def test_what_engines_refuse_costs_no_tokens(
    proxy: Proxy, engine: Engine, other: Engine, odd: list[Odd], script: Script
) -> None:
    engine.script = other.script = script
    before = await budget(proxy)
    await asyncio.gather(*(send(proxy, one) for one in odd))
    await nothing_is_taken(proxy)
    assert await budget(proxy) == before


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(odd=st.lists(requests, min_size=1, max_size=4))
async def test_clients_that_leave_take_nothing_along(
    proxy: Proxy, engine: Engine, other: Engine, odd: list[Odd]
) -> None:
    """Also clients whose requests were queued."""
    engine.script = other.script = say_nothing
    tasks = [asyncio.create_task(send(proxy, one)) for one in odd]
    await proxy.until(lambda status: status["in_flight"] >= sum(not task.done() for task in tasks))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await nothing_is_taken(proxy)


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(gauges=st.dictionaries(st.sampled_from(GAUGES), numbers), length=numbers, odd=requests)
async def test_what_engines_say_of_themselves_harms_nobody(
    proxy: Proxy, engine: Engine, other: Engine, gauges: dict[str, str], length: str, odd: Odd
) -> None:
    """One of them reports absurd numbers: the other serves."""

    async def models(call: Call) -> None:
        await call.answer(
            200, f'{{"data":[{{"id":"big","max_model_len":{length},"created":{length}}}]}}'.encode()
        )

    async def metrics(call: Call) -> None:
        await call.answer(200, "".join(f"vllm:{name} {number}\n" for name, number in gauges.items()).encode())

    engine.script = other.script = complete
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "models", models)
        patch.setattr(engine, "metrics", metrics)
        for _ in range(2):
            engine.scraped = asyncio.Queue()
            engine.polled = asyncio.Queue()
            await asyncio.wait_for(engine.polled.get(), WAIT_S)
        await send(proxy, odd)
        assert await asyncio.gather(*(ordinary(proxy) for _ in range(PLACES))) == [200] * PLACES
        assert (await proxy.ready())["fault"] is None
    await proxy.until(lambda status: all(engine["state"] == "serving" for engine in status["engines"]))
    await nothing_is_taken(proxy)
