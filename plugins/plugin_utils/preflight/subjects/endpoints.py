"""Paths of the API: its versions and custom endpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..forms import as_dicts, as_list
from ..inventory import Inventory

# Engines' endpoints whose bodies are forms: the proxy cannot add fields to them.
_FORMS = {"/v1/audio/transcriptions", "/v1/audio/translations"}


def check_endpoints(inventory: Inventory) -> Iterator[str]:
    """Each path occurs once, and each custom endpoint either names an engine's path or has an answer."""
    for host in inventory.hosts("proxy"):
        yield from _doubles("proxy_api_versions", as_list(inventory.get(host, "proxy_api_versions")))
        endpoints = as_dicts(inventory.get(host, "proxy_custom_endpoints"))
        yield from _doubles("proxy_custom_endpoints", [endpoint.get("path") for endpoint in endpoints])
        for endpoint in endpoints:
            yield from _endpoint_problems(endpoint)


def _doubles(name: str, values: list[Any]) -> Iterator[str]:
    for value in sorted({str(value) for value in values if value is not None and values.count(value) > 1}):
        yield f"{name} has {value!r} more than once: keep one"


def _endpoint_problems(endpoint: Mapping[str, Any]) -> Iterator[str]:
    where = f"proxy_custom_endpoints ({endpoint.get('path')})"
    if (endpoint.get("upstream_path") is None) == (endpoint.get("answer") is None):
        yield f"{where}: give either upstream_path or answer"
    elif endpoint.get("answer") is not None and any(
        endpoint.get(name) for name in ("endpoint_class", "defaults", "body_limit_bytes")
    ):
        yield f"{where}: a fixed answer has no endpoint_class, defaults or body_limit_bytes: leave them out"
    if endpoint.get("defaults") and endpoint.get("upstream_path") in _FORMS:
        yield f"{where}: {endpoint['upstream_path']} takes a form, which is passed on as it is: leave defaults out"
    if endpoint.get("endpoint_class") == "catalogue":
        yield f"{where}: endpoint_class is generation, pooling, audio or utility"
