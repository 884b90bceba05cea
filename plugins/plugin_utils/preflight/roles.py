"""The roles of the tiers, and the variables that they have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.common.yaml import yaml_load

from . import rules, schema

ROLES_DIRECTORY = Path(__file__).resolve().parents[3] / "roles"
TIERS = {"vllm": "vllm", "proxy": "proxy", "nginx": "nginx_certbot"}  # group: role
ROLES = [*TIERS.values(), "nvidia_drivers"]
READERS = {role: group for group, role in TIERS.items()} | {"nvidia_drivers": "vllm"}  # role: group
# Variables that are also read on hosts of the next tier: its rolling update uses them.
READ_BEHIND = {
    "proxy_drain_timeout_s": "vllm",
    "proxy_start_timeout_s": "vllm",
    "nginx_certbot_drain_reason": "proxy",
}
# By the role, its public variables with their argument specs.
Options = Mapping[str, Mapping[str, Any]]


def _specs(path: Path, entry: str) -> dict[str, Any]:
    specs: dict[str, Any] = yaml_load(path.read_text())["argument_specs"][entry]["options"]
    return specs


# The variables that belong to no role, with their argument specs.
STACK = _specs(Path(__file__).parent / "stack_variables.yml", "stack")


def role_options() -> dict[str, dict[str, Any]]:
    """Each role's public variables, from its argument specs."""
    return {role: _specs(ROLES_DIRECTORY / role / "meta" / "argument_specs.yml", "main") for role in ROLES}


def readers(options: Options, name: str) -> set[str]:
    """The groups on whose hosts a role's variable is read; no groups if the variable belongs to no role."""
    groups = {READERS[role] for role, variables in options.items() if name in variables}
    return groups | {READ_BEHIND[name]} if name in READ_BEHIND else groups


def role_defaults(options: Options) -> dict[str, Any]:
    """The defaults of all roles, except those that are templates."""
    found = {}
    for variables in options.values():
        for name, spec in variables.items():
            default = spec.get("default")
            if default is not None and "{{" not in str(default):
                found[name] = default
    return found


def variable_schemas(options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of each variable, and the definitions that schemas refer to.

    A variable that becomes a section of the proxy's configuration has the proxy's own schema.
    """
    found: dict[str, Any] = {}
    for variables in (STACK, *options.values()):
        for name, described in schema.of_spec(variables)["properties"].items():
            found[name] = rules.with_rules(name, described)
    proxy = json.loads((Path(__file__).parent / "proxy_schema.json").read_text())
    return found | proxy["variables"], proxy["definitions"]
