"""The models that engines serve, with which options, and what to say of a misspelt one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .forms import as_dict, as_dicts
from .inventory import Inventory
from .misspelt import is_mistyped


def served_models(inventory: Inventory) -> set[str]:
    """The names of all models that engines serve, and of those whose pools may be at zero."""
    by_engines = {
        name
        for host in inventory.group("vllm")
        for engine in inventory.engines(host)
        for name in engine["served_models"]
    }
    at_zero = {
        str(model.get("name"))
        for host in inventory.group("proxy")
        for model in as_dicts(inventory.get(host, "proxy_models"))
        if model.get("cold_start_s")
    }
    return by_engines | at_zero


def serve_args(inventory: Inventory, host: str, engine: Mapping[str, Any]) -> dict[str, Any]:
    """An engine's options of `vllm serve`, which takes them with _ as well as with -."""
    every = {**as_dict(inventory.get(host, "vllm_args")), **as_dict(engine.get("args"))}
    return {str(name).replace("_", "-"): value for name, value in every.items()}


def misspelt_model(model: Any, served: set[str]) -> str:
    """A model whose name is a misspelt one of those that engines serve, and which; "" of any other.

    The engines of another one may be stopped today, and the proxies take its name.
    """
    meant = next((name for name in sorted(served) if is_mistyped(str(model), name)), None)
    if model in served or meant is None:
        return ""
    return f"{str(model)!r}, which no engine serves: did you mean {meant!r}?"


def misspelt_models_of_limits(where: str, limits: Any, served: set[str]) -> Iterator[str]:
    """Misspelt models under `models` of a dictionary of limits."""
    for model in models_of_limits(limits):
        if said := misspelt_model(model, served):
            yield f"{where} names model {said}"


def models_of_limits(limits: Any) -> list[Any]:
    """The models that have limits of their own."""
    return list(as_dict(as_dict(limits).get("models")))
