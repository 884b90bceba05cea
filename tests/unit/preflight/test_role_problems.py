"""What the roles themselves say of their variables and hosts, where no site's preflight ran before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible.module_utils.common.yaml import yaml_load
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from stack_preflight import load

role_preflight = load("role_preflight")
ROLES = Path(__file__).resolve().parents[3] / "roles"
SECRET = "0123456789abcdef" * 2
ENGINE = {"name": "one", "model": "/srv/m", "served_model_name": "m", "port": 8000}
# What the role's vars and its look at the host come to on a good one.
HOST: dict[str, Any] = {
    "inventory_hostname": "engine1",
    "ansible_facts": {"distribution": "Debian", "distribution_version": "13", "service_mgr": "systemd"},
    "__vllm_os_files": ["debian.yml"],
    "__vllm_lock_version": "0.33.0",
    "__vllm_ray_wanted": False,
    "__vllm_local_models": {"/srv/m": True},
    "__vllm_configs": {},
    "__vllm_missing_adapters": ["/srv/gone"],
    "__vllm_closed_paths": {},
    "__vllm_gpu_devices": {"matched": 0},
    "__vllm_listeners": {},
    "__vllm_checked": {"problems": []},
    "__vllm_unfit": [],
}


def collected(role: str, directory: Path, variables: dict[str, Any]) -> list[str]:
    """What the role's preflight takes for its problems, with the template in a directory."""
    tasks = yaml_load((ROLES / role / "tasks" / "preflight.yml").read_text())
    (facts,) = (
        fact for task in tasks if (fact := task.get("ansible.builtin.set_fact", {})) and f"__{role}_problems" in fact
    )
    template = trust_as_template(facts[f"__{role}_problems"])
    return Templar(loader=DataLoader(), variables=variables | {"ansible_search_path": [str(directory)]}).template(
        template
    )


