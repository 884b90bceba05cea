"""Timeouts and body sizes on which nginx, proxies and engines must agree."""

from __future__ import annotations

from collections.abc import Iterator

from ..forms import as_dict
from ..inventory import Inventory

# vLLM refuses larger bodies (VLLM_HTTP_MAX_REQUEST_BODY_SIZE, its default since 0.33).
_ENGINE_BODY_MB = 32
# A class of endpoints, the proxy's default for its total in seconds, and the variable with nginx's timeout.
_TOTALS = (
    ("generation", 3600, "nginx_certbot_generation_timeout_s"),
    ("audio", 1800, "nginx_certbot_generation_timeout_s"),
    ("pooling", 600, "nginx_certbot_embeddings_timeout_s"),
    ("utility", 45, "nginx_certbot_short_timeout_s"),
)


def check_tiers(inventory: Inventory) -> Iterator[str]:
    """Each tier waits longer than the next one, and accepts no larger bodies than the next one."""
    for proxy in inventory.group("proxy"):
        for web in inventory.group("nginx"):
            yield from _tier_problems(inventory, proxy, web)


def _tier_problems(inventory: Inventory, proxy: str, web: str) -> Iterator[str]:
    totals = as_dict(as_dict(inventory.get(proxy, "proxy_timeouts")).get("total_s"))
    for kind, usual_s, variable in _TOTALS:
        total_s, patience_s = totals.get(kind, usual_s), inventory.get(web, variable)
        if isinstance(total_s, (int, float)) and isinstance(patience_s, (int, float)) and total_s >= patience_s:
            yield (
                f"proxy_timeouts.total_s.{kind} is {total_s:g} s, but nginx gives up after {variable} = {patience_s:g} s: "
                "nginx has to wait longer, so that the proxy can say what happened"
            )
    limits = [
        inventory.get(host, name) or inventory.get(host, "stack_body_limit_mb")
        for host, name in ((proxy, "proxy_body_limit_mb"), (web, "nginx_certbot_body_limit_mb"))
    ]
    if all(isinstance(limit, int) for limit in limits):
        if limits[0] != limits[1]:
            yield (
                f"the largest body is {limits[0]} MB to the proxy and {limits[1]} MB to nginx: "
                "set stack_body_limit_mb in group_vars/all.yml instead, which both have"
            )
        if max(limits) > _ENGINE_BODY_MB and not _engines_take_more(inventory):
            yield (
                f"bodies of {max(limits)} MB are more than engines take ({_ENGINE_BODY_MB} MB): lower stack_body_limit_mb, "
                "or raise VLLM_HTTP_MAX_REQUEST_BODY_SIZE in vllm_environment"
            )


def _engines_take_more(inventory: Inventory) -> bool:
    return any(
        "VLLM_HTTP_MAX_REQUEST_BODY_SIZE" in as_dict(inventory.get(host, "vllm_environment"))
        for host in inventory.group("vllm")
    )
