"""Limits, and the store in which several workers count together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ..forms import as_dict, as_dicts
from ..inventory import Inventory
from ..secret_strength import flaws_of_password
from ..served import misspelt_models_of_limits, served_models


def check_limits(inventory: Inventory) -> Iterator[str]:
    """If there are several workers, limits have a store, which exists and whose password cannot be guessed."""
    hosts = inventory.group("proxy")
    for host in inventory.hosts("proxy"):
        store_host, url = inventory.get(host, "proxy_store_host"), inventory.get(host, "proxy_store_url")
        if not store_host and not url:
            yield from _uncounted(inventory, host, hosts)
        yield from _store_problems(hosts, store_host, url, str(inventory.get(host, "proxy_store_password") or ""))


def check_models_of_limits(inventory: Inventory) -> Iterator[str]:
    """No model with limits is a misspelling of one that engines serve."""
    served = served_models(inventory)
    for host in inventory.hosts("proxy"):
        yield from misspelt_models_of_limits("proxy_limits", inventory.get(host, "proxy_limits"), served)


def _uncounted(inventory: Inventory, host: str, hosts: list[str]) -> Iterator[str]:
    """Limits that each of several workers would count by itself."""
    general, workers = as_dict(inventory.get(host, "proxy_limits")), inventory.get(host, "proxy_workers")
    limited = general.get("default") or general.get("models")
    limited = limited or any(key.get("limits") for key in as_dicts(inventory.get(host, "proxy_keys")))
    # 0 means one worker per core. Only the host knows the number, so the role checks it.
    several = len(hosts) > 1 or (isinstance(workers, int) and workers > 1)
    if limited and several:
        yield (
            "limits (proxy_limits, proxy_keys[].limits) would be multiplied by the number of workers, each of which would "
            "count by itself: set proxy_store_host to a host of the group proxy, or proxy_store_url to a Redis or Valkey"
            + ("" if len(hosts) > 1 else ", or proxy_workers to 1")
        )


def _store_problems(hosts: list[str], store_host: Any, url: Any, password: str) -> Iterator[str]:
    if store_host and url:
        yield "proxy_store_host and proxy_store_url: give one of them, the host on which the role runs a store or the address of one"
    if store_host and store_host not in hosts:
        yield f"proxy_store_host is {store_host!r}, which is not in the group proxy: name one of {', '.join(hosts)}"
    if store_host:
        yield from (f"proxy_store_password {flaw}" for flaw in flaws_of_password(password))
    if url and not _is_store_url(str(url)):
        yield "proxy_store_url: write redis://host:port/database, or rediss:// for TLS; proxy_store_username and proxy_store_password have the credentials"


def _is_store_url(url: str) -> bool:
    try:
        port = urlsplit(url).port
    except ValueError:
        return False
    return port != 0 and re.fullmatch(r"rediss?://[^/@?#\s]+(/\d*)?", url) is not None