@pytest.mark.parametrize("role", ["vllm", "proxy", "nginx_certbot", "nvidia_drivers"])
def test_a_list_of_problems_that_cannot_be_made_is_not_an_empty_one(role: str, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    template = tmp_path / "templates" / "problems.yml.j2"
    template.write_text("{# none #}\n{% if false %}\n- x\n{% endif %}\n")
    checked: dict[str, Any] = {f"__{role}_checked": {"problems": []}, "__vllm_unfit": []}
    assert collected(role, tmp_path, checked) == []
    template.write_text("- one\n\n- two\n")
    assert collected(role, tmp_path, checked) == ["one", "two"]
    template.write_text("- one\n{{ nowhere }}\n")
    with pytest.raises(AnsibleError, match="'nowhere' is undefined"):
        collected(role, tmp_path, checked)


def problems_of_vllm(**variables: Any) -> list[str]:
    known = yaml_load((ROLES / "vllm" / "defaults" / "main.yml").read_text())
    known |= yaml_load((ROLES / "vllm" / "vars" / "main.yml").read_text())
    known |= HOST | {"vllm_engines": [ENGINE]} | variables
    known["__vllm_engines"] = load("engine_entries").completed(known["vllm_engines"])
    return collected("vllm", ROLES / "vllm", known)


def test_an_engine_that_spans_hosts_would_use_tcp_beside_an_adapter() -> None:
    spans = [ENGINE | {"cluster": {"rank": 0, "hosts": ["engine1", "engine2"]}}]
    bare = {"__vllm_efa_device": True, "__vllm_efa_plugin": ""}
    (line,) = problems_of_vllm(vllm_engines=spans, **bare)
    assert line.startswith("host engine1, engine one: it spans hosts, and the software of this host's Elastic Fabric")
    assert line.endswith("run playbooks/drivers.yml, or set nvidia_drivers_efa to never")
    assert problems_of_vllm(**bare) == []
    assert problems_of_vllm(vllm_engines=spans, **bare, nvidia_drivers_efa="never") == []
    assert problems_of_vllm(vllm_engines=spans, **bare | {"__vllm_efa_plugin": "/opt/amazon/x.so"}) == []
    assert problems_of_vllm(vllm_engines=spans, **bare | {"__vllm_efa_device": False}) == []


def test_a_good_engine_host_has_no_problem() -> None:
    assert problems_of_vllm() == []


def test_an_adapter_that_is_not_on_the_host() -> None:
    adapters = [{"name": "sql", "model": "/srv/gone"}, {"name": "law", "model": "/srv/there"}]
    (line,) = problems_of_vllm(vllm_engines=[ENGINE | {"adapters": adapters}])
    assert line.startswith("host engine1, engine one: adapter sql: /srv/gone has no adapter_config.json on the host")


def test_models_and_adapters_that_the_engines_user_may_not_read() -> None:
    closed = {
        "/srv/m": ["user vllm may not search /srv: run chmod a+x /srv"],
        "/srv/sql": ["A", "B"],
        "/srv/unused": ["C"],
    }
    engines = [ENGINE | {"adapters": [{"name": "sql", "model": "/srv/sql"}]}]
    assert problems_of_vllm(vllm_engines=engines, __vllm_closed_paths=closed) == [
        "host engine1, engine one: model /srv/m: user vllm may not search /srv: run chmod a+x /srv",
        "host engine1, engine one: adapter sql: A",
        "host engine1, engine one: adapter sql: B",
    ]


def test_an_instance_store_that_cannot_be_made_is_told_with_the_rest() -> None:
    plan = {"stdout": '{"changed": false, "steps": [], "problem": "/dev/nvme1n1 has ext4"}'}
    assert problems_of_vllm(__vllm_store_plan=plan) == ["host engine1: vllm_instance_store: /dev/nvme1n1 has ext4"]
    assert problems_of_vllm(__vllm_store_plan={"skipped": True}) == []
    assert problems_of_vllm(__vllm_store_plan={"stdout": '{"changed": true, "steps": ["x"], "problem": ""}'}) == []


def checked(role: str, facts: dict[str, Any] | None = None, **variables: Any) -> list[str]:
    """What the checker says of a role's variables."""
    defaults = yaml_load((ROLES / role / "defaults" / "main.yml").read_text())
    known = {name: value for name, value in defaults.items() if "{{" not in str(value)}
    host = {"inventory_hostname": "engine1", "groups": {"proxy": ["api1"]}, "stack_address": "10.0.0.3"}
    found: list[str] = role_preflight.problems_of_host(role, known | host | variables, lambda value: value, facts or {})
    return found


def checked_engine(**fields: Any) -> list[str]:
    return checked("vllm", vllm_engines=[ENGINE | fields])


@pytest.mark.parametrize("name", ["host", "served_model_name", "api-key"])
def test_no_option_takes_the_place_of_what_the_role_sets(name: str) -> None:
    for variables, where in (
        ({"vllm_args": {name: "x"}, "vllm_engines": [ENGINE]}, ": vllm_args"),
        ({"vllm_engines": [ENGINE | {"args": {name: "x"}}]}, ": engine 'one': args"),
    ):
        (line,) = checked("vllm", **variables)
        assert line.startswith(f"host engine1{where} must not have {name}: take it out; the role sets what")
        assert problems_of_vllm(**variables, __stack_preflight_collect=True) == [], "the inventory's check says it"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": None}, "vllm_engines[0] (one) lacks model"),
        ({"port": None}, "vllm_engines[0] (one).port is empty, but must be a whole number"),
        ({"port": ""}, "vllm_engines[0] (one).port is '', but must be a whole number"),
        ({"model": ""}, "vllm_engines[0] (one).model is '', but must be a directory"),
        ({"name": "Upper"}, "use lower-case letters, digits and '-' in its name"),
        ({"model": "Qwen/Qwen3-8B"}, "set revision to the 40 digits of a commit"),
        ({"served_model": "m"}, "unknown option 'served_model': did you mean served_model_name?"),
        ({"probe": "chat"}, "probe is 'chat', but must be one of completions, embeddings"),
        ({"model": "/tmp/m"}, "model /tmp/m lies in /tmp, which the engine's sandbox hides"),
        ({"gpus": [0, 0]}, "has a GPU twice in gpus"),
    ],
)
def test_an_engine_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    (line,) = checked_engine(**fields)
    assert said in line


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "s3://bucket/m", "stream": True}, None),
        ({"model": "s3://bucket/m", "stream": True, "args": {"load_format": "runai_streamer_sharded"}}, None),
        ({"model": "s3://bucket/m", "stream": False, "args": {"load-format": "dummy"}}, None),
        ({"stream": True}, "stream reads a model from S3, but model is /srv/m"),
        ({"model": "s3://bucket/m", "stream": True, "args": {"load-format": "auto"}}, "but args says auto"),
        ({"model": "s3://bucket/m", "stream": "perhaps"}, "stream is 'perhaps'"),
    ],
)
def test_a_stream_comes_from_s3(fields: dict[str, Any], said: str | None) -> None:
    lines = checked_engine(**fields)
    assert len(lines) == (said is not None), lines
    assert said is None or said in lines[0]


