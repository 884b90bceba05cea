"""Classes of priority."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..forms import as_dict, as_dicts, as_list
from ..inventory import Inventory
from ..served import serve_args


def check_priorities(inventory: Inventory) -> Iterator[str]:
    """The class `default` exists, to which keys without a class belong."""
    for host in inventory.hosts("proxy"):
        classes = inventory.get(host, "proxy_priorities")
        if isinstance(classes, Mapping) and "default" not in classes:
            yield "proxy_priorities lacks default, the class of keys that name none"


def check_engines_know_priorities(inventory: Inventory) -> Iterator[str]:
    """Engines that get requests with a priority accept it: without priority scheduling they answer 400."""
    without = _without_priority(inventory)
    for host in inventory.hosts("proxy") if without else []:
        models = as_dicts(inventory.get(host, "proxy_models"))
        for name, settings in as_dict(inventory.get(host, "proxy_priorities")).items():
            keys = [
                key for key in as_dicts(inventory.get(host, "proxy_keys")) if (key.get("priority") or "default") == name
            ]
            number = as_dict(settings).get("engine_priority")
            for where, served in without.items() if number else []:
                if any(_reaches(key, model, models) for key in keys for model in served):
                    yield (
                        f"proxy_priorities.{name} has engine_priority {number}, but {where} does not take priorities, and would answer 400: "
                        "give it priority_scheduling: true, set scheduling-policy: priority in vllm_args, or take engine_priority out"
                    )


def _without_priority(inventory: Inventory) -> dict[str, list[str]]:
    """The engines that accept no priorities: their names for messages, and all models that they serve."""
    return {
        f"engine {engine.get('name')!r} of {host}": engine["served_models"]
        for host in inventory.group("vllm")
        for engine in inventory.engines(host)
        if serve_args(inventory, host, engine).get("scheduling-policy") != "priority"
    }


def _reaches(key: Mapping[str, Any], model: str, models: list[Mapping[str, Any]]) -> bool:
    """Whether a key may use a model, directly or as the fallback of another model."""
    allowed = as_list(key.get("models"))
    if not allowed:
        return True
    return model in allowed or any(other.get("fallback") == model and other.get("name") in allowed for other in models)
