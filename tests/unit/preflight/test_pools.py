"""Pools of engines."""

from __future__ import annotations

from typing import Any

from preflight_inventory import change_engine, problems


def test_a_pool_that_no_proxy_knows(inventory: dict[str, Any]) -> None:
    change_engine(inventory, pool="long")
    assert problems(inventory) == [
        "engine 'one' is in pool 'long', which proxy_routing.pools does not have: say there which requests are its"
    ]
    inventory["hostvars"]["api1"]["proxy_routing"] = {"pools": {"long": {"prompt_tokens": 16000}}}
    assert problems(inventory) == []
