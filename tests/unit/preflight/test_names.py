"""Names of variables, and where they are set."""

from __future__ import annotations

from typing import Any

import pytest
from preflight_inventory import OPTIONS, found, problems
from stack_preflight import load

RENAMED = load("rules").RENAMED


def test_an_unknown_variable_names_its_hosts_and_the_nearest_known_one(inventory: dict[str, Any]) -> None:
    inventory["hostvars"]["api1"]["proxy_worker"] = 2
    assert problems(inventory) == ["unknown variable proxy_worker (set for api1): did you mean proxy_workers?"]


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_variable_names_the_new_one(inventory: dict[str, Any], old: str) -> None:
    role = old.partition("_")[0]
    host, new = ("engine1" if role == "vllm" else "api1"), RENAMED[old]
    inventory["hostvars"][host][old] = 60
    assert problems(inventory) == [f"variable {old} is now {new} (set for {host}): rename it"]
    assert old not in OPTIONS[role]
    assert new.partition(".")[0] in OPTIONS[role]


@pytest.mark.parametrize(
    ("name", "prefix"), [("vllm_hf_token", "vllm_"), ("stack_region", "stack_"), ("proxy_env", "proxy_")]
)
def test_an_own_name_with_a_roles_prefix_is_asked_to_take_another(
    inventory: dict[str, Any], name: str, prefix: str
) -> None:
    inventory["hostvars"]["api1"][name] = "x"
    (line,) = problems(inventory)
    assert line.endswith(f"one of your own needs a name that does not begin with {prefix}")


@pytest.mark.parametrize(
    ("hosts", "name", "value", "group"),
    [
        (["api1"], "nginx_certbot_acme_staging", True, "nginx"),
        (["engine1", "web1"], "proxy_workers", 1, "proxy"),
        (["api1"], "nvidia_drivers_reboot", True, "vllm"),
        (["api1", "web1"], "nginx_certbot_acme_staging", True, None),
        (["engine1"], "nvidia_drivers_reboot", True, None),
        (["engine1"], "proxy_drain_timeout_s", 60, None),
    ],
)
def test_a_variable_where_nobody_reads_it(
    inventory: dict[str, Any], hosts: list[str], name: str, value: Any, group: str | None
) -> None:
    for host in hosts:
        inventory["hostvars"][host][name] = value
    said = f"{name} is set for {', '.join(hosts)}, but for no host of the group {group}, where it is read: move it to "
    assert problems(inventory) == ([f"{said}group_vars/{group}.yml"] if group else [])


@pytest.mark.parametrize(
    "variables", [{"proxy_admin_port": 9101}, {"nvidia_drivers_force": True, "vllm_version": "0.33.0"}]
)
def test_a_host_of_no_tier_may_have_a_roles_variables(inventory: dict[str, Any], variables: dict[str, Any]) -> None:
    """To monitor the tiers, or to build an image with their roles."""
    inventory["groups"]["others"] = ["other1"]
    inventory["hostvars"]["other1"] = variables
    assert problems(inventory) == []


def test_a_misspelt_prefix_is_found() -> None:
    lines = found(
        vlm_models_dir="x",
        ngnix_certbot_email="ops@example.com",
        lab_install_environment={},
        my_keys=[],
        __proxy_health={},
    )
    assert [line.partition("did you mean ")[2] for line in lines] == ["nginx_certbot_email?", "vllm_models_dir?"]


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("nginx_allow_cidrs", [], "nginx_certbot_allow_cidrs"),
        ("certbot_email", "ops@example.com", "nginx_certbot_email"),
        ("drivers_branch", "580", "nvidia_drivers_branch"),
        ("proxykeys", [], "proxy_keys"),
        ("stackdomain", "localhost", "stack_domain"),
        ("nginx_certbot", {"allow_cidrs": [], "email": ""}, "nginx_certbot_allow_cidrs and nginx_certbot_email"),
        ("nginx", {"allow_cidrs": []}, "nginx_certbot_allow_cidrs"),
        ("vllm", {"version": "0.33.0"}, "vllm_version"),
        ("proxy-keys", [], "proxy_keys"),
        ("NGINX_CERTBOT_EMAIL", "", "nginx_certbot_email"),
        ("stak_domain", "localhost", "stack_domain"),
    ],
)
def test_a_name_that_holds_the_end_of_a_variables_is_taken_for_it(name: str, value: Any, meant: str) -> None:
    assert found(**{name: value}) == [f"variable {name} is none of the collection's: did you mean {meant}?"]


def test_of_the_variables_inside_one_those_are_meant_that_are_not_set() -> None:
    (line,) = found(nginx_certbot={"allow_cidrs": [], "email": ""}, nginx_certbot_email="")
    assert line.endswith("did you mean nginx_certbot_allow_cidrs?")


@pytest.mark.parametrize(
    "variables",
    [
        {"keys": [], "port": 1, "nginx_version": "1", "certbot_plugins": []},
        {"proxy": {"host": "10.0.0.9", "port": 3128}},
        {"vault_nginx_certbot_email": "ops@example.com"},
        {"allow_cidrs": ["10.0.0.0/8"], "build_dir": "/srv/build", "admin_key": "x", "start_timeout": 5},
        {"haproxy_port": 8080, "proxysql_port": 6033, "myproxy_port": 1, "env_proxy_port": 1, "proxy2_port": 1},
        {"llm_version": "1", "nginx_lb_email": "ops@example.com", "litellm_version": "1"},
        {"stack_domain": "localhost", "slack_domain": "example.slack.com"},
        {"nginx_allow_cidrs": ["10.0.0.0/8"], "nginx_certbot_allow_cidrs": ["10.0.0.0/8"]},
        {"certbot_email": "ops@example.com", "contacts": ["{{ certbot_email }}"]},
    ],
)
def test_a_name_of_the_operators_own_is_let_be(variables: dict[str, Any]) -> None:
    assert found(**variables) == []
