"""Preflight's checks of the inventory: each fault is found, said once, and answered with what to write instead."""

from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import Any

import pytest
import stack_preflight as preflight
from ansible.errors import AnsibleError

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = preflight.role_options(ROOT / "roles")
SECRET = "0123456789abcdef" * 2
GOOD: dict[str, Any] = {
    "groups": {"vllm": ["engine1"], "proxy": ["api1"], "nginx": ["web1"]},
    "hostvars": {
        "engine1": {
            "stack_address": "10.0.0.3",
            "vllm_engines": [{"name": "one", "model": "/srv/m", "served_model_name": "m", "port": 8000}],
        },
        "api1": {"stack_address": "10.0.0.2", "proxy_keys": [{"name": "alice", "key": "0123456789abcdef" * 2}]},
        "web1": {"stack_address": "127.0.0.1", "stack_domain": "localhost"},
    },
}


def problems(inventory: dict[str, Any]) -> list[str]:
    seen = preflight.Inventory(inventory["groups"], inventory["hostvars"], preflight.role_defaults(OPTIONS))
    return preflight.all_problems(seen, OPTIONS)


@pytest.fixture
def inventory() -> dict[str, Any]:
    return copy.deepcopy(GOOD)


def engine(inventory: dict[str, Any], **changes: Any) -> None:
    inventory["hostvars"]["engine1"]["vllm_engines"][0].update(changes)


def test_a_good_inventory_has_no_problem(inventory: dict[str, Any]) -> None:
    assert problems(inventory) == []


@pytest.mark.parametrize("group", ["vllm", "proxy", "nginx"])
def test_an_empty_group_names_the_tag_that_fills_it(inventory: dict[str, Any], group: str) -> None:
    inventory["groups"][group] = []
    assert any(
        f"group {group} has no host" in problem and f"Tier={group}" in problem for problem in problems(inventory)
    )


def test_an_unknown_variable_names_its_hosts_and_the_nearest_known_one(inventory: dict[str, Any]) -> None:
    inventory["hostvars"]["api1"]["proxy_worker"] = 2
    assert problems(inventory) == ["unknown variable proxy_worker (set for api1): did you mean proxy_workers?"]


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
    ("group", "host", "said"),
    [
        ("vlm", "engine2", "group vlm has engine2, of no tier: did you mean vllm?"),
        ("Proxy", "api2", "group Proxy has api2, of no tier: did you mean proxy?"),
        ("vllm2", "engine1", None),
        ("linux", "bastion", None),
        ("proxmox", "bastion", None),
    ],
)
def test_a_host_in_a_misspelt_group(inventory: dict[str, Any], group: str, host: str, said: str | None) -> None:
    inventory["groups"][group] = [host]
    inventory["hostvars"].setdefault(host, {})
    assert problems(inventory) == ([said] if said else [])


@pytest.mark.parametrize(
    ("tier", "said"),
    [
        ("vllm, ngnix", ["host engine1: its tag Tier has 'ngnix', which is no tier: did you mean nginx?"]),
        ("vllm,nginx", []),
        ("bastion", []),
    ],
)
@pytest.mark.parametrize("name", ["aws_ec2_tags", "aws_tags"])
def test_a_misspelt_tag(inventory: dict[str, Any], name: str, tier: str, said: list[str]) -> None:
    inventory["hostvars"]["engine1"][name] = {"Tier": tier}
    assert problems(inventory) == said


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


def test_two_engines_on_one_port(inventory: dict[str, Any]) -> None:
    engines = inventory["hostvars"]["engine1"]["vllm_engines"]
    engines[0]["gpus"] = [0]
    engines.append({**engines[0], "name": "two", "gpus": [1]})
    assert len(problems(inventory)) == 1
    assert "host engine1: port 8000 is used by engine one and engine two" in problems(inventory)[0]


def test_an_engine_on_a_proxy_workers_port(inventory: dict[str, Any]) -> None:
    inventory["groups"]["proxy"] = ["engine1"]
    inventory["hostvars"]["engine1"]["proxy_keys"] = inventory["hostvars"]["api1"]["proxy_keys"]
    engine(inventory, port=9001)
    assert "port 9001 is used by proxy worker 2 and engine one" in problems(inventory)[0]


