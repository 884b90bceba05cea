"""The arithmetic of limits: properties of both stores, and one store compared with the other."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_proxy.accounting.exchange import Exchange, usage
from inference_proxy.api.dialects import RESPONSES
from inference_proxy.api.endpoints import Endpoints
from inference_proxy.api.errors import ApiError, Unavailable
from inference_proxy.config import Config, EndpointClass, KeyConfig, LimitsConfig, ModelConfig
from inference_proxy.keys.authenticate import KeyRing
from inference_proxy.limits import scripts
from inference_proxy.limits.claims import Plans, changes, reserved_tokens, used_tokens
from inference_proxy.limits.hold import _part as part_of
from inference_proxy.limits.local_store import LocalStore
from inference_proxy.limits.shared_store import SharedStore
from inference_proxy.limits.store import SLOT_MS, SLOTS, Claim, Decision, Kind
from inference_proxy.request.job import Job, prepare
from inference_proxy.request.stream_usage import split
from inference_proxy.request.validate import validate
from store_server import Valkey

NOW = datetime(2026, 12, 31, 23, 59, 50, tzinfo=UTC)
MIDNIGHT_MS = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp() * 1000)


class Time:
    def __init__(self) -> None:
        self.s = NOW.timestamp()

    def __call__(self) -> float:
        return self.s


def make_local() -> tuple[LocalStore, Time]:
    time = Time()
    return LocalStore(time, time), time


def window(limit: int, cost: int = 1, counter: str = "w") -> Claim:
    return Claim(f"inference-proxy:{counter}", Kind.WINDOW, limit, cost)


def period(limit: int, cost: int = 1) -> Claim:
    return Claim("inference-proxy:p", Kind.PERIOD, limit, cost, MIDNIGHT_MS)


def places(limit: int) -> Claim:
    return Claim("inference-proxy:c", Kind.PLACES, limit, 1)


steps = st.lists(st.tuples(st.floats(0, 40), st.integers(1, 12)), max_size=60)


@given(steps, st.integers(1, 12))
def test_no_minute_sees_more_than_its_limit(steps: list[tuple[float, int]], limit: int) -> None:
    store, time = make_local()
    granted: list[tuple[float, int]] = []
    for pause, cost in steps:
        time.s += pause
        decision = store.reserve([window(limit, cost)], "l")
        if decision.granted:
            granted.append((time.s, cost))
    for start, _ in granted:
        assert sum(cost for at, cost in granted if start <= at < start + 60) <= limit


@given(steps, st.integers(1, 12))
def test_what_is_refused_fits_after_the_wait_that_was_told(
    steps: list[tuple[float, int]], limit: int
) -> None:
    store, time = make_local()
    for pause, cost in steps:
        time.s += pause
        claim = window(limit, cost)
        decision = store.reserve([claim], "l")
        (standing,) = decision.standings
        assert standing.used <= limit
        if not decision.granted:
            assert 0 < standing.wait_ms <= (SLOTS + 1) * SLOT_MS
            if cost <= limit:
                time.s += standing.wait_ms / 1000 + 0.001
                assert store.reserve([claim], "l").granted


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 80)), max_size=30), st.integers(1, 200))
def test_a_budget_is_what_was_used_once_all_is_settled(pairs: list[tuple[int, int]], limit: int) -> None:
    store, _ = make_local()
    used = 0
    for reserved, spent in pairs:
        claim = period(limit, reserved)
        decision = store.reserve([claim], "l")
        assert decision.granted == (used + reserved <= limit)
        if decision.granted:
            store.settle([claim], "l", decision.slot, [spent - reserved])
            used += spent
    assert store.reserve([period(10**6, 1)], "l").standings[0].used == used + 1


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=40))
def test_places_are_never_more_than_there_are(limit: int, comings: list[bool]) -> None:
    store, _ = make_local()
    inside: list[tuple[str, Decision]] = []
    for number, comes in enumerate(comings):
        if comes:
            decision = store.reserve([places(limit)], str(number))
            assert decision.granted == (len(inside) < limit)
            if decision.granted:
                inside.append((str(number), decision))
        elif inside:
            lease, decision = inside.pop()
            store.settle([places(limit)], lease, decision.slot, [0])
        assert len(inside) <= limit


@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 3))
def test_all_claims_are_taken_or_none(first: int, second: int, third: int) -> None:
    store, _ = make_local()
    both = [window(5, first + 1, "a"), period(5, second + 1), places(3)]
    for number in range(third):
        store.reserve([places(3)], str(number))
    before = [at.used for at in store.reserve([*both, window(0, 1, "z")], "x").standings]
    decision = store.reserve(both, "x")
    after = [at.used for at in decision.standings]
    if decision.granted:
        assert after == [first + 1, second + 1, third + 1]
    else:
        assert after == before[:3] == [0, 0, third]


def test_a_minute_gives_back_what_is_not_used_and_takes_what_is_used_more() -> None:
    store, time = make_local()
    claim = window(100, 60)
    decision = store.reserve([claim], "a")
    store.settle([claim], "a", decision.slot, [-50])
    again = store.reserve([claim], "b")
    assert again.granted
    assert again.standings[0].used == 70
    time.s += 59
    store.settle([claim], "b", again.slot, [25])
    time.s += 10
    assert store.reserve([window(100, 1)], "c").standings[0].used == 26, "used late, counted late"


def test_a_late_settlement_gives_nothing_back_to_another_minute() -> None:
    store, time = make_local()
    claim = window(100, 60)
    decision = store.reserve([claim], "a")
    time.s += 200
    store.reserve([claim], "b")
    store.settle([claim], "a", decision.slot, [-60])
    assert store.reserve([window(100, 1)], "c").standings[0].used == 61


def test_a_store_keeps_nothing_of_what_is_over() -> None:
    store, time = make_local()
    for number in range(1000):
        claims = [window(9, 1, f"w{number}"), Claim(f"p{number}", Kind.PERIOD, 9, 1, MIDNIGHT_MS), places(9)]
        decision = store.reserve(claims, "l")
        store.settle(claims, "l", decision.slot, [0, 0, 0])
    assert len(store) == 2001
    time.s += 200
    store.reserve([window(9, 1, "w")], "l")
    assert len(store) == 1


@pytest.fixture
def clock_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make scripts read the time from a key, which the test sets."""
    clock = "local now = tonumber(redis.call('GET', 'inference-proxy:now'))"
    for name in ("RESERVE", "SETTLE", "RENEW"):
        script = getattr(scripts, name)
        assert script.count(scripts.NOW) == 1
        monkeypatch.setattr(f"inference_proxy.limits.shared_store.{name}", script.replace(scripts.NOW, clock))


