"""Addresses of hosts."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from ..inventory import Inventory


def check_addresses(inventory: Inventory) -> Iterator[str]:
    """Each host has its own address."""
    owners: dict[Any, list[str]] = {}
    for host in inventory.hosts():
        try:
            owners.setdefault(ipaddress.ip_address(str(inventory.get(host, "stack_address"))), []).append(host)
        except ValueError:
            continue  # groups.check_groups reports it
    for address, hosts in owners.items():
        if len(hosts) > 1:
            yield (
                f"hosts {' and '.join(hosts)} have the same stack_address, {address}: set for each the private IP address of its own, "
                "or give one host all of its tiers"
            )
