"""Pools of engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..forms import as_dict
from ..inventory import Inventory


def check_pools(inventory: Inventory) -> Iterator[str]:
    """Each pool says which requests belong there."""
    for host in inventory.hosts("proxy"):
        for name, pool in as_dict(as_dict(inventory.get(host, "proxy_routing")).get("pools")).items():
            if isinstance(pool, Mapping) and pool.get("prompt_tokens") is None and pool.get("max_tokens") is None:
                yield f"proxy_routing.pools.{name} says of no request that it belongs there: give prompt_tokens, max_tokens or both"


def check_engines_pools(inventory: Inventory) -> Iterator[str]:
    """The proxies know each engine's pool."""
    for host in inventory.hosts("proxy"):
        routing = inventory.get(host, "proxy_routing")
        if not isinstance(routing, Mapping):
            continue  # cannot be templated, or values.check_types reports that it is no dictionary
        known = routing.get("pools") or {}
        for engine in (engine for each in inventory.group("vllm") for engine in inventory.engines(each)):
            pool = engine.get("pool")
            if pool is not None and pool not in known:
                yield f"engine {engine.get('name')!r} is in pool {pool!r}, which proxy_routing.pools does not have: say there which requests are its"