def operations() -> st.SearchStrategy[list[tuple[Any, ...]]]:
    claim = st.one_of(
        st.builds(window, st.integers(1, 40), st.integers(1, 20), st.sampled_from(["a", "b"])),
        st.builds(period, st.integers(1, 80), st.integers(1, 20)),
        st.builds(places, st.integers(1, 4)),
    )
    some = st.lists(claim, min_size=1, max_size=3, unique_by=lambda claim: claim.counter)
    reserve = st.tuples(st.just("reserve"), some)
    settle = st.tuples(st.just("settle"), st.integers(0, 50), st.integers(-25, 25))
    wait = st.tuples(st.just("wait"), st.integers(1, 20_000))
    return st.lists(st.one_of(reserve, settle, wait), max_size=25)


@pytest.mark.usefixtures("clock_of_tests")
def test_the_shared_store_counts_as_the_local_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Expiry follows the server's own clock, which does not move with the test's.
    monkeypatch.setattr("inference_proxy.limits.shared_store._LEASE_S", 10**6)
    with asyncio.Runner() as runner:
        server = Valkey(tmp_path)
        runner.run(server.start())

        async def compare(operations: list[tuple[Any, ...]]) -> None:
            store = SharedStore(LimitsConfig.model_validate({"store": server.settings()}).store)  # type: ignore[arg-type]
            await store.ready()
            try:
                await compare_with(store, operations)
            finally:
                await store.close()

        async def compare_with(store: SharedStore, operations: list[tuple[Any, ...]]) -> None:
            local, time = make_local()
            running: list[tuple[list[Claim], str, Decision]] = []
            await server.ask("FLUSHDB")
            await server.ask("SET", "inference-proxy:now", str(int(time.s * 1000)))
            for number, (what, *arguments) in enumerate(operations):
                if what == "wait":
                    time.s = (int(time.s * 1000) + arguments[0]) / 1000
                    await server.ask("SET", "inference-proxy:now", str(int(time.s * 1000)))
                elif what == "reserve":
                    decision = local.reserve(arguments[0], str(number))
                    assert await store.reserve(arguments[0], str(number)) == decision
                    if decision.granted:
                        running.append((arguments[0], str(number), decision))
                elif running:
                    taken, lease, decision = running.pop(arguments[0] % len(running))
                    change = [max(arguments[1], -claim.cost) for claim in taken]
                    for each in (local, store):
                        each.settle(taken, lease, decision.slot, change)

        @settings(max_examples=60, deadline=None)
        @given(operations())
        def same(operations: list[tuple[Any, ...]]) -> None:
            runner.run(compare(operations))

        try:
            same()
        finally:
            runner.run(server.stop())


