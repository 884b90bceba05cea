"""Groups and hosts."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import problems


@pytest.mark.parametrize("group", ["vllm", "proxy", "nginx"])
def test_an_empty_group_names_the_tag_that_fills_it(inventory: dict[str, Any], group: str) -> None:
    inventory["groups"][group] = []
    assert any(
        f"group {group} has no host" in problem and f"Tier={group}" in problem for problem in problems(inventory)
    )


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_every_address_is_none_of_a_host(inventory: dict[str, Any], address: str) -> None:
    inventory["hostvars"]["engine1"]["stack_address"] = address
    (problem,) = problems(inventory)
    assert f"host engine1: stack_address is {address}, which is every address" in problem


@pytest.mark.parametrize(
    ("group", "host", "said"),
    [
        ("vlm", "engine2", "group vlm has engine2, of no tier: did you mean vllm?"),
        ("Proxy", "api2", "group Proxy has api2, of no tier: did you mean proxy?"),
        ("vlm", "api1", "group vlm has api1, which vllm lacks: did you mean vllm?"),
        ("vlm", "engine1", None),
        ("vllm2", "engine1", None),
        *((group, "lb1", None) for group in ("haproxy", "proxysql", "env_proxy", "webproxy", "nginx_lb", "llm")),
        ("linux", "bastion", None),
        ("proxmox", "bastion", None),
    ],
)
def test_a_host_in_a_misspelt_group(inventory: dict[str, Any], group: str, host: str, said: str | None) -> None:
    inventory["groups"][group] = [host]
    inventory["hostvars"].setdefault(host, {})
    assert problems(inventory) == ([said] if said else [])
