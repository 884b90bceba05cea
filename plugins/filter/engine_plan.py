"""The planner as a filter, for an operator's own playbooks and templates."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ansible.errors import AnsibleFilterError

DOCUMENTATION = r"""
name: engine_plan
short_description: Plan a model on the GPUs of an EC2 instance type
description:
  - The dictionary that playbooks/plan.yml prints with C(plan_format=json); docs/planner.md describes it. Nothing is read but the model's config.json.
positional: _input
options:
  _input:
    description: The contents of the model's config.json.
    type: dict
    required: true
  instance_type:
    description: EC2 instance type, such as C(g6e.xlarge).
    type: str
    required: true
  args:
    description: Options of C(vllm serve) by their long names without dashes.
    type: dict
    default: {}
  context_tokens:
    description: Tokens of the longest request that is wanted.
    type: int
  concurrency:
    description: How many such requests at once.
    type: int
"""

EXAMPLES = r"""
- ansible.builtin.debug:
    msg: "{{ lookup('ansible.builtin.file', '/srv/models/qwen/config.json') | from_json | ec2_inference.stack.engine_plan('g6e.xlarge') }}"
"""

RETURN = r"""
_value:
  description: The plan.
  type: dict
"""

PACKAGE = Path(__file__).resolve().parents[1] / "plugin_utils" / "planner"


def load(name: str) -> ModuleType:
    """A module of the package. Only an installed collection has an import path, so the package is loaded from its file."""
    package = "ec2_inference_stack_planner"
    if package not in sys.modules:
        spec = importlib.util.spec_from_file_location(package, PACKAGE / "__init__.py")
        assert spec is not None, f"{PACKAGE} is a package"
        assert spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


def engine_plan(
    config: Any,
    instance_type: str,
    args: dict[str, Any] | None = None,
    context_tokens: int | None = None,
    concurrency: int | None = None,
) -> dict[str, Any]:
    """The plan of a model, given its config.json, on an instance type."""
    hosts, reports = load("hosts"), load("reports")
    try:
        wanted = load("plans").Wanted(context_tokens, concurrency)
        host = hosts.host_of_type(instance_type, reports.INSTANCES)
        found: dict[str, Any] = reports.plan_with_types(config, host, args or {}, wanted)
        return found
    except load("flags").PlanError as error:
        raise AnsibleFilterError("; ".join(error.problems)) from error


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """The filters by their names."""
        return {"engine_plan": engine_plan}
