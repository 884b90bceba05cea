"""Limits, and the store in which several workers count together."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import SECRET, change_proxy, problems


def limited(**limits: Any) -> list[dict[str, Any]]:
    return [{"name": "alice", "key": "0123456789abcdef" * 2, "limits": limits}]


@pytest.mark.parametrize(
    "limits",
    [
        {"proxy_keys": limited(requests_per_minute=9)},
        {"proxy_limits": {"default": {"tokens_per_day": 9}}},
        {"proxy_limits": {"models": {"m": {"tokens_per_day": 9}}}},
    ],
)
def test_limits_of_several_workers_need_a_store(inventory: dict[str, Any], limits: dict[str, Any]) -> None:
    change_proxy(inventory, proxy_workers=1, **limits)
    assert problems(inventory) == []
    change_proxy(inventory, proxy_workers=2)
    (problem,) = problems(inventory)
    assert "multiplied by the number of workers" in problem
    assert "proxy_store_host" in problem
    change_proxy(inventory, proxy_store_host="api1", proxy_store_password=SECRET)
    assert problems(inventory) == []
    change_proxy(inventory, proxy_store_host="", proxy_store_url="rediss://cache.example.com:6379/0")
    assert problems(inventory) == []


def test_limits_on_several_hosts_need_a_store_said_once(inventory: dict[str, Any]) -> None:
    change_proxy(inventory, proxy_workers=1, proxy_keys=limited(requests_per_minute=9))
    inventory["groups"]["proxy"].append("api2")
    inventory["hostvars"]["api2"] = inventory["hostvars"]["api1"] | {"stack_address": "10.0.0.9"}
    (problem,) = problems(inventory)
    assert "multiplied by the number of workers" in problem


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"proxy_store_host": "web1", "proxy_store_password": SECRET}, "not in the group proxy: name one of api1"),
        ({"proxy_store_host": "api1"}, "proxy_store_password has 0 characters"),
        (
            {"proxy_store_host": "api1", "proxy_store_password": SECRET, "proxy_store_port": 9000},
            "port 9000 is used by",
        ),
        (
            {"proxy_store_host": "api1", "proxy_store_password": SECRET, "proxy_store_url": "redis://x"},
            "give one of them",
        ),
        *(
            ({"proxy_store_url": url}, "write redis://host:port/database")
            for url in ("redis://:secret@x:1", "redis://x:port/0", "redis://x:65536", "redis://x:0/0")
        ),
        (
            {"proxy_limits": {"default": {"tokens_per_hour": 1}}},
            "proxy_limits.default has the unknown option 'tokens_per_hour': did you",
        ),
        (
            {"proxy_limits": {"models": {"M": {}}}},
            "proxy_limits names model 'M', which no engine serves: did you mean 'm'?",
        ),
        (
            {"proxy_limits": {"models": {"m": {"tokens_per_day": "9"}}}},
            "proxy_limits.models.m.tokens_per_day is '9', but must be",
        ),
    ],
)
def test_a_store_or_limits_that_cannot_be(inventory: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    change_proxy(inventory, proxy_workers=1, **changes)
    (problem,) = problems(inventory)
    assert said in problem
    assert "secret" not in problem
