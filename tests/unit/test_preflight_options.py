"""Each kind of slip in a variable, at any depth, is found before anything changes, said once, and answered."""

from __future__ import annotations

import copy
from datetime import date
from typing import Any

import pytest
import yaml
from test_stack_preflight import GOOD, OPTIONS, ROOT, problems

config = pytest.importorskip("inference_proxy.config")

KEY = {"name": "alice", "key": "0123456789abcdef" * 2}
ENGINE = GOOD["hostvars"]["engine1"]["vllm_engines"][0]


def found(**variables: Any) -> list[str]:
    """The problems of the good inventory with these variables for all hosts."""
    inventory = copy.deepcopy(GOOD)
    for host in inventory["hostvars"].values():
        host |= {name: value for name, value in variables.items() if not name.startswith("vllm_engines")}
    if "vllm_engines" in variables:
        inventory["hostvars"]["engine1"]["vllm_engines"] = variables["vllm_engines"]
    return problems(inventory)


def engine(**fields: Any) -> dict[str, Any]:
    return {"vllm_engines": [ENGINE | fields]}


def key(**fields: Any) -> dict[str, Any]:
    return {"proxy_keys": [KEY | fields], "proxy_workers": 1}


SLIPS: list[tuple[dict[str, Any], str]] = [
    # Misspelt at some depth.
    (key(limit={"requests_per_minute": 1}), "the unknown option 'limit': did you mean limits?"),
    (key(expire="2030-01-01T00:00:00Z"), "unknown option 'expire': did you mean expires?"),
    (key(model=["m"]), "unknown option 'model': did you mean models?"),
    (key(limits={"models": {"m": {"token_per_day": 1}}}), "did you mean tokens_per_day?"),
    (engine(served_model="m"), "unknown option 'served_model': did you mean served_model_name?"),
    ({"proxy_timeouts": {"first_bite_s": 1}}, "unknown option 'first_bite_s': did you mean first_byte_s?"),
    ({"proxy_timeouts": {"total_s": {"generations": 1}}}, "did you mean generation?"),
    ({"proxy_routing": {"pools": {"long": {"prompt_token": 1, "max_tokens": 2}}}}, "did you mean prompt_tokens?"),
    ({"proxy_queue": {"max_wait": 1}}, "did you mean max_wait_s?"),
    ({"proxy_health": {"stall": 1}}, "did you mean stall_s?"),
    ({"proxy_retries": {"attempt": 1}}, "did you mean attempts?"),
    ({"proxy_priorities": {"default": {"shares": 1}}}, "did you mean share?"),
    ({"proxy_limits": {"default": {"requests": 1}}, "proxy_workers": 1}, "unknown option 'requests'"),
    ({"proxy_models": [{"name": "m", "alias": ["x"]}]}, "did you mean aliases?"),
    ({"proxy_models": [{"name": "m", "deprecated": [{"name": "o", "since": "2026-01-01", "until": "x"}]}]}, "'until'"),
    ({"proxy_custom_endpoints": [{"path": "/a", "answer": {"body": 1, "code": 2}}]}, "unknown option 'code'"),
    ({"stack_domian": "x"}, "unknown variable stack_domian"),
    # Of another type.
    (key(models="qwen"), "models is a text, but must be a list"),
    (key(cidrs="10.0.0.0/8"), "cidrs is a text, but must be a list"),
    (key(limits=[1]), "limits is a list, but must be a dictionary"),
    (engine(args="--max-model-len 5"), "args is a text, but must be a dictionary"),
    (engine(environment=["A=1"]), "environment is a list, but must be a dictionary"),
    (engine(port="http"), "port is 'http', but must be a whole number"),
    (engine(gpus=0), "gpus is a whole number, but must be a list"),
    ({"proxy_models": [{"name": "m", "aliases": "abc"}]}, "aliases is a text, but must be a list"),
    # Out of range.
    (engine(port=22), "port is 22, but must be at least 1024"),
    (engine(port=70000), "port is 70000, but must be at least 1024 and at most 65535"),
    (engine(weight=0), "weight is 0, but must be more than 0"),
    (engine(gpus=[-1]), "gpus[0] is -1"),
    ({"stack_body_limit_mb": 0}, "stack_body_limit_mb is 0"),
    ({"proxy_workers": 100}, "proxy_workers is 100, but must be at least 0 and at most 64"),
    ({"proxy_timeouts": {"connect_s": float("inf")}}, "connect_s is inf, but must be a finite number"),
    ({"proxy_health": {"max_ejected_share": 2}}, "max_ejected_share is 2"),
    ({"vllm_start_timeout": 0}, "vllm_start_timeout is 0"),
    *(({"vllm_watchdog_timeout": s}, "must be at least 30 and at most 604800") for s in (0, 1, -5)),
    ({"proxy_usage_retention_days": 1_000_000}, "must be at least 1 and at most 36500"),
    (engine(gpus=[]), "gpus is empty, but needs 1 or more"),
    (
        {"proxy_port": 65530, "proxy_workers": 8},
        "proxy_port is 65530, and 8 workers from there are more than there are ports",
    ),
    ({"proxy_admin_port": 65535}, "proxy_admin_port is 65535, and 4 workers from there"),
    # Malformed.
    *(({"nginx_certbot_worker_processes": n}, "must be auto or a number") for n in (0, -1, 2.5)),
    ({"nvidia_drivers_branch": 58}, "nvidia_drivers_branch is 58, but must be a branch"),
    ({"nginx_certbot_email": 5}, "must be an e-mail address"),
    ({"nginx_certbot_real_ip_header": 5}, "must be the name of a header"),
    ({"nginx_certbot_acme_ca_bundle": "roots.pem"}, "must be the whole path of a file"),
    *(
        ({"nginx_certbot_real_ip_from": [network]}, "every client could say what its address is")
        for network in ("0.0.0.0/0", "::/0")
    ),
    *(
        ({"vllm_models_dir": path}, "vllm_models_dir is")
        for path in (
            "/",
            "/tmp",
            "/tmp/x",
            "",
            " ",
            "models",
            "/srv",
            "/var/lib",
            "/srv/../etc",
            "/srv/a b",
            "//x",
            "/usr/x",
        )
    ),
    *(
        (engine(served_model_name=name), "a number or a day to YAML: put it in quotes")
        for name in (123, 4.1, date(2026, 1, 1))
    ),
    (engine(served_model_name=""), "served_model_name has 0 characters, but must have 1 to 256"),
    (engine(served_model_name="m" * 300), "served_model_name has 300 characters"),
    (engine(served_model_name="a\nb"), "must be a text without control characters"),
    ({"vllm_environment": {"A B": "x"}}, "a name that begins with 'A', but names must have letters, digits and _ only"),
    ({"vllm_environment": {"A": None}}, "vllm_environment.A is empty, but must be a text"),
    ({"proxy_pip_environment": {"A": "x\ny"}}, "proxy_pip_environment.A is a text, but must be a single line"),
    ({"vllm_fetch_environment": {"A": ["x"]}}, "vllm_fetch_environment.A is a list, but must be a text"),
    ({"vllm_install_environment": {"A": True}}, "vllm_install_environment.A is true or false, but must be a text"),
    (engine(environment={"A": {}}), "environment.A is a dictionary, but must be a text"),
    ({"proxy_api_versions": ["/v1/"]}, "proxy_api_versions[0] is '/v1/'"),
    ({"proxy_custom_endpoints": [{"path": "a b", "upstream_path": "/x"}]}, "path is 'a b'"),
    ({"nginx_certbot_email": "ops at example"}, "must be an e-mail address"),
    ({"nginx_certbot_domains": ["https://localhost/"]}, "must be a host name"),
    ({"nginx_certbot_allow_cidrs": ["10.0.0.1/8"]}, "not a network"),
    ({"stack_address": "host1"}, "stack_address is 'host1'"),
    (engine(model="s3://"), "must be a directory"),
    (engine(model="s3:/b/x"), "must be a directory"),
    (engine(model="models/../x/y"), "must be a directory"),
    (key(expires="2030-13-01T00:00:00Z"), "which does not exist"),
    (key(expires="2020-01-01T00:00:00Z"), "which has passed"),
    (key(key="0123456789abcdef" * 2 + "\n"), "begins or ends with a blank"),
    (key(key="0123456789abcdef" * 2 + " x"), "no header can carry"),
    (key(key="0123456789abcdef" * 2 + "ä"), "no header can carry"),
    # What contradicts itself, or another tier.
    ({"proxy_timeouts": {"total_s": {"generation": 7200}}}, "nginx gives up after nginx_certbot_generation_timeout_s"),
    ({"nginx_certbot_short_timeout_s": 30}, "proxy_timeouts.total_s.utility is 45 s"),
    ({"proxy_body_limit_mb": 8}, "set stack_body_limit_mb"),
    ({"stack_body_limit_mb": 64}, "more than engines take"),
    ({"proxy_routing": {"pools": {"long": {}}}}, "give prompt_tokens, max_tokens or both"),
    ({"proxy_custom_endpoints": [{"path": "/a"}]}, "give either upstream_path or answer"),
    (
        {
            "proxy_custom_endpoints": [
                {"path": "/a", "upstream_path": "/v1/audio/translations", "defaults": {"temperature": 0}}
            ]
        },
        "takes a form, which is passed on as it is: leave defaults out",
    ),
    ({"proxy_timeouts": {"size_factors": {"medium": 1e300}}}, "no number may have more than 64 bits"),
    ({"proxy_priorities": {"batch": {"share": 1}}}, "lacks default"),
    ({"proxy_models": [{"name": "m", "size": "huge"}]}, "size 'huge' is not in"),
    ({"proxy_models": [{"name": "m", "defaults": {"max_tokens": 1}}]}, "defaults cannot set max_tokens"),
    ({"proxy_models": [{"name": "m", "default_max_tokens": 9, "max_tokens_limit": 5}]}, "is larger than"),
]