CONFIG = Config(keys_file=Path("/k"), drained_dir=Path("/d"), isolate_prefix_cache=False)


def job(path: str = "/v1/chat/completions", key: dict[str, Any] | None = None, **fields: Any) -> Job:
    body = json.dumps({"model": "m", "messages": "x" * 40} | fields).encode()
    endpoint = Endpoints(CONFIG).find(path)
    assert endpoint is not None
    found = KeyRing([KeyConfig(name="alice", sha256=HASH, **(key or {}))]).find(b"secret")
    assert found is not None
    asked = validate(endpoint, found, {}, body)
    return prepare(asked, ModelConfig(name="m"), CONFIG, {}, "r")


HASH = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"


def claims(job: Job, config: LimitsConfig, now: datetime = NOW) -> list[Claim]:
    return Plans().of(job, config, now.timestamp()).claim(*reserved_tokens(job, config))


def costs(job: Job, **config: Any) -> dict[str, tuple[int, int]]:
    found = claims(job, LimitsConfig.model_validate(config))
    return {claim.counter.partition("}:")[2]: (claim.limit, claim.cost) for claim in found}


def test_a_key_without_limits_takes_nothing() -> None:
    assert costs(job()) == {}


def test_its_own_limits_come_before_the_general_ones_one_by_one() -> None:
    own = {"requests_per_minute": 5, "models": {"m": {"concurrent_requests": 2}}}
    general = {"default": {"requests_per_minute": 9, "tokens_per_day": 10_000}}
    more = {
        "models": {"m": {"concurrent_requests": 7, "requests_per_minute": 4}, "other": {"tokens_per_day": 1}}
    }
    assert costs(job(key={"limits": own}, max_tokens=100), **general, **more) == {
        "requests_per_minute": (5, 1),
        "tokens_per_day:2026-12-31": (10_000, 110),
        "m:requests_per_minute": (4, 1),
        "m:concurrent_requests": (2, 1),
    }


def test_periods_end_at_midnight_in_utc() -> None:
    config = LimitsConfig.model_validate({"default": {"tokens_per_day": 1, "tokens_per_month": 1}})
    ends = {
        now: [claim.ends_ms for claim in claims(job(), config, now)] for now in (NOW, NOW - timedelta(days=3))
    }
    assert ends[NOW] == [MIDNIGHT_MS, MIDNIGHT_MS]
    assert ends[NOW - timedelta(days=3)] == [MIDNIGHT_MS - 3 * 86_400_000, MIDNIGHT_MS]


TOKENS = {"default": {"tokens_per_minute": 5000}}


@pytest.mark.parametrize(
    ("path", "fields", "cost"),
    [
        ("/v1/chat/completions", {}, 10 + 1024),
        ("/v1/chat/completions", {"max_tokens": 50}, 60),
        ("/v1/chat/completions", {"max_tokens": 50, "n": 3}, 160),
        ("/v1/chat/completions", {"n": 100}, 5000),
        ("/v1/chat/completions", {"max_tokens": 9000}, 9010),
        ("/v1/embeddings", {"input": "x" * 398}, 110),
    ],
)
def test_what_is_reserved(path: str, fields: dict[str, Any], cost: int) -> None:
    assert costs(job(path, **fields), **TOKENS) == {"tokens_per_minute": (5000, cost)}


def test_what_needs_no_engine_time_takes_no_tokens() -> None:
    assert job("/tokenize").asked.endpoint.kind is EndpointClass.UTILITY
    assert costs(job("/tokenize"), **TOKENS) == {}


def exchange(*tail: bytes, relayed: int | None = None, **fields: Any) -> Exchange:
    made = Exchange("r", "POST", "/", engine="e", first_byte=1.0, status=200, **fields)
    made.tail.extend(tail)
    made.bytes_out = sum(map(len, tail)) if relayed is None else relayed
    return made


USAGE = b'{"usage":{"prompt_tokens":3,"completion_tokens":5}}'
EVENT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'


def test_the_end_of_an_answer_is_remembered_and_no_more() -> None:
    made = exchange()
    for _ in range(10):
        made.note_chunk(EVENT * 10_000 + USAGE + b"\n\n")
    assert made.usage() == (3, 5)
    assert sum(map(len, made.tail)) <= 32 * 1024, "a client that does not read makes large chunks"


