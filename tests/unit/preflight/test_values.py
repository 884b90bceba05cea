"""Values of variables: types, ranges and forms."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import OPTIONS, engine, found, key, problems, said


def test_text_for_a_number_says_how_the_command_line_has_numbers(inventory: dict[str, Any]) -> None:
    for host in ("api1", "web1"):
        inventory["hostvars"][host]["proxy_workers"] = "2"
    assert problems(inventory) == [
        "proxy_workers is '2', but must be a whole number; on the command line write -e '{\"proxy_workers\": 2}', "
        "since name=value is always text (set for api1, web1)"
    ]


@pytest.mark.parametrize(
    ("host", "name", "value", "said"),
    [
        ("api1", "proxy_workers", True, "is True, but must be a whole number"),
        ("web1", "nginx_certbot_acme_staging", "no", "is 'no', but must be true or false"),
        ("api1", "proxy_keys", "secret", "is not a list"),
        ("engine1", "vllm_args", [], "is not a dictionary"),
    ],
)
def test_a_value_of_another_type_is_shown_if_it_cannot_be_a_key(
    inventory: dict[str, Any], host: str, name: str, value: Any, said: str
) -> None:
    inventory["hostvars"][host][name] = value
    assert problems(inventory) == [f"{name} {said} (set for {host})"]


@pytest.mark.parametrize(
    "variables",
    [
        {"nginx_certbot_worker_processes": 4},
        {"nvidia_drivers_branch": 580},
        {"vllm_version": 0.33},
        {"vllm_models_dir": "/models"},
        {"vllm_models_dir": "/mnt/nvme0/models/"},
        {"vllm_instance_store": ""},
        {"vllm_instance_store": "/mnt/instance-store"},
        {"nginx_certbot_acme_ca_bundle": "/etc/ssl/certs/ca-certificates.crt"},
        {"nginx_certbot_real_ip_from": ["10.0.0.0/8"]},
        {"vllm_environment": {"_A1": 1, "b": "", "C": 's "x" $HOME \\ é'}},
        {"proxy_port": 65532, "proxy_workers": 4},
        engine(served_model_name="2026-01-01"),
    ],
)
def test_a_right_value_is_no_slip(variables: dict[str, Any]) -> None:
    assert found(**variables) == []


@pytest.mark.parametrize(
    "name", [name for variables in OPTIONS.values() for name in variables] + ["stack_body_limit_mb"]
)
def test_a_variable_without_a_value_is_said_to_be_empty(name: str) -> None:
    (line,) = found(**{name: None})
    assert line.startswith(f"{name} is empty: give it a value, or take the line out (set for ")


def test_only_what_has_a_default_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIONS["proxy"], "proxy_optional", {"type": "str", "description": "-"})
    assert found(proxy_optional=None) == []


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
    lines = said(**variables)
    assert lines
    assert not any("could not be made" in line or "cannot be read" in line for line in lines), lines


@pytest.mark.parametrize("name", ["proxy_workers", "proxy_port", "proxy_admin_port"])
def test_a_number_out_of_range_is_not_counted_with(name: str) -> None:
    (line,) = found(**{name: 900_000_000})
    assert f"{name} is 900000000, but must be" in line


def test_a_factor_beyond_the_proxys_bound_is_found() -> None:
    (line,) = found(proxy_timeouts={"size_factors": {"medium": 1e300}})
    assert "proxy_timeouts.size_factors.medium is 1e+300, but no number may have more than 64 bits" in line


@pytest.mark.parametrize("name", ["proxy_health", "proxy_limits", "proxy_routing", "vllm_args"])
def test_a_value_of_another_type_is_one_problem(name: str) -> None:
    (line,) = found(**{name: "null"})
    assert line.startswith(f"{name} is not a dictionary (set for ")
