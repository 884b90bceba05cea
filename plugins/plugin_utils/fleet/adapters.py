"""Elastic Fabric Adapters by instance type, and the network interfaces of a host that has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TABLE: dict[str, Any] = json.loads((Path(__file__).parents[1] / "planner" / "instances.json").read_text())
# The rows of types that have adapters. A type that AWS has besides is not in the table, and refused.
_ROWS: dict[str, dict[str, Any]] = {name: row for name, row in _TABLE.items() if "efa" in row and name != "_read_me"}
TYPES = list(_ROWS)


def interfaces(instance_type: str) -> list[dict[str, Any]]:
    """The interfaces with as many adapters as the type has: one for each network card, of which only the first one has an address.

    As https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-acc-inst-types.html recommends to save addresses.
    """
    if instance_type not in _ROWS:
        return []
    count, start = _ROWS[instance_type]["efa"], _ROWS[instance_type].get("efa_from_card", 0)
    found = [_interface(0, 0, "interface")] if start else [_interface(0, 0, "efa")]
    return found + [_interface(card, 0 if start else 1, "efa-only") for card in range(1, start + count)]


def _interface(card: int, device: int, kind: str) -> dict[str, Any]:
    return {"NetworkCardIndex": card, "DeviceIndex": device, "InterfaceType": kind}
