"""Choosing an engine: the bound on affinity, scores for keys, pools by size. Without sockets."""

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_proxy.config import Config, Routing
from inference_proxy.engines import rendezvous
from inference_proxy.engines.fleet import Engine, Fleet
from inference_proxy.engines.gauges import Gauges, Rank
from inference_proxy.scheduling import affinity, route
from jobs import a_config, a_fleet, a_job

CONFIG = a_config()
ROUTING = Routing()

weights = st.floats(0.25, 8)
loads = st.integers(0, 200_000)
engines = st.lists(st.tuples(weights, loads), min_size=1, max_size=12)
keys = st.integers(0, 2**32 - 1)


def fleet_of(entries: list[tuple[float, int]]) -> list[Engine]:
    fleet = a_fleet(*({"weight": weight} for weight, _ in entries))
    for engine, (_, load) in zip(fleet.engines, entries, strict=True):
        engine.tokens = load
    return fleet.engines


@given(engines, st.integers(1, 50_000), keys)
def test_affinity_holds_within_its_bound_only(entries: list[tuple[float, int]], cost: int, key: int) -> None:
    """sglang#14305: affinity without a bound made hot spots."""
    fleet = fleet_of(entries)
    chosen = route.choose(fleet, cost, key, ROUTING)
    after = (chosen.tokens + cost) / chosen.weight
    fair = (sum(engine.tokens for engine in fleet) + cost) / sum(engine.weight for engine in fleet)
    least = min((engine.tokens + cost) / engine.weight for engine in fleet)
    bound = max(ROUTING.affinity_bound * fair, ROUTING.affinity_free_tokens)
    assert after <= bound * (1 + 1e-9) or after == least


@given(st.integers(2, 6), keys, st.integers(10**6, 2**40))
def test_one_huge_request_does_not_lift_the_bound(count: int, key: int, huge: int) -> None:
    """It keeps one engine out; the key's requests spread over all others as they would without it."""
    fleet = fleet_of([(1.0, huge)] + [(1.0, 0)] * count)
    others = fleet[1:]
    for _ in range(400):
        route.choose(fleet, 3000, key, ROUTING).tokens += 3000
    loads = [engine.tokens for engine in others]
    assert sum(loads) == 400 * 3000
    assert max(loads) <= 3 * sum(loads) / count


@given(engines, st.integers(1, 50_000))
def test_without_a_key_the_least_loaded_is_chosen(entries: list[tuple[float, int]], cost: int) -> None:
    fleet = fleet_of(entries)
    chosen = route.choose(fleet, cost, None, ROUTING)
    assert (chosen.tokens + cost) / chosen.weight == min((e.tokens + cost) / e.weight for e in fleet)


@pytest.mark.complaint(12)
@given(st.integers(2, 8), keys, st.lists(st.integers(100, 3000), min_size=200, max_size=400))
def test_one_key_for_all_makes_no_hot_spot(count: int, key: int, costs: list[int]) -> None:
    """Unfinished requests: each engine ends within the bound, however popular the key is."""
    fleet = fleet_of([(1.0, 0)] * count)
    for cost in costs:
        route.choose(fleet, cost, key, ROUTING).tokens += cost
    fair = sum(costs) / count
    bound = max(ROUTING.affinity_bound * fair, ROUTING.affinity_free_tokens)
    assert max(engine.tokens for engine in fleet) <= bound + max(costs)


@given(st.integers(1, 8), st.lists(keys, min_size=1, max_size=50))
def test_an_engine_that_comes_takes_keys_and_moves_no_others(count: int, some: list[int]) -> None:
    before = fleet_of([(1.0, 0)] * count)
    after = fleet_of([(1.0, 0)] * (count + 1))
    for key in some:
        chosen = route.choose(after, 1, key, ROUTING)
        assert chosen.id in (route.choose(before, 1, key, ROUTING).id, after[-1].id)


def test_claims_are_in_proportion_to_weights() -> None:
    seeds = {f"host{n}:e": rendezvous.seed_of(f"host{n}:e") for n in range(4)}
    weights = {"host0:e": 1.0, "host1:e": 1.0, "host2:e": 2.0, "host3:e": 4.0}
    wins = Counter(
        max(seeds, key=lambda name: rendezvous.score(key, seeds[name], weights[name])) for key in range(8000)
    )
    for name, weight in weights.items():
        assert wins[name] == pytest.approx(1000 * weight, rel=0.15)


def test_an_idle_engine_with_a_full_cache_comes_second() -> None:
    one, two = fleet_of([(1.0, 1000), (1.0, 1000)])
    one.gauges = gauges(kv_cache_usage=0.95)
    two.gauges = gauges(kv_cache_usage=0.2)
    assert route.choose([one, two], 100, None, ROUTING) is two


def test_other_workers_requests_count() -> None:
    one, two = fleet_of([(1.0, 0), (1.0, 0)])
    one.in_flight = 2
    one.update_gauges(gauges(running=5, waiting=1), now=0)
    assert one.others == 4
    assert route.choose([one, two], 100, None, ROUTING) is two
    one.update_gauges(gauges(running=1), now=1)
    assert one.others == 0, "ours that it has not counted yet are no reason for less than none"


