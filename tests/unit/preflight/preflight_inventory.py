"""A good inventory for the tests of preflight, and what preflight says of it after changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from stack_preflight import load

ROOT = Path(__file__).resolve().parents[3]
checks, inventory_module = load("checks"), load("inventory")
OPTIONS = load("roles").role_options()
SECRET = "0123456789abcdef" * 2
KEY = {"name": "alice", "key": SECRET}
ENGINE = {"name": "one", "model": "/srv/m", "served_model_name": "m", "port": 8000}
GOOD: dict[str, Any] = {
    "groups": {"vllm": ["engine1"], "proxy": ["api1"], "nginx": ["web1"]},
    "hostvars": {
        "engine1": {"stack_address": "10.0.0.3", "vllm_engines": [ENGINE]},
        "api1": {"stack_address": "10.0.0.2", "proxy_keys": [KEY]},
        "web1": {"stack_address": "127.0.0.1", "stack_domain": "localhost"},
    },
}


def seen(inventory: dict[str, Any], sources: tuple[str, ...] = ()) -> Any:
    """The inventory as the checks read it."""
    return inventory_module.Inventory(inventory["groups"], inventory["hostvars"], OPTIONS, sources)


def problems(inventory: dict[str, Any], sources: tuple[str, ...] = ()) -> list[str]:
    """The problems that all checks find."""
    found: list[str] = checks.all_problems(seen(inventory, sources))
    return found


def notices(inventory: dict[str, Any]) -> list[str]:
    """What is said of an inventory without being a problem."""
    found: list[str] = checks.all_notices(seen(inventory))
    return found


def found(**variables: Any) -> list[str]:
    """The problems of the good inventory with these variables for all hosts."""
    return problems(changed(**variables))


def said(**variables: Any) -> list[str]:
    """The problems of the good inventory with these variables for all hosts, and whatever else is said of it."""
    return found(**variables) + notices(changed(**variables))


def changed(**variables: Any) -> dict[str, Any]:
    """The good inventory with these variables for all hosts."""
    inventory = copy.deepcopy(GOOD)
    for host in inventory["hostvars"].values():
        host |= {name: value for name, value in variables.items() if not name.startswith("vllm_engines")}
    if "vllm_engines" in variables:
        inventory["hostvars"]["engine1"]["vllm_engines"] = variables["vllm_engines"]
    return inventory


def engine(**fields: Any) -> dict[str, Any]:
    """The good engine with these fields."""
    return {"vllm_engines": [ENGINE | fields]}


def key(**fields: Any) -> dict[str, Any]:
    """The good key with these fields. One worker needs no store for its limits."""
    return {"proxy_keys": [KEY | fields], "proxy_workers": 1}


def change_engine(inventory: dict[str, Any], **changes: Any) -> None:
    """Change the engine of an inventory."""
    inventory["hostvars"]["engine1"]["vllm_engines"][0].update(changes)


def change_proxy(inventory: dict[str, Any], **changes: Any) -> None:
    """Change the variables of the proxy of an inventory."""
    inventory["hostvars"]["api1"].update(changes)
