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