def test_an_engine_on_the_port_of_an_admin_api(inventory: dict[str, Any]) -> None:
    inventory["groups"]["proxy"] = ["engine1"]
    inventory["hostvars"]["engine1"]["proxy_keys"] = inventory["hostvars"]["api1"]["proxy_keys"]
    engine(inventory, port=9501)
    inventory["hostvars"]["engine1"]["proxy_admin_address"] = "10.0.0.3"
    assert "port 9501 is used by the admin API of proxy worker 2 and engine one" in problems(inventory)[0]


@pytest.mark.parametrize(("address", "number"), [("127.0.0.1", 0), ("0.0.0.0", 1), ("::", 1)])
def test_a_port_at_two_addresses(inventory: dict[str, Any], address: str, number: int) -> None:
    inventory["groups"]["proxy"] = ["engine1"]
    inventory["hostvars"]["engine1"]["proxy_keys"] = inventory["hostvars"]["api1"]["proxy_keys"]
    inventory["hostvars"]["engine1"]["proxy_admin_address"] = address
    engine(inventory, port=9501)
    assert len(problems(inventory)) == number


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


def test_no_variable_leaves_the_checks_out(inventory: dict[str, Any]) -> None:
    assert preflight.refusal_of(inventory, []) == ""
    inventory["hostvars"]["api1"]["__stack_preflight_collect"] = True
    assert "__stack_preflight_collect is set by the inventory or by -e" in preflight.refusal_of(inventory, [])


class Undefined(dict[str, Any]):
    """Variables of which one is a template of a variable that nobody set."""

    def get(self, name: str, default: Any = None) -> Any:
        if isinstance(value := super().get(name, default), AnsibleError):
            raise value
        return value


@pytest.mark.parametrize(("missing", "hint"), [("vault_proxy_keys", True), ("my_keys", False)])
def test_a_vault_that_is_not_there_is_said_to_be_made(inventory: dict[str, Any], missing: str, hint: bool) -> None:
    keys = AnsibleError(f"'{missing}' is undefined")
    inventory["hostvars"]["api1"] = Undefined(inventory["hostvars"]["api1"], proxy_keys=keys)
    (problem,) = problems(inventory)
    assert problem.startswith(f"proxy_keys of api1 cannot be read: '{missing}' is undefined")
    assert ("cp group_vars/vault.example.yml group_vars/proxy/vault.yml" in problem) is hint


def test_a_pool_that_no_proxy_knows(inventory: dict[str, Any]) -> None:
    engine(inventory, pool="long")
    assert problems(inventory) == [
        "engine 'one' is in pool 'long', which proxy_routing.pools does not have: say there which requests are its"
    ]
    inventory["hostvars"]["api1"]["proxy_routing"] = {"pools": {"long": {"prompt_tokens": 16000}}}
    assert problems(inventory) == []


def test_a_key_for_a_model_that_no_engine_serves(inventory: dict[str, Any]) -> None:
    engine(inventory, served_model_name="qwen3-8b")
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
    ("models", "said"),
    [
        ([{"name": "m", "aliases": ["gpt-4o"], "deprecated": [{"name": "old", "since": "2026-01-01"}]}], None),
        ([{"name": "x"}], "no engine serves"),
        ([{"name": "m", "aliases": ["a", "a"]}], "gives the name 'a' to 'm' and to 'm'"),
        ([{"name": "m", "fallback": "n"}], "cannot fall back on 'n'"),
        ([{"name": "m", "fallback": "m"}], "cannot fall back on 'm'"),
        ([{"name": "m"}, {"name": "m"}], "gives the name 'm'"),
    ],
)
def test_names_of_models(inventory: dict[str, Any], models: list[dict[str, Any]], said: str | None) -> None:
    inventory["hostvars"]["api1"]["proxy_models"] = models
    found = problems(inventory)
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


@pytest.mark.parametrize(("host", "address"), [("api1", "10.0.0.3"), ("api1", "127.0.0.1"), ("api2", "10.0.0.2")])
def test_two_hosts_with_one_address(inventory: dict[str, Any], host: str, address: str) -> None:
    hostvars = inventory["hostvars"]
    inventory["groups"]["proxy"] = sorted({"api1", host})
    hostvars[host] = hostvars["api1"] | {"stack_address": address, "proxy_workers": 1}
    (problem,) = problems(inventory)
    assert f"have the same stack_address, {address}" in problem
    assert host in problem


