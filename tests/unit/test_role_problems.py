"""What the roles themselves say of their variables and hosts, where no site's preflight ran before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

init_plugin_loader()
ROLES = Path(__file__).resolve().parents[2] / "roles"
ENGINE = {"name": "one", "model": "/srv/m", "served_model_name": "m", "port": 8000}
# What the role's vars and its look at the host come to on a good one.
HOST: dict[str, Any] = {
    "inventory_hostname": "engine1",
    "ansible_facts": {"distribution": "Debian", "distribution_version": "13", "service_mgr": "systemd"},
    "__vllm_os_files": ["debian.yml"],
    "__vllm_lock_version": "0.33.0",
    "__vllm_local_models": {"/srv/m": True},
    "__vllm_configs": {},
    "__vllm_gpus": {"matched": 0},
    "__vllm_listeners": {},
}


def collected(role: str, directory: Path, variables: dict[str, Any]) -> list[str]:
    """What the role's preflight takes for its problems, with the template in a directory."""
    tasks = yaml.safe_load((ROLES / role / "tasks" / "preflight.yml").read_text())
    (facts,) = (
        fact for task in tasks if (fact := task.get("ansible.builtin.set_fact", {})) and f"__{role}_problems" in fact
    )
    template = trust_as_template(facts[f"__{role}_problems"])
    return Templar(loader=DataLoader(), variables=variables | {"ansible_search_path": [str(directory)]}).template(
        template
    )


@pytest.mark.parametrize("role", ["vllm", "proxy", "nginx_certbot"])
def test_a_list_of_problems_that_cannot_be_made_is_not_an_empty_one(role: str, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    template = tmp_path / "templates" / "problems.yml.j2"
    template.write_text("{# none #}\n{% if false %}\n- x\n{% endif %}\n")
    assert collected(role, tmp_path, {}) == []
    template.write_text("- one\n\n- two\n")
    assert collected(role, tmp_path, {}) == ["one", "two"]
    template.write_text("- one\n{{ nowhere }}\n")
    with pytest.raises(AnsibleError, match="'nowhere' is undefined"):
        collected(role, tmp_path, {})


def problems_of_vllm(**variables: Any) -> list[str]:
    known = yaml.safe_load((ROLES / "vllm" / "defaults" / "main.yml").read_text())
    known |= yaml.safe_load((ROLES / "vllm" / "vars" / "main.yml").read_text())
    return collected("vllm", ROLES / "vllm", known | HOST | {"vllm_engines": [ENGINE]} | variables)


def test_a_good_engine_host_has_no_problem() -> None:
    assert problems_of_vllm() == []


@pytest.mark.parametrize("name", ["host", "served_model_name", "api-key"])
def test_no_option_takes_the_place_of_what_the_role_sets(name: str) -> None:
    for variables, where in (
        ({"vllm_args": {name: "x"}}, ": vllm_args"),
        ({"vllm_engines": [ENGINE | {"args": {name: "x"}}]}, ", engine one: args"),
    ):
        (line,) = problems_of_vllm(**variables)
        assert line.startswith(f"host engine1{where} must not have {name}: take it out; the role sets what")
        assert problems_of_vllm(**variables, __stack_preflight_collect=True) == [], "the inventory's check says it"


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