@pytest.mark.parametrize(
    "variables",
    [
        {"nginx_certbot_worker_processes": 4},
        {"nvidia_drivers_branch": 580},
        {"vllm_version": 0.33},
        {"vllm_models_dir": "/models"},
        {"vllm_models_dir": "/mnt/nvme0/models/"},
        {"nginx_certbot_acme_ca_bundle": "/etc/ssl/certs/ca-certificates.crt"},
        {"nginx_certbot_real_ip_from": ["10.0.0.0/8"]},
        {"vllm_environment": {"_A1": 1, "b": "", "C": 's "x" $HOME \\ é'}},
        {"proxy_port": 65532, "proxy_workers": 4},
        engine(served_model_name="2026-01-01"),
    ],
)
def test_a_right_value_is_no_slip(variables: dict[str, Any]) -> None:
    assert found(**variables) == []


@pytest.mark.parametrize(("variables", "said"), SLIPS)
def test_a_slip_is_said_once(variables: dict[str, Any], said: str) -> None:
    lines = found(**variables)
    if "priorities" in str(variables):
        lines = [line for line in lines if "has priority" not in line]
    if "stack_address" in variables:
        lines = [line for line in lines if "set it to the private IP address" not in line and "resolves to" not in line]
    if "domains" in str(variables):
        lines = [line for line in lines if "does not resolve" not in line]
    assert len(lines) == 1, lines
    assert said in lines[0]


