"""The proxies' settings of models (proxy_models)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..forms import as_dict, as_dicts, as_list
from ..inventory import Inventory
from ..served import misspelt_model, served_models

# Body fields that have variables of their own, because they decide where a request goes or what it costs.
_NOT_A_DEFAULT = {
    "cache_salt",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "model",
    "priority",
    "stream",
}
_DEFAULT_SIZES = {"small", "medium", "large"}


def check_models(inventory: Inventory) -> Iterator[str]:
    """Each name belongs to one model, and a model's settings do not contradict each other."""
    for host in inventory.hosts("proxy"):
        models = as_dicts(inventory.get(host, "proxy_models"))
        sizes = as_dict(as_dict(inventory.get(host, "proxy_timeouts")).get("size_factors"))
        if sizes and "medium" not in sizes:
            yield "proxy_timeouts.size_factors lacks medium, the size of models that name none"
        yield from _doubles(models)
        for model in models:
            yield from _settings_problems(model, set(sizes) or _DEFAULT_SIZES)
        yield from _cycles(
            {str(model.get("name")): str(model["fallback"]) for model in models if model.get("fallback")}
        )


def check_models_are_served(inventory: Inventory) -> Iterator[str]:
    """Engines serve each fallback and no model under another one's alias, and no model's name is misspelt."""
    served = served_models(inventory)
    for host in inventory.hosts("proxy"):
        for model in as_dicts(inventory.get(host, "proxy_models")):
            own, fallback = str(model.get("name")), model.get("fallback")
            for name in _names(model)[1:]:
                if name != own and name in served:
                    yield f"proxy_models: {name!r}, a name of {own!r}, is a model that engines serve: choose another name"
            if said := misspelt_model(own, served):
                yield f"proxy_models has {said}"
            if fallback is not None and (fallback not in served or fallback == own):
                yield f"proxy_models: {own!r} cannot fall back on {fallback!r}: name another model that engines serve"


def _names(model: Mapping[str, Any]) -> list[str]:
    """A model's own name, its aliases and its old names."""
    old = [entry.get("name") for entry in as_dicts(model.get("deprecated"))]
    return [str(name) for name in (model.get("name"), *as_list(model.get("aliases")), *old)]


def _doubles(models: list[Mapping[str, Any]]) -> Iterator[str]:
    owner: dict[str, str] = {}
    for model in models:
        own = str(model.get("name"))
        for name in _names(model):
            if name in owner:
                yield f"proxy_models gives the name {name!r} to {owner[name]!r} and to {own!r}: leave one of them out"
            owner[name] = own


def _settings_problems(model: Mapping[str, Any], sizes: set[str]) -> Iterator[str]:
    where = f"proxy_models ({model.get('name')})"
    if reserved := sorted(_NOT_A_DEFAULT & set(as_dict(model.get("defaults")))):
        yield f"{where}: defaults cannot set {', '.join(reserved)}: leave it out, or use default_max_tokens or max_tokens_limit"
    if model.get("size") is not None and model["size"] not in sizes:
        yield f"{where}: size {model['size']!r} is not in proxy_timeouts.size_factors, which has {', '.join(sorted(sizes))}"
    usual, most = model.get("default_max_tokens"), model.get("max_tokens_limit")
    if isinstance(usual, int) and isinstance(most, int) and usual > most:
        yield f"{where}: default_max_tokens ({usual}) is larger than max_tokens_limit ({most}): lower the first or raise the second"


def _cycles(fallbacks: Mapping[str, str]) -> Iterator[str]:
    """Fallbacks that lead back to where they began."""
    seen: set[str] = set()
    for start in fallbacks:
        way = [start]
        while (following := fallbacks.get(way[-1])) is not None and following not in way and following not in seen:
            way.append(following)
        if following in way and following != way[-1]:
            ring = [*way[way.index(following) :], following]
            yield f"proxy_models: the fallbacks {' -> '.join(ring)} lead back to where they began: take one of them out"
        seen |= set(way)
