"""Engines over several hosts (vllm_clusters): each host has its rank as one more entry of its own list of engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .engine_entries import completed
from .forms import as_dict, as_dicts, as_list

FIRST_PORT = 8100
# The port by which vLLM's ranks find each other. The next one is that of the programs that start them together.
FIRST_MASTER_PORT = 29500
PORTS_EACH = 2
# vLLM's name of what runs the ranks, by `backend`.
EXECUTORS = {"native": "mp", "ray": "ray"}
# What an entry has besides the keys of an engine.
_OWN_KEYS = {"hosts", "master_port", "backend"}


def engines_of(host: str, engines: Any, clusters: Any) -> list[dict[str, Any]]:
    """All engines of a host, completed. One that spreads over several hosts has `cluster`: its hosts, this one's rank and the port."""
    return completed([*as_dicts(engines), *_ranks(host, clusters)])


def hosts_of(cluster: Any) -> list[str]:
    """The hosts of a cluster, by rank: the first one is the head."""
    return [str(host) for host in as_list(as_dict(cluster).get("hosts"))]


def _ranks(host: str, clusters: Any) -> Iterator[dict[str, Any]]:
    """The entries of the clusters in which the host is. Default ports follow from the position, so that they are the same on all hosts."""
    for position, cluster in enumerate(as_dicts(clusters)):
        hosts = hosts_of(cluster)
        if host not in hosts:
            continue
        backend = cluster.get("backend") or "native"
        # As options of the engine, because the planner and the checks of GPUs know them.
        spread = {"nnodes": len(hosts), "distributed-executor-backend": EXECUTORS.get(str(backend))}
        yield {
            **{key: value for key, value in cluster.items() if key not in _OWN_KEYS},
            "port": cluster.get("port") or FIRST_PORT + position,
            "args": {**as_dict(cluster.get("args")), **spread},
            "cluster": {
                "backend": backend,
                "rank": hosts.index(host),
                "hosts": hosts,
                "master_port": cluster.get("master_port") or FIRST_MASTER_PORT + PORTS_EACH * position,
            },
        }