@pytest.mark.parametrize(
    "name", [name for variables in OPTIONS.values() for name in variables] + ["stack_body_limit_mb"]
)
def test_a_variable_without_a_value_is_said_to_be_empty(name: str) -> None:
    (line,) = found(**{name: None})
    assert line.startswith(f"{name} is empty: give it a value, or take the line out (set for ")


def test_only_what_has_a_default_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIONS["proxy"], "proxy_optional", {"type": "str", "description": "-"})
    assert found(proxy_optional=None) == []


SECRET = "s3cret-" * 6


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
    lines = found(**variables)
    assert lines
    assert SECRET[:12] not in " ".join(lines)


@pytest.mark.parametrize(
    "variables",
    [
        key(name=["a"]),
        key(priority=["x"]),
        key(models=[{"a": 1}, ["m"]]),
        engine(pool=["a"]),
        engine(name=["x"], served_model_name=["y"], port=None),
        {"proxy_models": [{"name": ["m"], "fallback": ["x"]}]},
        {"nginx_certbot_public_addresses": 5},
        {"stack_domain": "a..b"},
        {"stack_address": ["10.0.0.1"]},
        {"vllm_engines": "abc"},
        {"vllm_engines": [5]},
        {"proxy_routing": {"pools": {"": {"max_tokens": 5}}}},
    ],
)
def test_no_value_keeps_the_report_from_being_made(variables: dict[str, Any]) -> None:
    lines = found(**variables, vllm_version="x")
    assert len(lines) >= 2
    assert any("vllm_version is 'x'" in line for line in lines), "the other problems are told as well"
    assert not any("could not be made" in line for line in lines), lines


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
        ("allow_cidrs", [], "nginx_certbot_allow_cidrs"),
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
        {"allow_cidrs": ["10.0.0.0/8"], "nginx_certbot_allow_cidrs": ["10.0.0.0/8"]},
        {"stack_domain": "localhost", "slack_domain": "example.slack.com"},
        {"models_dir": "/srv/models", "model_paths": ["{{ models_dir }}/m"]},
    ],
)
def test_a_name_of_the_operators_own_is_let_be(variables: dict[str, Any]) -> None:
    assert found(**variables) == []