def test_a_lock_without_the_streamer_cannot_stream() -> None:
    engine = ENGINE | {"model": "s3://bucket/m", "stream": True}
    (line,) = problems_of_vllm(vllm_engines=[engine], __vllm_lock_streams=False)
    assert "engine one: `stream` needs runai-model-streamer-s3" in line
    assert problems_of_vllm(vllm_engines=[engine], __vllm_lock_streams=True) == []
    assert problems_of_vllm(__vllm_lock_streams=False) == []


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("2.60.0", None),
        ("2.52.0", None),
        ("2.9.3", "pins ray 2.9.3: set vllm_ray_requirements to a lock of 2.52 or newer"),
        ("", "pins no ray: set vllm_ray_requirements"),
    ],
)
def test_nodes_of_ray_can_prove_themselves(version: str, said: str | None) -> None:
    known = {"vllm_ray_requirements": "ray.txt", "__vllm_ray_lock_version": version}
    lines = problems_of_vllm(**known, __vllm_ray_wanted=True)
    assert len(lines) == (said is not None), lines
    assert said is None or f"host engine1: it is in a cluster on Ray, but ray.txt {said}" in lines[0]
    assert problems_of_vllm(**known) == []


@pytest.mark.parametrize(
    ("lock", "version"),
    [
        ((ROLES / "vllm" / "files" / "requirements-ray.txt").read_text(), "2.60.0"),
        ("ray==2.52.1 ; sys_platform == 'linux' \\\n", "2.52.1"),
        ("array==1.0\nmsgpack==1.2.4\n", ""),
        ("", ""),
    ],
)
def test_the_version_of_ray_is_what_the_lock_pins(lock: str, version: str) -> None:
    known = yaml_load((ROLES / "vllm" / "vars" / "main.yml").read_text())
    templar = Templar(loader=DataLoader(), variables={"__vllm_ray_lock": lock})
    assert templar.template(trust_as_template(known["__vllm_ray_lock_version"])) == version


def test_the_collections_own_lock_can_stream() -> None:
    known = yaml_load((ROLES / "vllm" / "vars" / "main.yml").read_text())
    variables = {"__vllm_lock": (ROLES / "vllm" / "files" / "requirements-cuda.txt").read_text()}
    streams = Templar(loader=DataLoader(), variables=variables).template(
        trust_as_template(known["__vllm_lock_streams"])
    )
    assert streams is True


def test_two_engines_with_one_name_or_port() -> None:
    first, second = ENGINE | {"gpus": [0]}, ENGINE | {"gpus": [1]}
    lines = checked("vllm", vllm_engines=[first, second])
    assert len(lines) == 2
    assert "stands twice in vllm_engines" in lines[0]
    assert "port 8000 is used by engine one and engine one" in lines[1]


def test_an_engine_may_be_a_model_alone() -> None:
    assert checked("vllm", vllm_engines=[{"model": "/srv/m"}]) == []
    (line,) = checked(
        "vllm", vllm_engines=[{key: value for key, value in ENGINE.items() if key not in ("name", "model")}]
    )
    assert line.startswith("vllm_engines[0] lacks model")


