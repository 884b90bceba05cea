"""What preflight says never holds a secret or what a terminal obeys, and no value keeps the rest from being said."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import stack_preflight as preflight
from test_playbooks import inventory, run
from test_preflight_options import KEY, engine, found, key
from test_stack_preflight import GOOD, OPTIONS

__all__ = ["inventory"]

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


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_key_in_any_place_is_not_shown(place: str, secret: str) -> None:
    lines = found(**PLACES[place](secret))
    assert lines
    assert secret[:7] not in " ".join(lines), lines


def test_a_key_that_is_a_number_is_not_shown() -> None:
    for fields in ({"name": 10**40}, {"limits": {"requests_per_minute": -(10**40)}}, {"models": [10**40]}):
        lines = found(**key(**fields))
        assert lines
        assert "0" * 20 not in " ".join(lines)


def test_a_key_with_a_long_name_is_told_by_its_place_and_beginning() -> None:
    keys = [KEY, {"name": "customer-acme-production", "key": "short"}]
    (line,) = found(proxy_keys=keys, proxy_workers=1)
    assert line.startswith("key proxy_keys[1] ('cust…') has 5 characters")
    assert "swapped" in line


def test_a_misspelt_model_is_shown_although_it_is_long() -> None:
    engines = engine(served_model_name="meta-llama/Llama-3.1-8B")
    (line,) = found(**engines, **key(models=["meta-lama/Llama-3.1-8B"]))
    assert "'meta-lama/Llama-3.1-8B', which no engine serves: did you mean 'meta-llama/Llama-3.1-8B'?" in line


ADMIN = "fedcba9876543210" * 2


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


@pytest.mark.parametrize("huge", [10**5000, -(10**5000), 10**30, 1e300], ids=["digits", "negative", "int", "float"])
@pytest.mark.parametrize(
    "name", ["proxy_workers", "proxy_keep_releases", "nginx_certbot_hsts_max_age_s", "stack_domain"]
)
def test_a_huge_number_leaves_the_other_problems_told(name: str, huge: Any) -> None:
    lines = found(**{name: huge}, vllm_version="x")
    assert any(name in line for line in lines)
    assert any("vllm_version is 'x'" in line for line in lines)
    assert not any("could not be made" in line for line in lines), lines


@pytest.mark.parametrize(
    "variables",
    [
        {"stack_address": 10**5000},
        engine(name=10**5000),
        engine(args={"tensor-parallel-size": 10**5000}),
        key(name=10**5000),
        key(expires=10**5000),
        {"proxy_limits": {"models": {10**5000: {}}}},
    ],
    ids=["address", "engine", "option", "key", "moment", "name"],
)
def test_a_huge_number_is_said_wherever_it_stands(variables: dict[str, Any]) -> None:
    lines = found(**variables)
    assert lines
    assert not any("could not be made" in line or "cannot be read" in line for line in lines), lines


@pytest.mark.parametrize("name", ["proxy_workers", "proxy_port", "proxy_admin_port"])
def test_a_number_out_of_range_is_not_counted_with(name: str) -> None:
    (line,) = found(**{name: 900_000_000})
    assert f"{name} is 900000000, but must be" in line


def test_a_factor_beyond_the_proxys_bound_is_found() -> None:
    (line,) = found(proxy_timeouts={"size_factors": {"medium": 1e300}})
    assert "proxy_timeouts.size_factors.medium is 1e+300, but no number may have more than 64 bits" in line


@pytest.mark.parametrize("checks", ["FORM", "CHECKS"])
def test_a_check_that_fails_says_where_and_not_with_what(monkeypatch: pytest.MonkeyPatch, checks: str) -> None:
    def check_it(*_: object) -> list[str]:
        raise KeyError("s3cret")

    monkeypatch.setattr(preflight, checks, [check_it])
    lines = found()
    assert any("check_it could not be made: KeyError in test_preflight_secrets.py, line " in line for line in lines)
    assert "s3cret" not in " ".join(lines)


class Untemplatable(dict[str, Any]):
    """Variables of a host of which some cannot be templated."""

    def __init__(self, values: dict[str, Any], errors: dict[str, Exception]) -> None:
        super().__init__(values | dict.fromkeys(errors))
        self._errors = errors

    def get(self, name: str, default: Any = None) -> Any:
        if name in self._errors:
            raise self._errors[name]
        return super().get(name, default)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("cannot convert 's3cret' to a number"), "ValueError, whose words may hold a secret"),
        (ValueError("Error: 'vault_proxy_keys' is undefined. s3cret"), "'vault_proxy_keys' is undefined: set it"),
        (ValueError("'hostvars['s3cret']' is undefined"), "ValueError, whose words may hold a secret"),
    ],
)
def test_a_variable_that_cannot_be_read_is_told_without_its_value(error: Exception, said: str) -> None:
    hostvars = GOOD["hostvars"] | {"api1": Untemplatable(GOOD["hostvars"]["api1"], {"proxy_keys": error})}
    seen = preflight.Inventory(GOOD["groups"], hostvars, preflight.role_defaults(OPTIONS))
    (line,) = preflight.all_problems(seen, OPTIONS)
    assert line.startswith(f"proxy_keys of api1 cannot be read: {said}")
    assert "s3cret" not in line


@pytest.mark.parametrize(
    "variables",
    [
        {"proxy_models": [{"name": "\x1b[31mred\nm"}]},
        {"proxy_routing": {"pools": {"\x1b[2J\u202e" * 900: {}}}},
        {"proxy_models": [{"name": "long name " * 20_000}]},
        key(name="\x1b[31mred"),
        engine(name="\x9b" + "x" * 9000),
        {"stack_domain": "\r\n" + "x" * 9000},
        {"proxy_\x1b[31m": 1},
        {"proxy_queue": {"\x1b[31m": 1}},
    ],
)
def test_a_name_can_neither_steer_a_terminal_nor_fill_it(variables: dict[str, Any]) -> None:
    lines = found(**variables)
    assert lines
    assert all(line.isprintable() and len(line) < 5000 for line in lines), lines


def test_a_doubled_key_in_a_file_of_variables_stops_the_run_without_being_shown(inventory: Path) -> None:
    (inventory.parent / "group_vars").mkdir()
    doubled = "proxy_keys:\n  - name: a\n    key: s3cret-one\n    key: s3cret-two\n"
    (inventory.parent / "group_vars" / "proxy.yml").write_text(doubled)
    status, output = run(inventory, "playbooks/check_inventory.yml")
    assert status != 0
    assert "proxy.yml" in output
    assert "duplicate mapping key 'key'" in output
    assert "s3cret" not in output
