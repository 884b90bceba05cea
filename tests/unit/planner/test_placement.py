"""Which GPUs engines get, for hosts and engines of all kinds."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from stack_plan import load

placement = load("placement")


def some_engines(chance: random.Random, number: int) -> list[dict[str, Any]]:
    """Engines that take a number of GPUs, some of which name them, and some with a share of their memory."""
    engines: list[dict[str, Any]] = []
    for position in range(chance.randint(1, 6)):
        engine: dict[str, Any] = {"name": f"e{position}", "takes": chance.randint(1, 4)}
        if chance.random() < 0.3:
            engine["args"] = {"gpu-memory-utilization": chance.choice([0.3, "0.5", 0.7])}
        if chance.random() < 0.3:
            engine["gpus"] = chance.sample(range(number), chance.randint(1, number))
        engines.append(engine)
    return engines


def placed(engines: list[dict[str, Any]], number: int) -> tuple[dict[str, list[int]], list[str]]:
    return placement.place(engines, number, lambda engine, left: engine["takes"])


@pytest.mark.parametrize("seed", range(200))
def test_no_gpu_is_given_twice_and_an_engine_more_at_the_end_moves_none(seed: int) -> None:
    chance = random.Random(seed)
    number = chance.choice([1, 2, 4, 8])
    engines = some_engines(chance, number)
    found, problems = placed(engines, number)
    derived = [engine for engine in engines if "gpus" not in engine]
    # Each has what it takes, or there is a problem.
    assert len(problems) == sum(engine["name"] not in found for engine in derived)
    for engine in derived:
        gpus = found.get(engine["name"])
        assert gpus is None or (gpus == sorted(set(gpus)) and len(gpus) == engine["takes"] and max(gpus) < number)
    # What operators name may overlap, which preflight refuses; what is derived overlaps with nothing.
    shares: Counter[int] = Counter()
    for engine in engines:
        for gpu in found.get(engine["name"], ()):
            shares[gpu] += placement.share(engine)
    for engine in derived:
        assert all(shares[gpu] <= 1.000001 for gpu in found.get(engine["name"], ())), (engines, found)
    assert placed(engines, number) == (found, problems)
    more, _ = placed([*engines, {"name": "more", "takes": 1}], number)
    assert {name: gpus for name, gpus in more.items() if name != "more"} == found


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"gpu-memory-utilization": 0.45}, None),
        ({"gpu_memory_utilization": "0.5"}, None),
        ({"gpu-memory-utilization": 0.6}, "each takes 0.6 of a GPU's memory"),
        ({}, "each takes all of a GPU's memory"),
        # vLLM starts only where its share is free, whatever its cache takes.
        ({"kv-cache-memory-bytes": 10**9}, "each takes all of a GPU's memory"),
    ],
)
def test_two_engines_fit_where_a_second_one_serves_during_a_roll(args: dict[str, Any], said: str | None) -> None:
    found, problems = placed([{"name": "one", "takes": 1, "args": args, "beside_port": 8100}], 4)
    assert found == ({"one": [0]} if said is None else {})
    assert len(problems) == (said is not None)
    assert said is None or said in problems[0]


def test_a_second_engine_leaves_no_room_for_a_third() -> None:
    share = {"gpu-memory-utilization": 0.4}
    engines = [
        {"name": "one", "takes": 1, "args": share, "beside_port": 8100},
        {"name": "two", "takes": 1, "args": share},
    ]
    assert placed(engines, 2)[0] == {"one": [0], "two": [1]}
    engines[0]["gpus"] = [0]
    assert placed(engines, 2)[0] == {"one": [0], "two": [1]}


@pytest.mark.parametrize(
    ("args", "gpus"),
    [
        ({}, 1),
        ({"tensor_parallel_size": 2, "pipeline-parallel-size": "2"}, 4),
        ({"tensor-parallel-size": 8, "nnodes": 2}, 4),
        ({"data-parallel-size": 4, "data-parallel-size-local": 2}, 2),
    ],
)
def test_gpus_over_which_an_engine_spreads_by_its_own_options(args: dict[str, Any], gpus: int) -> None:
    assert placement.spread(args) == gpus


def test_a_size_that_is_no_number_is_a_problem() -> None:
    with pytest.raises(load("flags").PlanError, match="tensor-parallel-size is 'four'"):
        placement.spread({"tensor-parallel-size": "four"})


@pytest.mark.parametrize("absurd", [-1, 0, 7, "nan", "-inf", "much", [0.5]])
def test_a_share_that_is_no_part_of_a_gpu_makes_no_room_for_another_engine(absurd: Any) -> None:
    engines = [{"name": name, "takes": 1, "args": {"gpu-memory-utilization": absurd}} for name in ("one", "two")]
    found, problems = placed(engines, 1)
    assert found == {"one": [0]}
    assert len(problems) == 1
