"""Options of a run under which it would do less than it says."""

from __future__ import annotations

from typing import Any

from stack_preflight import load


def test_no_variable_leaves_the_checks_out(inventory: dict[str, Any]) -> None:
    assert load("run_options").refusal_of(inventory, []) == ""
    inventory["hostvars"]["api1"]["__stack_preflight_collect"] = True
    assert "__stack_preflight_collect is set by the inventory or by -e" in load("run_options").refusal_of(inventory, [])
