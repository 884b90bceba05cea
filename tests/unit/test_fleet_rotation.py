"""Which instances a drain means, and what nobody else would serve without them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fleet_rotation import fleet_rotation


def proxy(*engines: tuple[str, str, str]) -> dict[str, Any]:
    """The result of a proxy host, by (id, model, state) of each engine that its worker knows."""
    seen = [{"id": name, "models": [model], "state": state} for name, model, state in engines]
    return result(workers=[{"port": 9000, "ready": {"engines": seen}}], web=None)


def web(*workers: tuple[str, bool]) -> dict[str, Any]:
    return result(workers=[], web={"upstream": [{"id": name, "down": down} for name, down in workers]})


def result(**report: Any) -> dict[str, Any]:
    return {"rc": 0, "stdout": json.dumps(report)}


FLEET = {
    "api1": proxy(("engine1:a", "m", "serving"), ("engine2:a", "m", "serving"), ("engine1:b", "n", "serving")),
    "web1": web(("api1:9000", False), ("api2:9000", False)),
}


def test_all_instances_of_a_host() -> None:
    found = fleet_rotation(FLEET, ["engine1", "api1"])
    assert found["engines"] == {"engine1": ["engine1:a", "engine1:b"]}
    assert found["workers"] == {"api1": ["9000"]}
    assert found["unknown"] == []


def test_the_last_engine_of_a_model_and_not_the_other() -> None:
    assert fleet_rotation(FLEET, ["engine1"])["unserved"] == ["no other engine serves n, as api1 sees it"]
    assert fleet_rotation(FLEET, ["engine1"], "engine1:a")["unserved"] == []


def test_an_engine_that_is_out_does_not_count() -> None:
    fleet = FLEET | {"api1": proxy(("engine1:a", "m", "serving"), ("engine2:a", "m", "ejected"))}
    assert fleet_rotation(fleet, ["engine1"])["unserved"] == ["no other engine serves m, as api1 sees it"]


def test_both_engines_at_once() -> None:
    both = fleet_rotation(FLEET, ["engine1", "engine2"], "engine1:a, engine2:a")
    assert both["engines"] == {"engine1": ["engine1:a"], "engine2": ["engine2:a"]}
    assert both["unserved"] == ["no other engine serves m, as api1 sees it"]


def test_the_last_worker_of_a_web_host() -> None:
    assert fleet_rotation(FLEET, ["api1"])["unserved"] == []
    alone = FLEET | {"web1": web(("api1:9000", False), ("api2:9000", True))}
    assert fleet_rotation(alone, ["api1"])["unserved"] == ["nginx on web1 would have no proxy worker left"]


def test_instances_and_hosts_that_are_not_there() -> None:
    found = fleet_rotation(FLEET, ["engine1", "engine9"], "engine1:c")
    assert found["unknown"] == [
        "engine1:c is no engine and no proxy worker of these hosts: engine1:a, engine1:b",
        "engine9 has no engine that a proxy knows and no proxy worker that nginx knows, so there is nothing to take out",
    ]
    assert (found["engines"], found["workers"]) == ({}, {})


def test_a_host_that_does_not_answer_is_left_out() -> None:
    fleet = FLEET | {"api2": {"unreachable": True, "msg": "timed out"}}
    assert fleet_rotation(fleet, ["engine2"])["engines"] == {"engine2": ["engine2:a"]}


def test_the_second_engine_of_one_that_is_named_is_out_with_it() -> None:
    fleet = FLEET | {
        "api1": proxy(("engine1:a", "m", "serving"), ("engine1:a.beside", "m", "absent"), ("engine1:b", "n", "serving"))
    }
    assert fleet_rotation(fleet, ["engine1"], "engine1:a")["engines"] == {"engine1": ["engine1:a", "engine1:a.beside"]}
    assert fleet_rotation(fleet, ["engine1"])["unserved"] == [
        "no other engine serves m, as api1 sees it",
        "no other engine serves n, as api1 sees it",
    ]


@pytest.mark.parametrize(
    ("hosts", "engines"),
    [
        (["gpu2"], {"gpu2": ["gpu1:big"]}),
        (["gpu1"], {"gpu1": ["gpu1:big"]}),
        (["gpu2", "gpu1"], {"gpu1": ["gpu1:big"]}),
        (["gpu3", "gpu2"], {"gpu3": ["gpu1:big"]}),
    ],
)
def test_a_drain_of_any_host_of_a_cluster_is_a_drain_of_its_engine(
    hosts: list[str], engines: dict[str, list[str]]
) -> None:
    fleet = {"api1": proxy(("gpu1:big", "m", "serving"), ("other:a", "m", "serving"))}
    ranks = {"gpu1": ["gpu1:big"], "gpu2": ["gpu1:big"], "gpu3": ["gpu1:big"], "gpu4": ["gpu4:unknown"]}
    found = fleet_rotation(fleet, hosts, "", ranks)
    assert found["engines"] == engines
    assert (found["unknown"], found["unserved"]) == ([], [])
    assert fleet_rotation(fleet, [*hosts, "gpu4"], "", ranks)["unknown"][0].startswith(
        "gpu4 has no engine that a proxy"
    )
    assert "is no engine" in fleet_rotation(fleet, hosts, "gpu2:big", ranks)["unknown"][0]
