"""Models that no engine of today's inventory serves."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import KEY, change_proxy, notices, problems


@pytest.mark.parametrize(
    "variables",
    [
        {"proxy_keys": [KEY | {"models": ["m", "night-model"]}]},
        {"proxy_keys": [KEY | {"limits": {"models": {"night-model": {"requests_per_minute": 1}}}}]},
        {"proxy_models": [{"name": "m"}, {"name": "night-model"}]},
        {"proxy_limits": {"models": {"night-model": {"requests_per_minute": 1}}}},
    ],
)
def test_a_model_whose_engines_are_stopped_is_a_notice(inventory: dict[str, Any], variables: dict[str, Any]) -> None:
    """The proxies take it; otherwise the key of somebody else could not be revoked while they are."""
    change_proxy(inventory, proxy_workers=1, **variables)
    assert problems(inventory) == []
    (notice,) = notices(inventory)
    assert "name 'night-model', which no engine of this inventory serves (they serve m)" in notice


def test_a_misspelt_model_is_a_problem_alone(inventory: dict[str, Any]) -> None:
    change_proxy(inventory, proxy_models=[{"name": "M"}])
    assert len(problems(inventory)) == 1
    assert notices(inventory) == []


def test_a_good_inventory_has_no_notice(inventory: dict[str, Any]) -> None:
    assert notices(inventory) == []


def test_a_model_whose_pool_may_be_at_zero_is_none(inventory: dict[str, Any]) -> None:
    night = {"name": "night-model", "cold_start_s": 400}
    change_proxy(
        inventory,
        proxy_models=[{"name": "m", "fallback": "night-model"}, night],
        proxy_keys=[KEY | {"models": ["m", "night-model"]}],
    )
    assert problems(inventory) == []
    assert notices(inventory) == []
