"""Engines over several hosts."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from ..clusters import hosts_of
from ..engine_entries import completed
from ..forms import as_dict
from ..inventory import Inventory
from ..secret_strength import flaws_of_password
from ..served import serve_args

# Options that the role sets for a rank. Those of data parallel are a way of their own to use several hosts.
_OF_RANKS = {"nnodes", "node-rank", "master-addr", "master-port", "headless", "distributed-executor-backend"}
_DATA_PARALLEL = "data-parallel-"
# What the role sets in the environment of an engine on Ray. Another value would let anybody in, or nobody.
_OF_RAY = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_SIZES = ("tensor-parallel-size", "pipeline-parallel-size")
# What decides how each rank runs: ranks that differ would not find each other, or wait for each other for ever.
_ALIKE = (
    "vllm_args",
    "vllm_cluster_token",
    "vllm_environment",
    "vllm_install_options",
    "vllm_ray_requirements",
    "vllm_requirements",
    "vllm_shutdown_timeout_s",
    "vllm_version",
)


def check_clusters(inventory: Inventory) -> Iterator[str]:
    """Each cluster has hosts of the group vllm that agree, and an engine that can be divided among them."""
    clusters = inventory.clusters()
    yield from _different_lists(inventory)
    for name, number in Counter(_name(cluster) for cluster in clusters).items():
        if number > 1:
            yield f"cluster {name!r} stands twice in vllm_clusters: give each a name of its own (without one, it has its model's)"
    for cluster in clusters:
        where, hosts = f"cluster {_name(cluster)!r}", hosts_of(cluster)
        yield from _wrong_hosts(inventory, where, hosts)
        members = [host for host in dict.fromkeys(hosts) if host in inventory.group("vllm")]
        yield from _names_of_engines(inventory, cluster, members)
        yield from _differences(inventory, where, members)
        if members:
            yield from _wrong_options(inventory, where, cluster, members[0])
            yield from _wrong_sizes(inventory, where, cluster, members[0])
            yield from _wrong_environment(inventory, where, cluster, members[0])
    yield from _overlapping(clusters)
    yield from _weak_tokens(inventory)


def _name(cluster: Mapping[str, Any]) -> str:
    return str(cluster.get("name", ""))


def _different_lists(inventory: Inventory) -> Iterator[str]:
    known = [(host, inventory.get(host, "vllm_clusters") or []) for host in inventory.hosts("vllm")]
    others = [host for host, clusters in known if clusters != known[0][1]]
    if others:
        yield (
            f"vllm_clusters of {', '.join(others)} is not that of {known[0][0]}, so these hosts would not know of the same clusters: "
            "set it once for the group vllm, and take it out of host_vars"
        )


def _wrong_hosts(inventory: Inventory, where: str, hosts: list[str]) -> Iterator[str]:
    if len(set(hosts)) == 1:
        yield f"{where} has one host, {hosts[0]}: list two or more, the head first, or move it to vllm_engines, where engines of one host are"
    for host, number in Counter(hosts).items():
        if number > 1:
            yield f"{where} lists host {host} {number} times: name each host once"
        if host not in inventory.everyone():
            close = difflib.get_close_matches(host, inventory.group("vllm"), n=1)
            hint = f"did you mean {close[0]}?" if close else f"the group vllm has {', '.join(inventory.group('vllm'))}"
            yield f"{where} lists host {host}, which the inventory does not have (an instance that is stopped is in no inventory): {hint}"
        elif host not in inventory.group("vllm"):
            yield f"{where} lists host {host}, which is not in the group vllm: add it (on EC2, by its tag Tier), or name another host"


def _names_of_engines(inventory: Inventory, cluster: Mapping[str, Any], members: list[str]) -> Iterator[str]:
    for host in members:
        own = [engine.get("name") for engine in completed(inventory.get(host, "vllm_engines"))]
        if _name(cluster) in own:
            yield f"cluster {_name(cluster)!r} has the name of an engine in vllm_engines of {host}, one of its hosts: rename one of them"


def _differences(inventory: Inventory, where: str, members: list[str]) -> Iterator[str]:
    """Variables that are not the same on all hosts of a cluster. Values are not shown, because some are secrets."""
    for name in _ALIKE:
        known = [(host, inventory.get(host, name)) for host in members if inventory.has_value(host, name)]
        others = [host for host, value in known if value != known[0][1]]
        if others:
            yield f"{where}: {name} of {', '.join(others)} is not that of {known[0][0]}, and its ranks have to run alike: set it once for all its hosts"


def _wrong_options(inventory: Inventory, where: str, cluster: Mapping[str, Any], host: str) -> Iterator[str]:
    for name in sorted(serve_args(inventory, host, cluster)):
        if name in _OF_RANKS:
            yield f"{where}: its args, or vllm_args, must not have {name}, which the role sets for each host: take it out"
        if name.startswith(_DATA_PARALLEL):
            yield (
                f"{where}: its args, or vllm_args, have {name}, and a cluster is one engine by tensor and pipeline parallelism alone: take it out; "
                "several engines behind the proxies serve more requests, too"
            )


def _wrong_sizes(inventory: Inventory, where: str, cluster: Mapping[str, Any], host: str) -> Iterator[str]:
    args, number = serve_args(inventory, host, cluster), len(set(hosts_of(cluster)))
    sizes = [args.get(name) or 1 for name in _SIZES]
    if number < 2 or not all(isinstance(size, int | str) and str(size).isdigit() for size in sizes):
        return  # gpus.check_gpus reports what is no number
    tensor, pipeline = map(int, sizes)
    if tensor * pipeline % number:
        yield (
            f"{where}: {' times '.join(_SIZES)} is {tensor * pipeline}, which cannot be divided among {number} hosts: "
            f"set them in its args, so that their product is {number} times the GPUs that it uses on each host"
        )


def _wrong_environment(inventory: Inventory, where: str, cluster: Mapping[str, Any], host: str) -> Iterator[str]:
    if cluster.get("backend") != "ray":
        return
    environment = {**as_dict(inventory.get(host, "vllm_environment")), **as_dict(cluster.get("environment"))}
    for name in _OF_RAY:
        if name in environment:
            yield (
                f"{where}: its environment, or vllm_environment, must not have {name}, which the role sets from hosts, master_port and "
                "vllm_cluster_token: take it out"
            )


def _overlapping(clusters: list[dict[str, Any]]) -> Iterator[str]:
    for one, other in combinations(clusters, 2):
        shared = set(hosts_of(one)) & set(hosts_of(other))
        if shared and set(hosts_of(one)) != set(hosts_of(other)):
            yield (
                f"clusters {_name(one)!r} and {_name(other)!r} share {', '.join(sorted(shared))}, but not all hosts, so neither could be "
                "rolled back without the other: give them the same hosts, or none in common"
            )


def _weak_tokens(inventory: Inventory) -> Iterator[str]:
    members = {host for cluster in inventory.clusters() for host in hosts_of(cluster)}
    for host in sorted(members & set(inventory.hosts("vllm"))):
        token = inventory.get(host, "vllm_cluster_token")
        if token is None and not inventory.has_value(host, "vllm_cluster_token"):
            continue  # readable.check_readable says why
        if not token:
            yield f"host {host}: vllm_cluster_token, by which the hosts of a cluster know each other, is missing: use `openssl rand -hex 32`, kept in the vault"
            continue
        yield from (f"host {host}: vllm_cluster_token {flaw}" for flaw in flaws_of_password(str(token)))