@pytest.mark.parametrize(
    ("group", "name", "values"),
    [
        ("proxy", "proxy_keys", [[{"name": "a", "key": SECRET}], [{"name": "b", "key": SECRET}]]),
        ("proxy", "proxy_limits", [{}, {"tokens_without_cap": 5}]),
        ("proxy", "proxy_api_versions", [["v1"], ["v2"]]),
        ("proxy", "proxy_custom_endpoints", [[], [{"path": "/a", "answer": {"body": 1}}]]),
        ("proxy", "proxy_models", [[{"name": "m", "aliases": ["x"]}], []]),
        ("proxy", "proxy_store_url", ["redis://x", "redis://y"]),
        ("proxy", "proxy_store_password", ["", SECRET]),
        ("nginx", "nginx_certbot_allow_cidrs", [["10.0.0.0/8"], []]),
        ("nginx", "nginx_certbot_acme_staging", [True, False]),
    ],
)
def test_hosts_of_a_tier_that_differ(inventory: dict[str, Any], group: str, name: str, values: list[Any]) -> None:
    (first,) = inventory["groups"][group]
    inventory["groups"][group] = [first, "z1"]
    inventory["hostvars"]["z1"] = inventory["hostvars"][first] | {"stack_address": "10.0.0.99"}
    assert problems(inventory) == []
    for host, value in zip((first, "z1"), values, strict=True):
        inventory["hostvars"][host][name] = value
    (problem,) = problems(inventory)
    assert f"{name} of z1 is not that of {first}" in problem
    assert SECRET not in problem


def test_a_limit_of_bodies_that_only_the_web_hosts_have(inventory: dict[str, Any]) -> None:
    inventory["hostvars"]["web1"]["stack_body_limit_mb"] = 8
    (problem,) = problems(inventory)
    assert "16 MB to the proxy and 8 MB to nginx: set stack_body_limit_mb in group_vars/all.yml" in problem


def test_two_hosts_whose_one_address_is_written_in_two_ways(inventory: dict[str, Any]) -> None:
    inventory["hostvars"]["api1"]["stack_address"] = "2001:db8::1"
    inventory["hostvars"]["engine1"]["stack_address"] = "2001:0DB8:0::1"
    assert "hosts api1 and engine1 have the same stack_address" in problems(inventory)[0]


def test_an_engine_whose_id_is_too_long_for_a_file(inventory: dict[str, Any]) -> None:
    engine(inventory, name="e" * (255 - len("engine1:")))
    assert problems(inventory) == []
    engine(inventory, name="e" * (256 - len("engine1:")))
    assert "together 256 characters long: at most 255 fit" in problems(inventory)[0]


def test_a_problem_shared_by_all_proxies_is_told_once(inventory: dict[str, Any]) -> None:
    inventory["groups"]["proxy"].append("api2")
    inventory["hostvars"]["api1"]["proxy_keys"][0]["key"] = "short"
    inventory["hostvars"]["api2"] = inventory["hostvars"]["api1"] | {"stack_address": "10.0.0.9"}
    assert len(problems(inventory)) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"port": None}, "lacks port"),
        ({"name": "Upper"}, "lower-case letters"),
        ({"model": "Qwen/Qwen3-8B"}, "set revision to the 40 digits of a commit"),
        ({"model": "Qwen/Qwen3-8B", "revision": "main"}, "set revision to the 40 digits of a commit"),
    ],
)
def test_an_incomplete_engine_says_what_it_lacks(inventory: dict[str, Any], change: dict[str, Any], said: str) -> None:
    engine(inventory, **change)
    assert [problem for problem in problems(inventory) if said in problem and "engine1" in problem]


def test_a_domain_that_leads_elsewhere(inventory: dict[str, Any]) -> None:
    inventory["hostvars"]["web1"]["stack_address"] = "10.9.9.9"
    (problem,) = problems(inventory)
    assert "domain localhost resolves to" in problem
    assert "nginx_certbot_public_addresses" in problem


def test_a_domain_behind_a_load_balancer_that_is_named(inventory: dict[str, Any]) -> None:
    inventory["hostvars"]["web1"].update(stack_address="10.9.9.9", nginx_certbot_public_addresses=["127.0.0.1", "::1"])
    assert problems(inventory) == []


