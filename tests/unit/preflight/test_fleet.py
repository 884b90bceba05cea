"""EC2 instances, as the inventory plugin found them."""

from __future__ import annotations

from typing import Any

from preflight_inventory import notices, problems


def test_what_the_inventory_found_is_reported_once(inventory: dict[str, Any]) -> None:
    for host in inventory["hostvars"].values():
        host |= {"aws_problems": ["instance i-1 is in no tier"], "aws_notices": ["instance i-2 is called b-i-2"]}
    assert problems(inventory) == ["instance i-1 is in no tier"]
    assert notices(inventory) == ["instance i-2 is called b-i-2"]


def test_an_environment_in_group_vars_comes_too_late(inventory: dict[str, Any]) -> None:
    for host in inventory["hostvars"].values():
        host |= {"stack_environment": "production", "aws_tags": {"environment": "production"}}
    assert problems(inventory) == []
    inventory["hostvars"]["web1"]["stack_environment"] = "staging"
    (problem,) = problems(inventory)
    assert "host web1: stack_environment is staging, but its instance has Environment=production" in problem
