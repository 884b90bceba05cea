"""Checks over several variables: what contradicts itself, what tiers must agree on, what is used twice."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# vLLM refuses larger bodies (VLLM_HTTP_MAX_REQUEST_BODY_SIZE, its default since 0.33).
_ENGINE_BODY_MB = 32
# Of a body's fields, these decide where a request goes or what it costs: they have variables of their own.
_NOT_A_DEFAULT = {
    "cache_salt",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "model",
    "priority",
    "stream",
}
# Endpoints of an engine whose bodies are forms, to which the proxy adds no fields.
_FORMS = {"/v1/audio/transcriptions", "/v1/audio/translations"}
# An engine's id, host:name, is a file's name on the proxies.
_ID_MAX = 255
# Options by whose product an engine spreads; of the last two the last wins on a host.
_PARALLEL = ("tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size", "data-parallel-size-local")
# No host has as many.
_GPUS_MAX = 1024
# A class of endpoints, the proxy's default for its total in seconds, and the variable with nginx's timeout.
_TOTALS = (
    ("generation", 3600, "nginx_certbot_generation_timeout_s"),
    ("audio", 1800, "nginx_certbot_generation_timeout_s"),
    ("pooling", 600, "nginx_certbot_embeddings_timeout_s"),
    ("utility", 45, "nginx_certbot_short_timeout_s"),
)
# By the group: what a client would notice if the hosts did not have it alike, since any of them may get its request.
_ALIKE = {
    "proxy": (
        "proxy_api_versions",
        "proxy_custom_endpoints",
        "proxy_isolate_prefix_cache",
        "proxy_keys",
        "proxy_limits",
        "proxy_models",
        "proxy_priorities",
        "proxy_store_host",
        "proxy_store_password",
        "proxy_store_port",
        "proxy_store_url",
        "proxy_store_username",
    ),
    "nginx": (
        "nginx_certbot_acme_directory",
        "nginx_certbot_acme_staging",
        "nginx_certbot_allow_cidrs",
        "nginx_certbot_cors_origins",
        "nginx_certbot_deny_cidrs",
    ),
}
_DEFAULT_SIZES = {"small", "medium", "large"}


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []


def check_proxy_sections(inventory: Any, _: Any) -> Iterator[str]:
    """What the proxy's configuration refuses beyond its schema, each problem once for all proxies."""
    told: set[str] = set()
    for host in inventory.group("proxy"):
        for problem in _proxy_problems(lambda name, host=host: inventory.get(host, name)):
            if problem not in told:
                told.add(problem)
                yield problem


def _proxy_problems(get: Any) -> Iterator[str]:
    classes, sizes = get("proxy_priorities"), _dict(_dict(get("proxy_timeouts")).get("size_factors"))
    if isinstance(classes, Mapping) and "default" not in classes:
        yield "proxy_priorities lacks default, the class of keys that name none"
    if sizes and "medium" not in sizes:
        yield "proxy_timeouts.size_factors lacks medium, the size of models that name none"
    models = _dicts(get("proxy_models"))
    for model in models:
        yield from _model_problems(model, set(sizes) or _DEFAULT_SIZES)
    yield from _cycles({str(model.get("name")): str(model["fallback"]) for model in models if model.get("fallback")})
    for name, pool in _dict(_dict(get("proxy_routing")).get("pools")).items():
        if isinstance(pool, Mapping) and pool.get("prompt_tokens") is None and pool.get("max_tokens") is None:
            yield f"proxy_routing.pools.{name} says of no request that it belongs there: give prompt_tokens, max_tokens or both"
    versions = get("proxy_api_versions")
    yield from _doubles("proxy_api_versions", versions if isinstance(versions, list) else [])
    endpoints = _dicts(get("proxy_custom_endpoints"))
    yield from _doubles("proxy_custom_endpoints", [endpoint.get("path") for endpoint in endpoints])
    for endpoint in endpoints:
        yield from _endpoint_problems(endpoint)


def _model_problems(model: Mapping[str, Any], sizes: set[str]) -> Iterator[str]:
    where = f"proxy_models ({model.get('name')})"
    if reserved := sorted(_NOT_A_DEFAULT & set(_dict(model.get("defaults")))):
        yield f"{where}: defaults cannot set {', '.join(reserved)}: leave it out, or use default_max_tokens or max_tokens_limit"
    if model.get("size") is not None and model["size"] not in sizes:
        yield f"{where}: size {model['size']!r} is not in proxy_timeouts.size_factors, which has {', '.join(sorted(sizes))}"
    usual, most = model.get("default_max_tokens"), model.get("max_tokens_limit")
    if isinstance(usual, int) and isinstance(most, int) and usual > most:
        yield f"{where}: default_max_tokens ({usual}) is larger than max_tokens_limit ({most}): lower the first or raise the second"


