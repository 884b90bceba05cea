"""All checks together: one report of everything, whatever the values are."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from preflight_inventory import ROOT, change_engine, engine, found, key, problems
from stack_preflight import load

all_checks, report = load("checks"), load("messages").report


def test_a_good_inventory_has_no_problem(inventory: dict[str, Any]) -> None:
    assert problems(inventory) == []


def test_all_problems_are_in_one_report(inventory: dict[str, Any]) -> None:
    inventory["groups"]["nginx"] = []
    inventory["hostvars"]["api1"]["proxy_keys"][0]["key"] = "short"
    change_engine(inventory, model="hub/model")
    found = problems(inventory)
    assert len(found) == 3
    assert report(found).startswith("3 problems in the inventory; nothing was changed:\n  - ")


def test_a_problem_shared_by_all_proxies_is_told_once(inventory: dict[str, Any]) -> None:
    inventory["groups"]["proxy"].append("api2")
    inventory["hostvars"]["api1"]["proxy_keys"][0]["key"] = "short"
    inventory["hostvars"]["api2"] = inventory["hostvars"]["api1"] | {"stack_address": "10.0.0.9"}
    assert len(problems(inventory)) == 1


def test_the_example_that_is_shipped_is_right() -> None:
    variables: dict[str, Any] = {}
    for path in (ROOT / "group_vars").glob("*.yml"):
        variables |= yaml.safe_load(path.read_text()) or {}
    for name in ("proxy_keys", "proxy_admin_key"):
        variables.pop(name, None)  # they come from the vault
    variables |= {"stack_domain": "localhost", "proxy_workers": 1}
    assert found(**variables) == []


@pytest.mark.parametrize(
    "variables",
    [
        key(name=["a"]),
        key(priority=["x"]),
        key(models=[{"a": 1}, ["m"]]),
        engine(pool=["a"]),
        engine(name=["x"], served_model_name=["y"], port=None),
        {"proxy_models": [{"name": ["m"], "fallback": ["x"]}]},
        {"nginx_certbot_public_addresses": 5},
        {"stack_domain": "a..b"},
        {"stack_address": ["10.0.0.1"]},
        {"vllm_engines": "abc"},
        {"vllm_engines": [5]},
        {"proxy_routing": {"pools": {"": {"max_tokens": 5}}}},
    ],
)
def test_no_value_keeps_the_report_from_being_made(variables: dict[str, Any]) -> None:
    lines = found(**variables, vllm_version="x")
    assert len(lines) >= 2
    assert any("vllm_version is 'x'" in line for line in lines), "the other problems are told as well"
    assert not any("could not be made" in line for line in lines), lines


@pytest.mark.parametrize("checks", ["FORM", "CHECKS"])
def test_a_check_that_fails_says_where_and_not_with_what(monkeypatch: pytest.MonkeyPatch, checks: str) -> None:
    def check_it(*_: object) -> list[str]:
        raise KeyError("s3cret")

    monkeypatch.setattr(all_checks, checks, [check_it])
    lines = found()
    assert any("check_it could not be made: KeyError in test_checks.py, line " in line for line in lines)
    assert "s3cret" not in " ".join(lines)