LIMITED = [{"name": "a", "key": SECRET, "limits": {"requests_per_minute": 1}}]
STORE = {"proxy_store_host": "api1", "proxy_store_password": SECRET}


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, None),
        ({"proxy_keys": [{"name": "a", "key": SECRET, "models": ["unknown to this role"]}]}, None),
        ({"proxy_keys": LIMITED}, "or proxy_workers to 1"),
        ({"proxy_keys": LIMITED, **STORE}, None),
        ({"proxy_limits": {"default": {"tokens_per_day": 1}}}, "multiplied by the number of workers"),
        ({**STORE, "proxy_store_host": "web1"}, "not in the group proxy: name one of api1"),
        ({**STORE, "proxy_store_password": "short"}, "proxy_store_password has 5 characters"),
        ({**STORE, "proxy_store_url": "redis://x"}, "give one of them"),
        ({"proxy_admin_key": "short"}, "proxy_admin_key has 5 characters and can be guessed"),
        ({"proxy_keys": [{"name": "a"}]}, "key 'a': give either `key` or `sha256`"),
        ({"proxy_keys": [{"name": "a", "key": SECRET}, {"name": "a", "key": SECRET[::-1]}]}, "stands twice"),
        ({"proxy_keys": [{"name": "a", "key": SECRET}, {"name": "b", "key": SECRET}]}, "are the same key"),
        ({"proxy_keys": "{{ nowhere }}"}, "proxy_keys is not a list"),
    ],
)
def test_a_proxys_variables(variables: dict[str, Any], said: str | None) -> None:
    keys = {"proxy_keys": [{"name": "a", "key": SECRET}]}
    host = {"inventory_hostname": "api1", "groups": {"proxy": ["api1"]}, "proxy_workers": 0}
    lines = checked("proxy", {"proxy_workers": 2}, **keys | host | variables)
    assert len(lines) == (said is not None), lines
    assert said is None or said in lines[0]


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("config", "variables", "context"),
    [
        ({"max_position_embeddings": 40960}, {}, 40960),
        ({"max_position_embeddings": 40960, "rope_scaling": None}, {}, 40960),
        ({"max_position_embeddings": 131072}, {}, 0),
        ({"max_position_embeddings": 40960, "rope_scaling": YARN}, {}, 0),
        ({"max_position_embeddings": 40960, "rope_scaling": YARN | {"factor": 2}}, {}, 65536),
        ({"max_position_embeddings": 40960, "rope_scaling": {"type": "mrope", "factor": None}}, {}, 40960),
        ({"max_position_embeddings": 32768, "rope_parameters": {"rope_type": "linear", "factor": 4}}, {}, 0),
        (
            {"max_position_embeddings": 32768, "rope_parameters": {"full_attention": YARN, "sliding_attention": {}}},
            {},
            0,
        ),
        ({"text_config": {"max_position_embeddings": 40960}}, {}, 40960),
        ({}, {}, 0),
        ({"max_position_embeddings": 40960}, {"vllm_args": {"hf-overrides": {"a": 1}}}, 0),
        ({"max_position_embeddings": 40960}, {"vllm_args": {"hf_overrides": {"a": 1}}}, 0),
        ({"max_position_embeddings": 40960}, {"vllm_environment": {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}}, 0),
    ],
)
@pytest.mark.parametrize("name", ["max-model-len", "max_model_len"])
def test_an_engine_has_no_longer_context_than_its_model(
    config: dict[str, Any], variables: dict[str, Any], context: int, name: str
) -> None:
    """Of 131,072 tokens, which models reach by the scaling that their config.json says."""
    engine = ENGINE | {"args": {name: 131072}}
    lines = problems_of_vllm(vllm_engines=[engine], __vllm_configs={"/srv/m": config}, **variables)
    if not context:
        assert lines == []
        return
    (line,) = lines
    assert "max-model-len is 131072, but the model's own context" in line
    assert f"is {context}: lower it" in line


def test_the_options_of_an_engine_win_over_those_of_all() -> None:
    engine = ENGINE | {"args": {"max_model_len": 100}}
    configs = {"/srv/m": {"max_position_embeddings": 1000}}
    assert problems_of_vllm(vllm_engines=[engine], vllm_args={"max-model-len": 2000}, __vllm_configs=configs) == []
