"""Timeouts and sizes of bodies on which tiers must agree."""

from __future__ import annotations

from typing import Any

from preflight_inventory import problems


def test_a_limit_of_bodies_that_only_the_web_hosts_have(inventory: dict[str, Any]) -> None:
    inventory["hostvars"]["web1"]["stack_body_limit_mb"] = 8
    (problem,) = problems(inventory)
    assert "16 MB to the proxy and 8 MB to nginx: set stack_body_limit_mb in group_vars/all.yml" in problem
