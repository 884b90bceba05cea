"""Ports: no two listeners of a host have the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ..clusters import PORTS_EACH
from ..forms import as_address, as_dict
from ..inventory import Inventory

_PORT_MAX = 65535


def check_ports(inventory: Inventory) -> Iterator[str]:
    """No two listeners of a host use the same port, unless their addresses differ."""
    for host in inventory.hosts():
        yield from _too_many_workers(inventory, host)
        users: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for port, address, name in _listeners(inventory, host):
            users[port].append((address, name))
        for port, listeners in sorted(users.items()):
            names = [
                name
                for number, (address, name) in enumerate(listeners)
                if any(_overlap(address, other) for at, (other, _) in enumerate(listeners) if at != number)
            ]
            if names:
                yield (
                    f"host {host}: port {port} is used by {' and '.join(names)}; give each a port of its own "
                    "(vllm_engines[].port and .beside_port, vllm_clusters[].port and .master_port, proxy_port, proxy_admin_port, proxy_store_port, "
                    "nginx_certbot_status_port)"
                )


def _listeners(inventory: Inventory, host: str) -> Iterator[tuple[int, str, str]]:
    """Port, address ("" for all addresses) and name of each listener of a host."""
    private = as_address(inventory.get(host, "stack_address"))
    if host in inventory.group("nginx"):
        yield from ((port, "", "nginx") for port in (80, 443))
        if isinstance(status_port := inventory.get(host, "nginx_certbot_status_port"), int):
            yield status_port, "127.0.0.1", "the counts of nginx"
    if host in inventory.group("proxy"):
        admin_address = as_address(inventory.get(host, "proxy_admin_address"))
        for number in range(_workers(inventory, host)):
            for name, address, what in (
                ("proxy_port", private, "proxy worker"),
                ("proxy_admin_port", admin_address, "the admin API of proxy worker"),
            ):
                if isinstance(first := inventory.get(host, name), int):
                    yield first + number, address, f"{what} {number + 1}"
        if host == inventory.get(host, "proxy_store_host"):
            store_port = inventory.get(host, "proxy_store_port")
            if isinstance(store_port, int):
                yield store_port, private, "the store of limits"
    if host in inventory.group("vllm"):
        for engine in inventory.engines(host):
            if isinstance(engine.get("port"), int):
                yield engine["port"], private, f"engine {engine.get('name')}"
            if isinstance(engine.get("beside_port"), int):
                yield engine["beside_port"], private, f"the engine beside {engine.get('name')}"
            # On all hosts of a cluster, so that any of them can become its head.
            first = as_dict(engine.get("cluster")).get("master_port")
            if isinstance(first, int):
                yield from (
                    (first + n, private, f"the ranks of cluster {engine.get('name')}") for n in range(PORTS_EACH)
                )


def _too_many_workers(inventory: Inventory, host: str) -> Iterator[str]:
    number = _workers(inventory, host) if host in inventory.group("proxy") else 0
    for name in ("proxy_port", "proxy_admin_port") if number else ():
        first = inventory.get(host, name)
        if isinstance(first, int) and first + number - 1 > _PORT_MAX:
            yield (
                f"host {host}: {name} is {first}, and {number} workers from there are more than there are ports: "
                f"use at most {_PORT_MAX - number + 1}"
            )


def _workers(inventory: Inventory, host: str) -> int:
    """How many workers a host may have. 0 means one per core, at most four, so four ports must be free."""
    workers = inventory.get(host, "proxy_workers")
    return (workers or 4) if isinstance(workers, int) else 0


def _overlap(one: str, other: str) -> bool:
    return one == other or not one or not other
