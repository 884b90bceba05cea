"""Values that operators wrote, in a form that checks can use."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any


def as_dict(value: Any) -> Mapping[str, Any]:
    """A dictionary; an empty one instead of anything else."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> list[Any]:
    """A list; an empty one instead of anything else, because a text would be read letter by letter."""
    return list(value) if isinstance(value, (list, tuple)) else []


def as_dicts(value: Any) -> list[Mapping[str, Any]]:
    """Those items of a list that are dictionaries."""
    return [item for item in as_list(value) if isinstance(item, Mapping)]


def as_address(value: Any) -> str:
    """An address in the one form in which it can be compared; "" for all addresses and for what is none."""
    try:
        address = ipaddress.ip_address(str(value))
    except ValueError:
        return ""
    return "" if address.is_unspecified else str(address)
