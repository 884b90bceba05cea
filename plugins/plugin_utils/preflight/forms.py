"""Values that operators wrote, in a form that checks can use."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any


def as_dict(value: Any) -> Mapping[str, Any]:
    """The value if it is a dictionary, otherwise an empty dictionary."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, otherwise an empty list: iterating over a text would give its characters."""
    return list(value) if isinstance(value, (list, tuple)) else []


def as_dicts(value: Any) -> list[Mapping[str, Any]]:
    """Those items of a list that are dictionaries."""
    return [item for item in as_list(value) if isinstance(item, Mapping)]


def as_address(value: Any) -> str:
    """The address in its normal form, for comparison; "" for 0.0.0.0, ::, and what is not an address."""
    try:
        address = ipaddress.ip_address(str(value))
    except ValueError:
        return ""
    return "" if address.is_unspecified else str(address)
