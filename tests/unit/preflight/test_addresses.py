"""Addresses of hosts."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import problems


@pytest.mark.parametrize(("host", "address"), [("api1", "10.0.0.3"), ("api1", "127.0.0.1"), ("api2", "10.0.0.2")])
def test_two_hosts_with_one_address(inventory: dict[str, Any], host: str, address: str) -> None:
    hostvars = inventory["hostvars"]
    inventory["groups"]["proxy"] = sorted({"api1", host})
    hostvars[host] = hostvars["api1"] | {"stack_address": address, "proxy_workers": 1}
    (problem,) = problems(inventory)
    assert f"have the same stack_address, {address}" in problem
    assert host in problem


def test_two_hosts_whose_one_address_is_written_in_two_ways(inventory: dict[str, Any]) -> None:
    inventory["hostvars"]["api1"]["stack_address"] = "2001:db8::1"
    inventory["hostvars"]["engine1"]["stack_address"] = "2001:0DB8:0::1"
    assert "hosts api1 and engine1 have the same stack_address" in problems(inventory)[0]
