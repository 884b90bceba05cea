"""Preflight and the proxy's own configuration refuse and accept the same keys, limits and stores.

Preflight alone refuses what the proxy cannot know or reads leniently: keys that can be guessed (it sees only hashes), an empty
list that allows everything, a moment that has passed, and a number written as a text.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from preflight_inventory import KEY, SECRET, found

config = pytest.importorskip("inference_proxy.config")
keys_module = pytest.importorskip("inference_proxy.config.keys")
limits_module = pytest.importorskip("inference_proxy.config.limits")
HASH = hashlib.sha256(SECRET.encode()).hexdigest()
OTHER = {"name": "bob", "sha256": "0" * 64}


def key_file(keys: list[dict[str, Any]]) -> dict[str, Any]:
    """The proxy's keys file as the role renders it from proxy_keys: with hashes only, and moments as texts."""
    rendered = []
    for key in keys:
        fields = {name: str(value) if name == "expires" else value for name, value in key.items() if name != "key"}
        hashed = hashlib.sha256(str(key["key"]).encode()).hexdigest() if "key" in key else None
        rendered.append(fields | ({"sha256": hashed} if hashed else {}))
    return {"keys": rendered}


def proxy_takes_keys(keys: list[dict[str, Any]]) -> bool:
    try:
        keys_module.KeyFile.model_validate(key_file(keys))
    except ValueError:
        return False
    return True


FIELDS: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"name": ""}, False),
    ({"name": None}, False),
    ({"name": "a\nb"}, False),
    ({"name": "é"}, True),
    ({"owner": "team"}, True),
    ({"owner": "a\x00"}, False),
    ({"models": ["m"], "priority": "batch"}, True),
    ({"models": "m"}, False),
    ({"expires": "2127-01-31T00:00:00Z"}, True),
    ({"expires": "2127-01-31T00:00:00+00:00"}, True),
    ({"expires": "2127-01-31 00:00:00Z"}, True),
    ({"expires": "2127-01-31T00:00Z"}, True),
    ({"expires": "2127-01-31"}, False),
    ({"expires": "2127-01-31T00:00:00"}, False),
    ({"expires": "2127-01-31T00:00:00+02:00"}, False),
    ({"expires": "2127-02-30T00:00:00Z"}, False),
    ({"expires": "tomorrow"}, False),
    ({"cidrs": ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"]}, True),
    ({"cidrs": ["10.0.0.1/8"]}, False),
    ({"cidrs": ["10.0.0.0/33"]}, False),
    ({"cidrs": ["example.com"]}, False),
    ({"cidrs": "10.0.0.0/8"}, False),
    ({"limits": {}}, True),
    *(({"limits": {name: 1}}, True) for name in limits_module.RateLimits.model_fields),
    *(
        ({"limits": {name: value}}, False)
        for name in limits_module.RateLimits.model_fields
        for value in (0, -1, 1.5, "x", [], 2**60)
    ),
    ({"limits": {"models": {"m": {"tokens_per_day": 1}}}}, True),
    ({"limits": {"models": {"m": {"tokens_per_day": 0}}}}, False),
    ({"limits": {"models": {"m": {"models": {}}}}}, False),
    ({"limits": {"requests": 1}}, False),
    ({"limit": {}}, False),
]


@pytest.mark.parametrize(("fields", "right"), FIELDS)
def test_a_key(fields: dict[str, Any], right: bool) -> None:
    keys = [KEY | fields]
    assert (found(proxy_keys=keys, proxy_workers=1) == []) is right
    assert proxy_takes_keys(keys) is right


@pytest.mark.parametrize(
    ("keys", "right"),
    [
        ([KEY, OTHER], True),
        ([KEY, OTHER | {"name": KEY["name"]}], False),
        ([KEY, OTHER | {"sha256": HASH}], False),
        ([OTHER, OTHER | {"name": "carol"}], False),
        ([OTHER | {"sha256": "0" * 63}], False),
        ([OTHER | {"sha256": "A" * 64}], False),
        ([{"name": "nobody"}], False),
    ],
)
def test_keys_together(keys: list[dict[str, Any]], right: bool) -> None:
    assert (found(proxy_keys=keys, proxy_workers=1) == []) is right
    assert proxy_takes_keys(keys) is right


@pytest.mark.parametrize(
    ("limits", "right"),
    [
        ({}, True),
        *(({"default": {name: 5}}, True) for name in limits_module.RateLimits.model_fields),
        *(({"default": {name: 0}}, False) for name in limits_module.RateLimits.model_fields),
        ({"models": {"m": {"tokens_per_day": 5}}}, True),
        ({"models": {"whose engines are stopped": {"tokens_per_day": 5}}}, True),
        ({"default": {"models": {}}}, False),
        ({"tokens_without_cap": 0}, False),
        ({"defaults": {}}, False),
    ],
)
def test_general_limits(limits: dict[str, Any], right: bool) -> None:
    whole = {
        "engines": [{"id": "e", "url": "http://10.0.0.3:8000", "models": ["m"]}],
        "keys_file": "/k",
        "drained_dir": "/d",
        "limits": limits,
    }
    assert (found(proxy_limits=limits, proxy_workers=1) == []) is right
    if right:
        config.Config.model_validate(whole)
    else:
        with pytest.raises(ValueError, match="validation error"):
            config.Config.model_validate(whole)


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("redis://cache.example.com:6379/0", True),
        ("rediss://10.0.0.9", True),
        ("redis://[2001:db8::1]:6379/1", True),
        ("redis://cache:6379/", True),
        ("http://cache:6379", False),
        ("cache:6379", False),
        ("redis://", False),
        ("redis://:secret@cache:6379", False),
        ("redis://user@cache", False),
        ("redis://cache:port", False),
        ("redis://cache:65536", False),
        ("redis://cache:0", False),
        ("redis://cache/first", False),
        ("redis://cache/0?a=1", False),
        ("redis://cache/0#a", False),
        ("redis://cache/1/2", False),
    ],
)
def test_the_address_of_a_store(url: str, right: bool) -> None:
    assert (found(proxy_store_url=url) == []) is right
    if right:
        limits_module.StoreConfig(url=url, workers=2)
    else:
        with pytest.raises(ValueError, match="validation error"):
            limits_module.StoreConfig(url=url, workers=2)
