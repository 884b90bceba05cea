"""Secrets in the wrong place, which no message shows."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import KEY, engine, key, said

SECRETS = [
    "9f86d081884c7d659a2feaa0c55ad015",
    "correct-horse-battery-staple-nine",
    "sk-Zm9vYmFyYmF6cXV4",
    "1234567890123456789012345678901234",
    "2001deadbeefdeadbeefdeadbeef2001",
    "Tr0ub4dor&3Tr0ub4dor&3",
]


PLACES: dict[str, Any] = {
    "name and key swapped": lambda secret: key(name=secret, key="alice"),
    "name for key": lambda secret: {"proxy_keys": [{"name": secret}], "proxy_workers": 1},
    "name, with another slip": lambda secret: key(name=secret, model=[]),
    "priority": lambda secret: key(priority=secret),
    "models": lambda secret: key(models=[secret]),
    "cidrs": lambda secret: key(cidrs=[secret]),
    "expires": lambda secret: key(expires=secret),
    "models of limits": lambda secret: key(limits={"models": {secret: {"requests_per_minute": 0}}}),
    "a limit": lambda secret: key(limits={"requests_per_minute": secret}),
    "an option": lambda secret: key(**{secret: "alice"}),
    "sha256": lambda secret: {"proxy_keys": [{"name": "alice", "sha256": secret + "0"}], "proxy_workers": 1},
    "twice": lambda secret: {"proxy_keys": [KEY | {"name": secret}] * 2, "proxy_workers": 1},
    "environment": lambda secret: engine(environment={"HF_TOKEN": f"{secret}\n"}),
    "environment's name": lambda secret: {"vllm_environment": {f"HF_TOKEN={secret}": "x"}},
    "query": lambda secret: {"proxy_traces_endpoint": f"http://host:1/v1/traces?token={secret} x"},
    "path": lambda secret: {"proxy_traces_endpoint": f"ftp://host:1/{secret}"},
    "password with a slash": lambda secret: {"proxy_traces_endpoint": f"ftp://user:a/{secret}@host/"},
    "credentials alone": lambda secret: {"proxy_traces_endpoint": f"user:{secret}@host"},
}


SECRET = "s3cret-" * 6


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_key_in_any_place_is_not_shown(place: str, secret: str) -> None:
    lines = said(**PLACES[place](secret))
    assert lines
    assert secret[:7] not in " ".join(lines), lines


def test_a_key_that_is_a_number_is_not_shown() -> None:
    for fields in ({"name": 10**40}, {"limits": {"requests_per_minute": -(10**40)}}, {"models": [10**40]}):
        lines = said(**key(**fields))
        assert lines
        assert "0" * 20 not in " ".join(lines)


@pytest.mark.parametrize(
    "variables",
    [
        key(key=[SECRET]),
        key(limits=SECRET),
        key(**{SECRET: ""}),
        {"proxy_keys": [SECRET], "proxy_workers": 1},
        {"proxy_keys": SECRET},
        {"proxy_admin_key": [SECRET]},
        {"proxy_store_password": [SECRET]},
        {"proxy_traces_endpoint": f"htp://user:{SECRET}@host/"},
        engine(environment=f"HF_TOKEN={SECRET}"),
        engine(args=f"--api-key {SECRET}"),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(variables: dict[str, Any]) -> None:
    lines = said(**variables)
    assert lines
    assert SECRET[:12] not in " ".join(lines)
