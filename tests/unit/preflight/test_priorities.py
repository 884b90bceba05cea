"""Classes of priority."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import ENGINE, KEY, found

URGENT = {"default": {}, "urgent": {"engine_priority": -5}}
TAKES = {"args": {"scheduling_policy": "priority"}}
OTHER = ENGINE | {"name": "two", "port": 8001, "served_model_name": "n", "gpus": [1]}


def said(key: dict[str, Any], *engines: dict[str, Any], **variables: Any) -> list[str]:
    """Of a key, engines and variables of all hosts."""
    first, *others = engines or ({},)
    own = [ENGINE | {"gpus": [0]} | first, *(OTHER | other for other in others)]
    return found(proxy_keys=[KEY | key], proxy_workers=1, vllm_engines=own, **{"proxy_priorities": URGENT} | variables)


def test_an_engine_that_takes_no_priorities_gets_none() -> None:
    (line,) = said({"priority": "urgent"})
    assert (
        "proxy_priorities.urgent has engine_priority -5, but engine 'one' of engine1 does not take priorities" in line
    )
    assert "set scheduling-policy: priority in vllm_args" in line
    (line,) = said({}, proxy_priorities={"default": {"engine_priority": 10}})
    assert "proxy_priorities.default has engine_priority 10" in line
    (line,) = said({"priority": "urgent"}, TAKES, {})
    assert "engine 'two' of engine1" in line
    fallback = {"proxy_models": [{"name": "m", "fallback": "n"}]}
    assert len(said({"priority": "urgent", "models": ["m"]}, TAKES, {}, **fallback)) == 1


@pytest.mark.parametrize(
    ("key", "engines", "variables"),
    [
        ({}, (), {}),
        ({"priority": "urgent"}, (TAKES,), {}),
        ({"priority": "urgent"}, (), {"vllm_args": {"scheduling-policy": "priority"}}),
        # It never asks for the other engine's model.
        ({"priority": "urgent", "models": ["m"]}, (TAKES, {}), {}),
        ({"priority": "urgent"}, (), {"proxy_priorities": {"default": {}, "urgent": {"engine_priority": 0}}}),
        ({"priority": "urgent"}, (), {"proxy_priorities": {"default": {}, "urgent": {"share": 9}}}),
    ],
)
def test_a_priority_that_reaches_no_such_engine_is_nothing(
    key: dict[str, Any], engines: tuple[dict[str, Any], ...], variables: dict[str, Any]
) -> None:
    assert said(key, *engines, **variables) == []
