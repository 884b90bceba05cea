"""Formats of texts that a regular expression cannot describe. Each function returns what is wrong, or ""."""

from __future__ import annotations

import ipaddress
from datetime import date
from typing import Any


def _date(value: Any) -> str:
    try:
        date.fromisoformat(str(value))
    except ValueError as error:
        return f"not a day ({error}): write it as 2027-01-31"
    return ""


def _network(value: Any) -> str:
    try:
        ipaddress.ip_network(str(value))
    except ValueError as error:
        return f"not a network ({error}): write one such as 203.0.113.0/24"
    return ""


def _believed_network(value: Any) -> str:
    if wrong := _network(value):
        return wrong
    if not ipaddress.ip_network(str(value)).prefixlen:
        return "every client could say what its address is: name the load balancer's networks"
    return ""


def _quoted(value: Any) -> str:
    return "" if isinstance(value, str) else "a number or a day to YAML: put it in quotes"


def _address(value: Any) -> str:
    try:
        ipaddress.ip_address(str(value))
    except ValueError:
        return "not an IP address"
    return ""


FORMATS = {
    "address": _address,
    "believed_network": _believed_network,
    "date": _date,
    "network": _network,
    "quoted": _quoted,
}