def _cycles(fallbacks: Mapping[str, str]) -> Iterator[str]:
    seen: set[str] = set()
    for start in fallbacks:
        way = [start]
        while (following := fallbacks.get(way[-1])) is not None and following not in way and following not in seen:
            way.append(following)
        if following in way and following != way[-1]:
            ring = [*way[way.index(following) :], following]
            yield f"proxy_models: the fallbacks {' -> '.join(ring)} lead back to where they began: take one of them out"
        seen |= set(way)


def _doubles(name: str, values: list[Any]) -> Iterator[str]:
    for value in sorted({str(value) for value in values if value is not None and values.count(value) > 1}):
        yield f"{name} has {value!r} more than once: keep one"


def _endpoint_problems(endpoint: Mapping[str, Any]) -> Iterator[str]:
    where = f"proxy_custom_endpoints ({endpoint.get('path')})"
    if (endpoint.get("upstream_path") is None) == (endpoint.get("answer") is None):
        yield f"{where}: give either upstream_path or answer"
    elif endpoint.get("answer") is not None and any(
        endpoint.get(name) for name in ("endpoint_class", "defaults", "body_limit_bytes")
    ):
        yield f"{where}: a fixed answer has no endpoint_class, defaults or body_limit_bytes: leave them out"
    if endpoint.get("defaults") and endpoint.get("upstream_path") in _FORMS:
        yield f"{where}: {endpoint['upstream_path']} takes a form, which is passed on as it is: leave defaults out"
    if endpoint.get("endpoint_class") == "catalogue":
        yield f"{where}: endpoint_class is generation, pooling, audio or utility"


def check_addresses(inventory: Any, _: Any) -> Iterator[str]:
    """Each host is reached at an address of its own, and each engine has an id that can be a file's name."""
    owners: dict[Any, list[str]] = {}
    for host in inventory.hosts():
        try:
            owners.setdefault(ipaddress.ip_address(str(inventory.get(host, "stack_address"))), []).append(host)
        except ValueError:
            continue  # which check_groups says
    for address, hosts in owners.items():
        if len(hosts) > 1:
            yield (
                f"hosts {' and '.join(hosts)} have the same stack_address, {address}: set for each the private IP address of its own, "
                "or give one host all of its tiers"
            )
    for host in inventory.group("vllm"):
        for engine in inventory.engines(host):
            if (length := len(f"{host}:{engine.get('name')}")) > _ID_MAX:
                yield (
                    f"host {host}: the name of one of its engines and that of the host are together {length} characters long: "
                    f"at most {_ID_MAX} fit, so shorten it"
                )


def check_alike(inventory: Any, _: Any) -> Iterator[str]:
    """Hosts of a tier answer alike. Values are not shown, some are secrets."""
    for group, names in _ALIKE.items():
        hosts = inventory.group(group)
        for name in names:
            readable = [(host, inventory.get(host, name)) for host in hosts]
            readable = [(host, value) for host, value in readable if f"{name} of {host}" not in inventory.unreadable]
            others = [host for host, value in readable if value != readable[0][1]]
            if others:
                yield (
                    f"{name} of {', '.join(others)} is not that of {readable[0][0]}, so one request would be answered unlike another: "
                    f"set it once for the group {group}, and take it out of host_vars"
                )


def check_tiers(inventory: Any, _: Any) -> Iterator[str]:
    """What the tiers have to agree on: whoever is in front waits longer and lets through no more."""
    proxies, webs = inventory.group("proxy"), inventory.group("nginx")
    if not proxies or not webs:
        return
    told: set[str] = set()
    for proxy in proxies:
        for web in webs:
            for problem in _tier_problems(inventory, proxy, web):
                if problem not in told:
                    told.add(problem)
                    yield problem


