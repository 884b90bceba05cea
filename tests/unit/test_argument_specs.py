"""A role's defaults and its argument specs say the same."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from stack_preflight import load as preflight

ROOT = Path(__file__).resolve().parents[2]
SECRET = "correct-horse-battery-staple-nine"
ROLES = ["vllm", "proxy", "nginx_certbot", "nvidia_drivers"]


def load(role: str, name: str) -> dict:
    return yaml.safe_load((ROOT / "roles" / role / name).read_text()) or {}


@pytest.mark.parametrize("role", ROLES)
def test_every_default_is_in_the_specs_with_the_same_value(role: str) -> None:
    defaults = load(role, "defaults/main.yml")
    specs = load(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    optional = {name for name, spec in specs.items() if "default" in spec}
    assert set(defaults) == optional
    assert {name: specs[name]["default"] for name in defaults} == defaults


@pytest.mark.parametrize("role", ROLES)
def test_every_public_variable_has_the_roles_prefix_and_a_description(role: str) -> None:
    specs = load(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert [name for name in specs if not name.startswith(f"{role}_")] == []
    assert [name for name, spec in specs.items() if not spec.get("description")] == []


# Numbers without a unit: counts, shares, and ports.
PLAIN_NUMBERS = re.compile(r"_(port|workers|ratio|burst|per_ip|per_second|connections|keepalive|releases|hosts)$")
UNITS = re.compile(r"_(s|mb|gb|days)$")


@pytest.mark.parametrize("role", ROLES)
def test_every_number_that_is_no_count_has_its_unit_in_its_name(role: str) -> None:
    specs = load(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    numbers = [name for name, spec in specs.items() if spec.get("type") in ("int", "float")]
    assert [name for name in numbers if not UNITS.search(name) and not PLAIN_NUMBERS.search(name)] == []


@pytest.mark.parametrize(
    ("role", "variables"),
    [
        ("proxy", {"proxy_keys": [SECRET]}),
        ("proxy", {"proxy_keys": {"name": "a", "key": SECRET}}),
        ("proxy", {"proxy_keys": [{"key": SECRET}]}),
        ("proxy", {"proxy_keys": [{"name": "a", "key": [SECRET], "limits": SECRET}]}),
        ("proxy", {"proxy_admin_key": [SECRET], "proxy_store_password": {"a": SECRET}}),
        ("vllm", {"vllm_environment": SECRET, "vllm_fetch_environment": [SECRET]}),
        ("vllm", {"vllm_engines": [{"name": "a", "environment": f"HF_TOKEN {SECRET}"}]}),
    ],
)
def test_an_entry_point_that_refuses_variables_shows_no_secret(role: str, variables: dict[str, Any]) -> None:
    options = load(role, "meta/argument_specs.yml")["argument_specs"]["prepare"]["options"]
    refused = ArgumentSpecValidator(options).validate(variables, validate_role_argument_spec=True)
    assert refused.error_messages
    assert SECRET not in str(refused.error_messages)


@pytest.mark.parametrize("role", ROLES)
def test_internal_variables_are_marked_as_such(role: str) -> None:
    files = (ROOT / "roles" / role / "vars").rglob("*.yml")
    names = [name for file in files for name in yaml.safe_load(file.read_text()) or {}]
    assert [name for name in names if not name.startswith(f"__{role}_")] == []


def test_preflight_knows_the_keys_and_probes_of_an_engine_that_the_specs_have() -> None:
    options = load("vllm", "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    engine = options["vllm_engines"]["options"]
    schemas, _ = preflight("roles").variable_schemas(preflight("roles").role_options())
    known = schemas["vllm_engines"]["items"]
    assert known["properties"].keys() == engine.keys()
    assert known["additionalProperties"] is False
    assert known["properties"]["probe"]["enum"] == engine["probe"]["choices"]


def test_the_variables_of_all_tiers_are_those_that_are_read() -> None:
    folders = ("roles", "playbooks", "plugins/inventory", "plugins/action")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.[yjp]*") if path.is_file()]
    files = [path for path in files if path.suffix != ".pyc"]
    read = {name for path in files for name in re.findall(r"(?<![\w$])stack_[a-z0-9_]+", path.read_text())}
    places = ("plugins", "roles/vllm/files/engine")
    modules = {path.stem for place in places for path in (ROOT / place).rglob("stack_*.py")}
    assert read - modules == preflight("roles").STACK.keys()
