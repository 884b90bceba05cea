"""What playbooks/diagnose.yml says is wrong."""

from __future__ import annotations

import json
from typing import Any

from fleet_diagnosis import fleet_diagnosis, fleet_targets
from fleet_status import fleet_status
from test_fleet_status import engine, fleet, report, web, worker

NOW_S = 1_795_730_400.0


def status(**changed: dict[str, Any]) -> dict[str, Any]:
    hosts = {"api1": report(workers=[worker(address="10.0.0.2")])}
    found: dict[str, Any] = fleet_status(fleet(**{**hosts, **changed}), {"engine1": ["qwen"]}, NOW_S)
    return found


def look(**parts: Any) -> dict[str, Any]:
    return {"rc": 0, "stdout": json.dumps({"ways": {}, "open": [], "errors": {}, **parts})}


def looks(**changed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {**{host: look() for host in ("localhost", "web1", "api1", "engine1")}, **changed}


def test_each_tier_looks_at_the_next_one_only() -> None:
    engines, workers = {"engine1:qwen": ["10.0.0.5", 8000]}, {"api1:9000": ["10.0.0.2", 9000]}
    for host, reach, closed in (
        ("web1", workers, engines),
        ("api1", engines, {}),
        ("engine1", {}, workers),
        ("localhost", {}, {**engines, **workers}),
    ):
        targets = fleet_targets(status(), host, 1)
        assert (targets["reach"], targets["closed"]) == (reach, closed), host


def test_a_host_of_all_tiers_may_reach_itself() -> None:
    whole = report(engines=[engine()], workers=[worker(address="10.0.0.5")], web=web())
    found = {"lines": [], "attention": [], "reports": {"one": whole}}
    targets = fleet_targets(found, "one", 1)
    assert (sorted(targets["reach"]), targets["closed"]) == (["one:9000", "one:qwen"], {})


def test_nothing_is_wrong() -> None:
    ways = {"web1": look(ways={"api1:9000": 0.4}), "api1": look(ways={"engine1:qwen": 0.25})}
    assert fleet_diagnosis(status(), looks(**ways))["lines"] == [
        "nothing is wrong",
        "",
        "ways to the next tier",
        "  api1 to engine1:qwen: 0.2 ms",
        "  web1 to api1:9000: 0.4 ms",
    ]


def test_ways_that_are_closed_and_ports_that_are_open() -> None:
    found = fleet_diagnosis(
        status(),
        looks(
            api1=look(ways={"engine1:qwen": "no answer within 2 s"}),
            web1=look(ways={"api1:9000": 250.0}, open=["engine1:qwen"]),
            localhost=look(open=["engine1:qwen"]),
        ),
    )
    assert found["findings"] == [
        "api1 cannot reach engine1:qwen: no answer within 2 s; if it runs, open its port to the hosts of the tier in front (security groups)",
        "web1 needs 250 ms for a connection to api1:9000: are they in one region, and is one of them overloaded?",
        "engine1:qwen accepts connections from the controller, web1: its security group should admit the tier in front only",
    ]


def test_gpus_versions_and_hosts_that_did_not_look() -> None:
    gpu = {"index": "0", "used_percent": "1", "driver": "580.1", "uncorrected_errors": "2"}
    other = {**gpu, "driver": "570.9", "uncorrected_errors": "[N/A]"}
    found = fleet_diagnosis(
        status(
            engine1=report(engines=[engine()], gpus=[gpu]),
            engine2=report(engines=[], gpus=[other]),
        ),
        looks(engine2={"unreachable": True, "msg": "Connection refused"}),
    )
    assert found["findings"] == [
        "engine1: GPU 0 had 2 uncorrected memory errors since its driver was loaded: restart its engines, or replace the instance if they go on",
        "the GPUs' driver differs between hosts: 570.9 on engine2; 580.1 on engine1",
        "engine2 could not look around: Connection refused",
    ]


def test_errors_and_logs() -> None:
    told = look(errors={"vllm.log": {"count": 7, "last": ["ERROR \x1b[2J"]}}, logs={"vllm.log": "text"})
    found = fleet_diagnosis(status(), looks(engine1=told))
    assert found["lines"][-3:] == ["errors in the logs", "  engine1, vllm.log: 7, the last of them:", "    ERROR ?[2J"]
    assert found["logs"] == [{"name": "engine1-vllm.log", "text": "text"}]
