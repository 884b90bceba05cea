"""Clients' keys and the admin key."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from .. import display
from ..directories import see_example
from ..forms import as_list
from ..inventory import Inventory
from ..secret_strength import KEY_LENGTH_MIN, flaws_of_key
from ..served import misspelt_model, misspelt_models_of_limits, served_models

_UTC_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(Z|\+00:00)")


def check_keys(inventory: Inventory) -> Iterator[str]:
    """Keys cannot be guessed, and each belongs to one client."""
    for host in inventory.hosts("proxy"):
        keys = inventory.get(host, "proxy_keys")
        # If it is None, it cannot be templated, and readable.check_readable says why.
        if keys is not None and not as_list(keys):
            yield f"host {host}: proxy_keys lists no key, so nobody could call the service: {see_example('group_vars/vault.example.yml', 'proxy')}"
        named = _named(keys)
        yield from _doubles(named)
        for where, key in named:
            yield from (f"{where}{flaw}" for flaw in _flaws(key))
        yield from _admin_key_problems(str(inventory.get(host, "proxy_admin_key") or ""), named)


def check_priorities_of_keys(inventory: Inventory) -> Iterator[str]:
    """Each key's priority class exists."""
    for host in inventory.hosts("proxy"):
        classes = inventory.get(host, "proxy_priorities")
        for where, key in _named(inventory.get(host, "proxy_keys")):
            # If the class `default` is missing, priorities.check_priorities reports it.
            priority = key.get("priority") or "default"
            if isinstance(classes, Mapping) and priority not in {*classes, "default"}:
                yield f"{where} has priority {display.quoted(str(priority))}, which proxy_priorities lacks: it has {', '.join(classes)}"


def check_models_of_keys(inventory: Inventory) -> Iterator[str]:
    """No model in a key's `models` is a misspelling of one that engines serve."""
    served = served_models(inventory)
    for host in inventory.hosts("proxy"):
        for where, key in _named(inventory.get(host, "proxy_keys")):
            for model in as_list(key.get("models")):
                if said := misspelt_model(model, served):
                    yield f"{where} allows model {said}"
            yield from misspelt_models_of_limits(f"{where}: limits", key.get("limits"), served)


def _named(keys: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Each key with its name for messages: its position instead, if the name may be a key in the wrong place."""
    named = []
    for number, key in enumerate(as_list(keys)):
        if isinstance(key, Mapping):
            name = str(key.get("name") or "")
            place = f"key proxy_keys[{number}]" + (f" ({display.quoted(name)})" if name else "")
            named.append((f"key {name!r}" if name and not display.may_be_secret(name) else place, key))
    return named


def _doubles(named: list[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    """Names and keys that occur twice."""
    names: set[Any] = set()
    owners: dict[str, str] = {}
    for where, key in named:
        if key.get("name") and key["name"] in names:
            yield f"{where} stands twice in proxy_keys: give each a name of its own"
        names.add(key.get("name"))
        if digest := _digest(key):
            if digest in owners:
                yield f"{owners[digest]} and {where} are the same key: give each caller a key of its own"
            owners[digest] = where


def _digest(key: Mapping[str, Any]) -> str:
    """The hash of a key: its `sha256`, or the hash of its `key`; "" if it has neither."""
    if key.get("key") is not None:
        return hashlib.sha256(str(key["key"]).encode("utf-8", "surrogatepass")).hexdigest()
    return str(key.get("sha256") or "")


def _admin_key_problems(admin: str, named: list[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
    if not admin:
        return  # the admin API is off
    yield from (f"proxy_admin_key {flaw}" for flaw in flaws_of_key(admin))
    for where, key in named:
        if _digest(key) == _digest({"key": admin}):
            yield f"{where} is the same as proxy_admin_key, so its client could do what operators can: make another one"


def _flaws(key: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with one client's key, as the rest of a sentence that begins with its name."""
    secret, digest = key.get("key"), key.get("sha256")
    if (secret is None) == (digest is None):
        yield ": give either `key` or `sha256`"
    elif secret is not None:
        swapped = display.may_be_secret(str(key.get("name"))) and len(str(secret)) < KEY_LENGTH_MIN
        hint = " (or are its name and its key swapped?)" if swapped else ""
        yield from (f" {flaw}{hint}" for flaw in flaws_of_key(str(secret)))
    for part in ("models", "cidrs"):
        if key.get(part) == []:
            yield f": {part} is empty, which allows all of them: name some, or take the line out"
    yield from (f": expires {flaw}" for flaw in _moment_flaws(key.get("expires")))
    for network in map(str, as_list(key.get("cidrs"))):
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            # The error quotes the text, which may be a key in the wrong place.
            known = not display.may_be_secret(network) or re.fullmatch(r"[0-9A-Fa-f]*[.:][0-9A-Fa-f.:/]*", network)
            shown, why = (repr(network), f" ({error})") if known else (display.quoted(network), "")
            yield f": {shown} in cidrs is not a network{why}: write one such as 203.0.113.0/24"


def _moment_flaws(expires: Any) -> Iterator[str]:
    if expires is None:
        return
    text = str(expires)
    if not text.strip():
        yield "is empty, so the key would never expire: write a moment such as 2027-01-31T00:00:00Z, or take the line out"
        return
    if not _UTC_MOMENT.fullmatch(text):
        shown = display.shown("proxy_keys[].expires", expires)
        yield f"is {shown}, not a moment in UTC: write it as 2027-01-31T00:00:00Z"
        return
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        yield f"is {text!r}, which does not exist ({error}): write it as 2027-01-31T00:00:00Z"
        return
    if moment <= datetime.now(UTC):
        yield f"is {text!r}, which has passed: choose a later moment, or take the key out"