RESERVED = ["model", "served-model-name", "served_model_name", "host", "port", "config", "api-key", "api_key"]


@pytest.mark.parametrize("name", RESERVED)
def test_no_option_takes_the_place_of_what_the_role_sets(name: str) -> None:
    for variables, where in (
        ({"vllm_args": {name: SECRET}}, "vllm_args"),
        (engine(args={name: SECRET}), "engine 'one': args"),
    ):
        (line,) = found(**variables)
        assert line.startswith(f"host engine1: {where} must not have {name}: take it out; the role sets what")
        assert SECRET not in line


def test_a_ring_of_fallbacks_is_named() -> None:
    engines = [
        ENGINE | {"name": name, "served_model_name": name, "port": 8000 + at, "gpus": [at]}
        for at, name in enumerate("abc")
    ]
    ring = [{"name": one, "fallback": other} for one, other in ("ab", "bc", "ca")]
    (line,) = found(vllm_engines=engines, proxy_models=ring)
    assert "a -> b -> c -> a" in line
    assert found(vllm_engines=engines, proxy_models=ring[:2]) == []


@pytest.mark.parametrize(
    ("first", "second", "number"),
    [
        ({"gpus": [0, 1]}, {"gpus": [1]}, 1),
        ({"gpus": [0]}, {"gpus": [1]}, 0),
        (
            {"gpus": [0], "args": {"gpu-memory-utilization": 0.4}},
            {"gpus": [0], "args": {"gpu-memory-utilization": 0.5}},
            0,
        ),
        (
            {"gpus": [0], "args": {"gpu-memory-utilization": 0.6}},
            {"gpus": [0], "args": {"gpu-memory-utilization": 0.5}},
            1,
        ),
        ({"gpus": [0], "args": {"tensor-parallel-size": 2}}, {"gpus": [1]}, 1),
        ({"gpus": [0], "args": {"tensor_parallel_size": "2"}}, {"gpus": [1]}, 1),
        ({"gpus": [0, 2], "args": {"tensor-parallel-size": 2, "pipeline-parallel-size": 2}}, {"gpus": [1]}, 1),
        ({"gpus": [0], "args": {"data-parallel-size": 2}}, {"gpus": [1]}, 1),
        ({"gpus": [0], "args": {"data-parallel-size": 2, "data-parallel-size-local": 1}}, {"gpus": [1]}, 0),
        ({"gpus": [0, 0]}, {"gpus": [1]}, 1),
        ({}, {}, 1),
        ({"gpus": [0]}, {}, 1),
        ({"gpus": [1]}, {}, 0),
        ({"gpus": [1]}, {"args": {"tensor-parallel-size": 2}}, 1),
        ({"args": {"gpu-memory-utilization": 0.4}}, {"args": {"gpu-memory-utilization": 0.5}}, 0),
        ({"environment": {"VLLM_CPU_KVCACHE_SPACE": "1"}}, {"environment": {"VLLM_CPU_KVCACHE_SPACE": "1"}}, 0),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "MIG-1"}}, {"environment": {"CUDA_VISIBLE_DEVICES": "MIG-2"}}, 0),
        ({"gpus": [0], "environment": {"CUDA_VISIBLE_DEVICES": "1"}}, {"gpus": [1]}, 1),
    ],
)
def test_engines_share_no_gpu(first: dict[str, Any], second: dict[str, Any], number: int) -> None:
    lines = found(vllm_engines=[ENGINE | first, ENGINE | {"name": "two", "port": 8001} | second])
    assert len(lines) == number, lines


