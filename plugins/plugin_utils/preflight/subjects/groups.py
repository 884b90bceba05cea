"""Groups and hosts: each tier has a host, and no host is left out because of a misspelt group."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from .. import display
from ..inventory import Inventory
from ..misspelt import is_misspelt
from ..roles import TIERS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_groups(inventory: Inventory) -> Iterator[str]:
    """Each tier has a host, and each host a usable name and address."""
    for group in TIERS:
        if not inventory.group(group):
            yield f"group {group} has no host: give at least one instance the tag Tier={group} (several tiers: Tier=nginx,proxy,vllm)"
    for host in inventory.hosts():
        if not _NAME.fullmatch(host):
            yield f"host {host!r}: its name is used in file names and logs; use letters, digits, '.', '_' and '-' in its Name tag"
        address = inventory.get(host, "stack_address")
        try:
            if ipaddress.ip_address(str(address)).is_unspecified:
                # An engine, which checks no keys, would listen on the public address as well.
                yield f"host {host}: stack_address is {address}, which is every address: set it to the host's private IP address"
        except ValueError:
            if inventory.is_empty(host, "stack_address") or f"stack_address of {host}" in inventory.unreadable:
                continue  # values.check_types or readable.check_readable reports it
            if not inventory.has_value(host, "stack_address"):
                yield f"host {host}: stack_address is made of facts, which the other tiers lack: set it to the host's private IP address"
                continue
            shown = display.shown("stack_address", address)
            yield f"host {host}: stack_address is {shown}; set it to the private IP address by which the other tiers reach the host"


def check_strays(inventory: Inventory) -> Iterator[str]:
    """No host is in no tier because its group is misspelt."""
    tiers = set(inventory.hosts())
    for group, hosts in sorted(inventory.groups.items()):
        meant = "" if group in TIERS else _tier_like(group)
        if meant and (lost := sorted(set(hosts) - set(inventory.group(meant)))):
            where = f"which {meant} lacks" if tiers & set(lost) else "of no tier"
            yield f"group {group} has {', '.join(lost)}, {where}: did you mean {meant}?"


def _tier_like(name: str) -> str:
    """The tier whose name was misspelt; "" for any other name, such as haproxy or env_proxy."""
    return next((tier for tier in TIERS if is_misspelt(name, tier)), "")
