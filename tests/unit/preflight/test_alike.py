"""Variables that the hosts of a tier must have alike."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import SECRET, problems


@pytest.mark.parametrize(
    ("group", "name", "values"),
    [
        ("proxy", "proxy_keys", [[{"name": "a", "key": SECRET}], [{"name": "b", "key": SECRET}]]),
        ("proxy", "proxy_limits", [{}, {"tokens_without_cap": 5}]),
        ("proxy", "proxy_api_versions", [["v1"], ["v2"]]),
        ("proxy", "proxy_custom_endpoints", [[], [{"path": "/a", "answer": {"body": 1}}]]),
        ("proxy", "proxy_models", [[{"name": "m", "aliases": ["x"]}], []]),
        ("proxy", "proxy_store_url", ["redis://x", "redis://y"]),
        ("proxy", "proxy_store_password", ["", SECRET]),
        ("nginx", "nginx_certbot_allow_cidrs", [["10.0.0.0/8"], []]),
        ("nginx", "nginx_certbot_acme_staging", [True, False]),
    ],
)
def test_hosts_of_a_tier_that_differ(inventory: dict[str, Any], group: str, name: str, values: list[Any]) -> None:
    (first,) = inventory["groups"][group]
    inventory["groups"][group] = [first, "z1"]
    inventory["hostvars"]["z1"] = inventory["hostvars"][first] | {"stack_address": "10.0.0.99"}
    assert problems(inventory) == []
    for host, value in zip((first, "z1"), values, strict=True):
        inventory["hostvars"][host][name] = value
    (problem,) = problems(inventory)
    assert f"{name} of z1 is not that of {first}" in problem
    assert SECRET not in problem