def _tier_problems(inventory: Any, proxy: str, web: str) -> Iterator[str]:
    totals = _dict(_dict(inventory.get(proxy, "proxy_timeouts")).get("total_s"))
    for kind, usual_s, variable in _TOTALS:
        total_s, patience_s = totals.get(kind, usual_s), inventory.get(web, variable)
        if isinstance(total_s, (int, float)) and isinstance(patience_s, (int, float)) and total_s >= patience_s:
            yield (
                f"proxy_timeouts.total_s.{kind} is {total_s:g} s, but nginx gives up after {variable} = {patience_s:g} s: "
                "nginx has to wait longer, so that the proxy can say what happened"
            )
    limits = [
        inventory.get(host, name) or inventory.get(host, "stack_body_limit_mb") or 16
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


def _engines_take_more(inventory: Any) -> bool:
    return any(
        "VLLM_HTTP_MAX_REQUEST_BODY_SIZE" in _dict(inventory.get(host, "vllm_environment"))
        for host in inventory.group("vllm")
    )


def check_gpus(inventory: Any, _: Any) -> Iterator[str]:
    """Engines of a host do not take each other's GPUs, and have as many as they spread over."""
    for host in inventory.group("vllm"):
        users: dict[int, list[Mapping[str, Any]]] = {}
        for engine in inventory.engines(host):
            where = f"host {host}: engine {engine.get('name')!r}"
            args, gpus = _args(inventory, host, engine), engine.get("gpus")
            yield from _gpu_problems(where, args, gpus)
            own = _environment(inventory, host, engine).get("CUDA_VISIBLE_DEVICES")
            if own is not None and gpus is not None:
                yield f"{where} has gpus, over which CUDA_VISIBLE_DEVICES of its environment would win: leave one of them out"
            if gpus is None and (own is not None or _is_on_cpu(inventory, host, engine)):
                continue
            # Of those that it may use it takes the first, as many as it spreads over.
            for gpu in range(_spread(args)) if gpus is None else sorted(set(gpus)):
                users.setdefault(gpu, []).append(engine)
        for gpu, sharing in sorted(users.items()):
            shares = [_number(_args(inventory, host, engine).get("gpu-memory-utilization")) for engine in sharing]
            if len(sharing) > 1 and not (None not in shares and sum(share or 0 for share in shares) <= 1):
                hint = (
                    "" if all("gpus" in engine for engine in sharing) else " (an engine without gpus takes the first)"
                )
                yield (
                    f"host {host}: GPU {gpu} is given to {' and '.join(str(engine.get('name')) for engine in sharing)}{hint}: give each engine "
                    "GPUs of its own, or set gpu-memory-utilization in their args, together at most 1"
                )


def _gpu_problems(where: str, args: Mapping[str, Any], gpus: Any) -> Iterator[str]:
    share = _number(args.get("gpu-memory-utilization"))
    if args.get("gpu-memory-utilization") is not None and (share is None or not 0 < share <= 1):
        yield f"{where}: gpu-memory-utilization of its args must be a number, more than 0 and at most 1"
    for name in _PARALLEL:
        if args.get(name) is not None and not _whole(args[name]):
            yield f"{where}: {name} of its args must be a whole number, at least 1"
    if isinstance(gpus, list):
        if len(set(gpus)) < len(gpus):
            yield f"{where} has a GPU twice in gpus: name each once"
        if gpus and _spread(args) > len(set(gpus)):
            over = " and ".join(f"{name} {args[name]}" for name in _PARALLEL if _whole(args.get(name)))
            yield f"{where} spreads over {_spread(args)} GPUs ({over}), but has {len(set(gpus))} in gpus: name more, or lower the size"


def _spread(args: Mapping[str, Any]) -> int:
    """Over how many GPUs of the host an engine spreads."""
    tensor, pipeline, data, here = (_whole(args.get(name)) or 1 for name in _PARALLEL)
    return min(tensor * pipeline * (here if args.get(_PARALLEL[-1]) is not None else data), _GPUS_MAX)


def _args(inventory: Any, host: str, engine: Mapping[str, Any]) -> dict[str, Any]:
    """An engine's options of `vllm serve`, which takes them with _ as well as with -."""
    every = {**_dict(inventory.get(host, "vllm_args")), **_dict(engine.get("args"))}
    return {str(name).replace("_", "-"): value for name, value in every.items()}


def _environment(inventory: Any, host: str, engine: Mapping[str, Any]) -> dict[str, Any]:
    return {**_dict(inventory.get(host, "vllm_environment")), **_dict(engine.get("environment"))}


def _is_on_cpu(inventory: Any, host: str, engine: Mapping[str, Any]) -> bool:
    """Whether it is vLLM's build for CPUs, by the lock's name or by variables that only that one has."""
    lock = Path(str(inventory.get(host, "vllm_requirements") or "")).name
    return "cpu" in lock or any(str(name).startswith("VLLM_CPU_") for name in _environment(inventory, host, engine))


def _number(value: Any) -> float | None:
    """Of an option's value, which may be a text; None of what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 1 <= number <= _GPUS_MAX and number == int(number) else None
