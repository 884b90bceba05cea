"""Each kind of slip in a variable, at any depth, is reported once, before anything changes; the proxy refuses it as well."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from preflight_inventory import OPTIONS, engine, found, key

config = pytest.importorskip("inference_proxy.config")

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
    ({"vllm_start_timeout_s": 0}, "vllm_start_timeout_s is 0"),
    *(({"vllm_watchdog_timeout_s": s}, "must be at least 30 and at most 604800") for s in (0, 1, -5)),
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
        ({"vllm_instance_store": path}, "vllm_instance_store is")
        for path in ("/", "/mnt", "/mnt/x/", "mnt/x", "/tmp/x", "/var/lib/vllm", "/mnt/../etc", "/mnt/a b")
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


PROXY_SECTIONS = {"proxy_" + name: name for name in ("timeouts", "routing", "queue", "health", "retries", "models")}
PROXY_SECTIONS |= {"proxy_" + name: name for name in ("priorities", "api_versions", "custom_endpoints", "limits")}


@pytest.mark.parametrize(("variables", "said"), SLIPS)
def test_a_slip_is_said_once(variables: dict[str, Any], said: str) -> None:
    lines = found(**variables)
    if "stack_address" in variables:
        lines = [line for line in lines if "set it to the private IP address" not in line and "resolves to" not in line]
    if "domains" in str(variables):
        lines = [line for line in lines if "does not resolve" not in line]
    assert len(lines) == 1, lines
    assert said in lines[0]


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
