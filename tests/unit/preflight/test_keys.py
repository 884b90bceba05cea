"""Clients' keys and the admin key."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from preflight_inventory import KEY, change_engine, change_proxy, engine, found, key, problems

ADMIN = "fedcba9876543210" * 2


@pytest.mark.parametrize("key", ["", "fedcba9876543210" * 2])
def test_an_admin_key_is_long_or_not_there(inventory: dict[str, Any], key: str) -> None:
    inventory["hostvars"]["api1"]["proxy_admin_key"] = key
    assert problems(inventory) == []


def test_a_short_admin_key(inventory: dict[str, Any]) -> None:
    inventory["hostvars"]["api1"]["proxy_admin_key"] = "a" * 31
    (problem,) = problems(inventory)
    assert "proxy_admin_key has 31 characters" in problem


@pytest.mark.parametrize("length", [0, 31])
def test_a_short_key_is_told_from_a_long_one_without_being_shown(inventory: dict[str, Any], length: int) -> None:
    inventory["hostvars"]["api1"]["proxy_keys"][0]["key"] = "s" * length
    (problem,) = problems(inventory)
    assert f"key 'alice' has {length} characters" in problem
    assert "openssl rand -hex 32" in problem
    assert "sss" not in problem


def test_a_key_for_a_model_that_no_engine_serves(inventory: dict[str, Any]) -> None:
    change_engine(inventory, served_model_name="qwen3-8b")
    inventory["hostvars"]["api1"]["proxy_keys"][0]["models"] = ["qwen3-8B"]
    assert problems(inventory) == [
        "key 'alice' allows model 'qwen3-8B', which no engine serves: did you mean 'qwen3-8b'?"
    ]


def test_a_key_of_a_class_that_is_not_there(inventory: dict[str, Any]) -> None:
    inventory["hostvars"]["api1"]["proxy_keys"][0]["priority"] = "urgent"
    assert problems(inventory) == [
        "key 'alice' has priority 'urgent', which proxy_priorities lacks: it has interactive, default, batch"
    ]


@pytest.mark.parametrize(
    "same", [{"key": KEY["key"]}, {"sha256": hashlib.sha256(KEY["key"].encode()).hexdigest()}], ids=["key", "hash"]
)
def test_one_key_under_two_names(inventory: dict[str, Any], same: dict[str, str]) -> None:
    change_proxy(inventory, proxy_keys=[KEY, {"name": "bob"} | same])
    assert problems(inventory) == ["key 'alice' and key 'bob' are the same key: give each caller a key of its own"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"expires": "2027-01-31"}, "not a moment in UTC: write it as 2027-01-31T00:00:00Z"),
        ({"expires": "2027-01-31T00:00:00+02:00"}, "not a moment in UTC"),
        ({"cidrs": ["10.0.0.1/8"]}, "'10.0.0.1/8' in cidrs is not a network"),
        ({"limits": {"requests_per_minute": 0}}, "limits.requests_per_minute is 0, but must be more than 0"),
        ({"limits": [1]}, "limits is a list, but must be a dictionary"),
    ],
)
def test_fields_of_a_key(inventory: dict[str, Any], fields: dict[str, Any], said: str) -> None:
    change_proxy(inventory, proxy_workers=1, proxy_keys=[{"name": "alice", "key": "0123456789abcdef" * 2, **fields}])
    (problem,) = problems(inventory)
    assert said in problem


def test_a_key_with_all_its_fields_is_good(inventory: dict[str, Any]) -> None:
    fields = {
        "owner": "team",
        "priority": "batch",
        "expires": "2027-01-31T00:00:00Z",
        "cidrs": ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"],
        "limits": {"requests_per_minute": 1, "models": {"m": {"tokens_per_month": 5}}},
    }
    change_proxy(inventory, proxy_workers=1, proxy_keys=[{"name": "alice", "key": "0123456789abcdef" * 2, **fields}])
    assert problems(inventory) == []


def test_a_key_with_a_long_name_is_told_by_its_place_and_beginning() -> None:
    keys = [KEY, {"name": "customer-acme-production", "key": "short"}]
    (line,) = found(proxy_keys=keys, proxy_workers=1)
    assert line.startswith("key proxy_keys[1] ('cust…') has 5 characters")
    assert "swapped" in line


def test_a_misspelt_model_is_shown_although_it_is_long() -> None:
    engines = engine(served_model_name="meta-llama/Llama-3.1-8B")
    (line,) = found(**engines, **key(models=["meta-lama/Llama-3.1-8B"]))
    assert "'meta-lama/Llama-3.1-8B', which no engine serves: did you mean 'meta-llama/Llama-3.1-8B'?" in line


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (key(expires=""), "key 'alice': expires is empty, so the key would never expire"),
        (key(expires=None), "proxy_keys[0] (alice).expires is empty: give it a value, or take the line out"),
        (key(cidrs=[]), "key 'alice': cidrs is empty, which allows all of them"),
        (key(models=[]), "key 'alice': models is empty, which allows all of them"),
        (key(limits={"requests_per_minute": None}), "limits.requests_per_minute is empty: give it a value"),
        ({"proxy_limits": {"default": {"tokens_per_day": None}}}, "proxy_limits.default.tokens_per_day is empty"),
        (key(key="change-me-" * 4), "key 'alice' is still that of an example"),
        (key(key="k" * 40), "key 'alice' consists of 1 different character and can be guessed"),
        (key(key="abc" * 20), "key 'alice' consists of 3 different characters"),
        (key(key=ADMIN) | {"proxy_admin_key": ADMIN}, "key 'alice' is the same as proxy_admin_key"),
        (
            {
                "proxy_keys": [{"name": "alice", "sha256": hashlib.sha256(ADMIN.encode()).hexdigest()}],
                "proxy_admin_key": ADMIN,
            },
            "key 'alice' is the same as proxy_admin_key",
        ),
        ({"proxy_admin_key": "a" * 40}, "proxy_admin_key consists of 1 different character"),
        ({"proxy_store_host": "api1", "proxy_store_password": "Change-Me-" * 4}, "proxy_store_password is still that"),
    ],
)
def test_a_key_that_is_open_to_others_is_refused(variables: dict[str, Any], said: str) -> None:
    (line,) = found(**variables)
    assert said in line
