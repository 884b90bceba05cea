"""Ports of a host's listeners."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import change_engine, problems


def test_two_engines_on_one_port(inventory: dict[str, Any]) -> None:
    engines = inventory["hostvars"]["engine1"]["vllm_engines"]
    engines[0]["gpus"] = [0]
    engines.append({**engines[0], "name": "two", "gpus": [1]})
    assert len(problems(inventory)) == 1
    assert "host engine1: port 8000 is used by engine one and engine two" in problems(inventory)[0]


def test_an_engine_on_a_proxy_workers_port(inventory: dict[str, Any]) -> None:
    inventory["groups"]["proxy"] = ["engine1"]
    inventory["hostvars"]["engine1"]["proxy_keys"] = inventory["hostvars"]["api1"]["proxy_keys"]
    change_engine(inventory, port=9001)
    assert "port 9001 is used by proxy worker 2 and engine one" in problems(inventory)[0]


def test_an_engine_on_the_port_of_an_admin_api(inventory: dict[str, Any]) -> None:
    inventory["groups"]["proxy"] = ["engine1"]
    inventory["hostvars"]["engine1"]["proxy_keys"] = inventory["hostvars"]["api1"]["proxy_keys"]
    change_engine(inventory, port=9501)
    inventory["hostvars"]["engine1"]["proxy_admin_address"] = "10.0.0.3"
    assert "port 9501 is used by the admin API of proxy worker 2 and engine one" in problems(inventory)[0]


@pytest.mark.parametrize(("address", "number"), [("127.0.0.1", 0), ("0.0.0.0", 1), ("::", 1)])
def test_a_port_at_two_addresses(inventory: dict[str, Any], address: str, number: int) -> None:
    inventory["groups"]["proxy"] = ["engine1"]
    inventory["hostvars"]["engine1"]["proxy_keys"] = inventory["hostvars"]["api1"]["proxy_keys"]
    inventory["hostvars"]["engine1"]["proxy_admin_address"] = address
    change_engine(inventory, port=9501)
    assert len(problems(inventory)) == number


@pytest.mark.parametrize(
    ("port", "said"),
    [(8000, "port 8000 is used by engine one and the engine beside one"), (80, "beside_port"), ("x", "beside_port")],
)
def test_a_second_engine_has_a_port_of_its_own(inventory: dict[str, Any], port: Any, said: str) -> None:
    change_engine(inventory, beside_port=port)
    (line,) = problems(inventory)
    assert said in line


def test_no_engine_gets_the_port_of_a_second_one(inventory: dict[str, Any]) -> None:
    engines = inventory["hostvars"]["engine1"]["vllm_engines"]
    change_engine(inventory, beside_port=8001)
    engines.append({"model": "/srv/models/two"})
    assert problems(inventory) == []