@pytest.mark.parametrize(
    ("exchange", "error", "used"),
    [
        (exchange(USAGE), None, 8),
        (exchange(b'{"usage":{"prompt_tokens":7}}'), None, 7 + 7),
        (exchange(EVENT * 3, stream=True), None, 10 + 3),
        (exchange(EVENT, EVENT * 3, relayed=100 * len(EVENT), stream=True), asyncio.CancelledError(), 110),
        (exchange(b"x" * 40), asyncio.CancelledError(), 20),
        (Exchange("r", "POST", "/", engine="e", client_left=True), asyncio.CancelledError(), 10),
        (Exchange("r", "POST", "/", engine="e"), asyncio.CancelledError(), 0),
        (Exchange("r", "POST", "/", engine="e"), ApiError(502, "engine_lost", ""), 0),
        (Exchange("r", "POST", "/", engine="e", status=400), None, 0),
        (Exchange("r", "POST", "/", engine="e", status=200, outcome="engine_error"), None, 0),
        (Exchange("r", "POST", "/"), asyncio.CancelledError(), 0),
    ],
)  # fmt: skip
def test_what_was_used(exchange: Exchange, error: BaseException | None, used: int) -> None:
    assert sum(used_tokens(job(), exchange, error)) == used


TOOLS = b'data: {"response":{"tools":[{"sequence_number":9}],"usage":null},"sequence_number":0}\n\n'


def response_event(number: int, text: bytes = b"x") -> bytes:
    return b'event: x\ndata: {"delta":"%b","sequence_number":%d}\n\n' % (text, number)


@pytest.mark.parametrize(
    ("chunks", "least", "most"),
    [
        # The whole text is repeated in the events before the last.
        ([response_event(at) for at in range(500)] + [response_event(500, b"x" * 9000)] * 3, 500, 500),
        # The client's input is in the first event.
        ([TOOLS.replace(b"tools", b"t" * 9000), response_event(1)], 1, 1),
        ([TOOLS], 0, 0),
        ([response_event(10**8)], 1, 200),
        # Other APIs do not number events like that; nor do all engines.
        ([EVENT] * 20, 20, 20),
    ],
)
def test_a_response_that_is_left_early_counts_by_its_events(
    chunks: list[bytes], least: int, most: int
) -> None:
    made = Exchange("r", "POST", "/", dialect=RESPONSES, stream=True, engine="e", first_byte=0.0)
    for chunk in chunks:
        made.note_chunk(chunk)
        made.bytes_out += len(chunk)
    assert least <= used_tokens(job(), made, asyncio.CancelledError())[1] <= most


def test_who_is_turned_away_for_our_sake_has_taken_nothing() -> None:
    config = LimitsConfig.model_validate({"default": {"requests_per_minute": 9, "tokens_per_day": 5000}})
    asked = job(max_tokens=10)
    plan = Plans().of(asked, config, NOW.timestamp())
    taken = plan.claim(*reserved_tokens(asked, config))
    away = Unavailable("queue_full", "", retry_after_s=1)
    assert changes(plan, taken, Exchange("r", "POST", "/"), away) == [-1, -20]
    assert changes(plan, taken, Exchange("r", "POST", "/"), asyncio.CancelledError()) == [0, -20]


@given(st.integers(1, 10**6), st.integers(1, 64), st.integers(1, 10**6))
def test_the_parts_of_a_limit_are_no_more_than_the_whole(limit: int, workers: int, cost: int) -> None:
    (part,) = part_of([window(limit, cost)], workers)
    assert part.limit * workers <= max(limit, workers)
    assert (part.cost <= part.limit) == (cost <= limit), "who fits the whole fits a part"


others = st.lists(
    st.sampled_from([b'data: {"choices":[{"text":"x"}]}', b": ping", b"data: [DONE]"]), max_size=6
)


@given(others, others)
def test_only_the_event_of_usage_is_kept_from_a_client(before: list[bytes], after: list[bytes]) -> None:
    event = b'data: {"choices": [ ],"usage": {"prompt_tokens":3,"completion_tokens":5}}'
    chunk = b"\n\n".join([*before, event, *after, b""])
    kept, hidden = split(chunk)
    assert kept == b"\n\n".join([*before, *after, b""])
    assert usage(hidden) == (3, 5)
    quoted = json.dumps({"choices": [{"text": '"choices":[],"usage":{}'}]}).encode() + b"\n\n"
    assert split(quoted) == (quoted, b"")
