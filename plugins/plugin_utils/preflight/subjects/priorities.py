"""Classes of priority."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..inventory import Inventory


def check_priorities(inventory: Inventory) -> Iterator[str]:
    """There is a class for keys that name none."""
    for host in inventory.hosts("proxy"):
        classes = inventory.get(host, "proxy_priorities")
        if isinstance(classes, Mapping) and "default" not in classes:
            yield "proxy_priorities lacks default, the class of keys that name none"