def test_a_public_address_may_be_written_in_any_form(
    inventory: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("2001:db8::1", 443, 0, 0))])
    inventory["hostvars"]["web1"].update(nginx_certbot_public_addresses=["2001:0DB8:0:0::1"])
    assert problems(inventory) == []


def test_a_domain_that_does_not_resolve(inventory: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    assert "domain localhost does not resolve" in problems(inventory)[0]


def test_all_problems_are_in_one_report(inventory: dict[str, Any]) -> None:
    inventory["groups"]["nginx"] = []
    inventory["hostvars"]["api1"]["proxy_keys"][0]["key"] = "short"
    engine(inventory, model="hub/model")
    found = problems(inventory)
    assert len(found) == 3
    assert preflight.report(found).startswith("3 problems in the inventory; nothing was changed:\n  - ")


def proxy(inventory: dict[str, Any], **changes: Any) -> None:
    inventory["hostvars"]["api1"].update(changes)


def limited(**limits: Any) -> list[dict[str, Any]]:
    return [{"name": "alice", "key": "0123456789abcdef" * 2, "limits": limits}]


@pytest.mark.parametrize(
    "limits",
    [
        {"proxy_keys": limited(requests_per_minute=9)},
        {"proxy_limits": {"default": {"tokens_per_day": 9}}},
        {"proxy_limits": {"models": {"m": {"tokens_per_day": 9}}}},
    ],
)
def test_limits_of_several_workers_need_a_store(inventory: dict[str, Any], limits: dict[str, Any]) -> None:
    proxy(inventory, proxy_workers=1, **limits)
    assert problems(inventory) == []
    proxy(inventory, proxy_workers=2)
    (problem,) = problems(inventory)
    assert "multiplied by the number of workers" in problem
    assert "proxy_store_host" in problem
    proxy(inventory, proxy_store_host="api1", proxy_store_password=SECRET)
    assert problems(inventory) == []
    proxy(inventory, proxy_store_host="", proxy_store_url="rediss://cache.example.com:6379/0")
    assert problems(inventory) == []


def test_limits_on_several_hosts_need_a_store_said_once(inventory: dict[str, Any]) -> None:
    proxy(inventory, proxy_workers=1, proxy_keys=limited(requests_per_minute=9))
    inventory["groups"]["proxy"].append("api2")
    inventory["hostvars"]["api2"] = inventory["hostvars"]["api1"] | {"stack_address": "10.0.0.9"}
    (problem,) = problems(inventory)
    assert "multiplied by the number of workers" in problem


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"proxy_store_host": "web1", "proxy_store_password": SECRET}, "not in the group proxy: name one of api1"),
        ({"proxy_store_host": "api1"}, "proxy_store_password has 0 characters"),
        (
            {"proxy_store_host": "api1", "proxy_store_password": SECRET, "proxy_store_port": 9000},
            "port 9000 is used by",
        ),
        (
            {"proxy_store_host": "api1", "proxy_store_password": SECRET, "proxy_store_url": "redis://x"},
            "give one of them",
        ),
        *(
            ({"proxy_store_url": url}, "write redis://host:port/database")
            for url in ("redis://:secret@x:1", "redis://x:port/0", "redis://x:65536", "redis://x:0/0")
        ),
        (
            {"proxy_limits": {"default": {"tokens_per_hour": 1}}},
            "proxy_limits.default has the unknown option 'tokens_per_hour': did you",
        ),
        ({"proxy_limits": {"models": {"n": {}}}}, "names model 'n', which no engine serves: the engines serve m"),
        (
            {"proxy_limits": {"models": {"m": {"tokens_per_day": "9"}}}},
            "proxy_limits.models.m.tokens_per_day is '9', but must be",
        ),
    ],
)
def test_a_store_or_limits_that_cannot_be(inventory: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    proxy(inventory, proxy_workers=1, **changes)
    (problem,) = problems(inventory)
    assert said in problem
    assert "secret" not in problem


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
    proxy(inventory, proxy_workers=1, proxy_keys=[{"name": "alice", "key": "0123456789abcdef" * 2, **fields}])
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
    proxy(inventory, proxy_workers=1, proxy_keys=[{"name": "alice", "key": "0123456789abcdef" * 2, **fields}])
    assert problems(inventory) == []