def gauges(**values: float) -> Gauges:
    return Gauges({b"": Rank(**values)})


# Keys.


def key_of(config: Config = CONFIG, **asked: Any) -> int | None:
    return affinity.key_of(a_job(**asked).asked, config)


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


def test_a_session_is_a_key_of_its_tenant() -> None:
    assert key_of(session="s") == key_of(session="s", messages=chat("something else"))
    assert key_of(session="s") != key_of(session="t")
    assert key_of(session="s", owner="alice") != key_of(session="s", owner="bob")


def test_a_conversation_keeps_its_key_until_it_has_doubled() -> None:
    first = "x" * 1100
    turns = [key_of(messages=chat(first, *["y" * 200] * turn)) for turn in range(12)]
    assert turns[0] is not None
    assert len(set(turns)) <= 3, "1, 2 and 4 blocks"
    assert turns[0] == turns[1] == turns[2]


def test_a_short_prompt_or_another_kind_of_work_has_no_key() -> None:
    assert key_of(messages=chat("hello")) is None
    assert key_of(path="/embeddings", messages=chat("x" * 5000)) is None
    assert key_of(a_config(routing={"prefix_blocks": 0}), messages=chat("x" * 5000)) is None


def test_tenants_that_share_no_cache_share_no_key() -> None:
    text = chat("x" * 5000)
    assert key_of(messages=text, owner="alice") != key_of(messages=text, owner="bob")
    shared = a_config(isolate_prefix_cache=False)
    assert key_of(shared, messages=text, owner="alice") == key_of(shared, messages=text, owner="bob")


def test_tools_come_before_what_is_said() -> None:
    tools = [{"name": "x" * 2100}]
    assert key_of(messages=chat("a"), tools=tools) == key_of(messages=chat("b"), tools=tools)
    assert key_of(messages=chat("a")) is None


# Pools.

POOLED: dict[str, Any] = {"routing": {"pools": {"long": {"prompt_tokens": 1000, "max_tokens": 4000}}}}


def in_pools(*pools: str | None) -> Fleet:
    return a_fleet(*({"pool": pool} for pool in pools), **POOLED)


@pytest.mark.parametrize(
    ("asked", "pool"),
    [
        ({"messages": chat("x" * 4100)}, "long"),
        ({"max_tokens": 4000}, "long"),
        ({"messages": chat("x" * 400), "max_tokens": 3999}, None),
        ({}, None),
    ],
)
def test_size_decides_the_pool(asked: dict[str, Any], pool: str | None) -> None:
    assert route.pool_of(a_job(**asked), a_config(**POOLED)) == pool


def test_requests_stay_in_their_pool_while_it_serves() -> None:
    fleet = in_pools("long", None, None)
    assert [e.id for e in fleet.serving("big", "long")] == ["host1:e"]
    assert [e.id for e in fleet.serving("big", None)] == ["host2:e", "host3:e"]


def test_without_engines_of_its_pool_a_request_goes_to_the_others() -> None:
    fleet = in_pools("long", None)
    fleet.engines[0].reachable = False
    assert [e.id for e in fleet.serving("big", "long")] == ["host2:e"]
    fleet.engines[0].reachable, fleet.engines[1].reachable = True, False
    assert [e.id for e in fleet.serving("big", None)] == ["host1:e"]


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        ({"max_tokens": 100, "n": 3}, 300),
        ({}, 512),
        ({"path": "/embeddings", "input": "x" * 4000}, 1000),
        ({"path": "/embeddings", "input": ""}, 1),
    ],
)
def test_what_a_request_counts(asked: dict[str, Any], tokens: int) -> None:
    prompt = len(json.dumps(asked.get("messages", asked.get("input", "")))) // 4
    assert route.cost_of(a_job(**asked), ROUTING) == pytest.approx(tokens, abs=prompt and 5)


# Engines that fail.


@given(st.lists(loads, min_size=1, max_size=6), st.integers(1, 50_000), keys)
def test_an_engine_that_fails_has_no_claims_and_does_not_look_idle(
    others: list[int], cost: int, key: int
) -> None:
    """However little it has to do, it counts as being as busy as the least busy of the others."""
    fleet = fleet_of([(1.0, 0), *((1.0, load) for load in others)])
    failing = frozenset(fleet[:1])
    near = route.choose(fleet, cost, key, ROUTING, failing)
    if min(others) + cost <= ROUTING.affinity_free_tokens:
        assert near is not fleet[0]
    chosen = Counter(route.choose(fleet, cost, None, ROUTING, failing).id for _ in range(64))
    assert chosen[fleet[0].id] < 64
    for engine in fleet[1:]:
        assert not chosen[engine.id] or engine.tokens == min(others)


def test_engines_that_all_fail_share_the_work_as_usual() -> None:
    fleet = fleet_of([(1.0, 100), (1.0, 0), (2.0, 50)])
    assert route.choose(fleet, 10, None, ROUTING, frozenset(fleet)) is fleet[1]