@pytest.mark.parametrize(
    ("every", "number"),
    [
        ({"vllm_args": {"gpu-memory-utilization": 0.4}}, 0),
        ({"vllm_args": {"gpu_memory_utilization": "0.4"}}, 0),
        ({"vllm_args": {"gpu-memory-utilization": 0.6}}, 1),
        ({"vllm_args": {"gpu-memory-utilization": 0.4, "tensor-parallel-size": 2}}, 2),
        ({"vllm_args": {"gpu-memory-utilization": -0.5}}, 2),
        ({"vllm_args": {"gpu-memory-utilization": True}}, 3),
        ({"vllm_environment": {"CUDA_VISIBLE_DEVICES": "0"}, "vllm_args": {"gpu-memory-utilization": 0.4}}, 2),
    ],
)
def test_engines_share_a_gpu_as_options_of_all_engines_say(every: dict[str, Any], number: int) -> None:
    lines = found(vllm_engines=[ENGINE | {"gpus": [0]}, ENGINE | {"name": "two", "port": 8001, "gpus": [0]}], **every)
    assert len(lines) == number, lines


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            {"gpu-memory-utilization": -0.5},
            "gpu-memory-utilization of its args must be a number, more than 0 and at most 1",
        ),
        ({"gpu-memory-utilization": True}, "gpu-memory-utilization of its args must be a number"),
        ({"gpu_memory_utilization": float("nan")}, "gpu_memory_utilization is nan, but must be a finite number"),
        ({"hf-overrides": {"a": [float("inf")]}}, "args.hf-overrides.a[0] is inf, but must be a finite number"),
        ({"tensor-parallel-size": 0}, "tensor-parallel-size of its args must be a whole number, at least 1"),
        ({"tensor_parallel_size": "four"}, "tensor-parallel-size of its args must be a whole number, at least 1"),
        (
            {"pipeline-parallel-size": 10**5000},
            "pipeline-parallel-size is a number of more than 64 bits, but no number may have",
        ),
    ],
)
def test_a_size_that_no_engine_can_have(args: dict[str, Any], said: str) -> None:
    (line,) = found(**engine(args=args))
    assert said in line


def test_the_example_that_is_shipped_is_right() -> None:
    variables: dict[str, Any] = {}
    for path in (ROOT / "group_vars").glob("*.yml"):
        variables |= yaml.safe_load(path.read_text()) or {}
    for name in ("proxy_keys", "proxy_admin_key"):
        variables.pop(name, None)  # they come from the vault
    variables |= {"stack_domain": "localhost", "proxy_workers": 1}
    assert found(**variables) == []


PROXY_SECTIONS = {"proxy_" + name: name for name in ("timeouts", "routing", "queue", "health", "retries", "models")}
PROXY_SECTIONS |= {"proxy_" + name: name for name in ("priorities", "api_versions", "custom_endpoints", "limits")}


@pytest.mark.parametrize(
    "variables",
    [variables for variables, said in SLIPS if PROXY_SECTIONS.keys() & variables.keys() and "nginx" not in said],
)
def test_the_proxy_itself_refuses_what_preflight_says_of_its_sections(variables: dict[str, Any]) -> None:
    """Otherwise the schema or a rule here is stricter than what it is about. (What is said of nginx is not its.)"""
    sections = {PROXY_SECTIONS[name]: value for name, value in variables.items() if name in PROXY_SECTIONS}
    whole = {
        "engines": [{"id": "e", "url": "http://10.0.0.3:8000", "models": ["m"]}],
        "keys_file": "/k",
        "drained_dir": "/d",
    }
    with pytest.raises(ValueError, match="validation error"):
        config.Config.model_validate(whole | sections)


def test_argument_specs_name_the_same_options_as_the_proxy() -> None:
    """docs/variables.md is made from the specs, the checks from the proxy."""
    schema = config.Config.model_json_schema()
    for variable, section in PROXY_SECTIONS.items():
        options = OPTIONS["proxy"][variable].get("options")
        described = schema["properties"][section]
        described = described.get("items", described)
        if options is None or "$ref" not in described:
            continue
        theirs = schema["$defs"][described["$ref"].rpartition("/")[2]]["properties"].keys() - {"store"}
        assert options.keys() == theirs, variable
