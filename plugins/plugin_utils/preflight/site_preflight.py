"""The problems of a whole inventory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .checks import all_notices, all_problems
from .inventory import Inventory
from .messages import report
from .roles import role_defaults, role_options
from .run_options import refusal_of, split_refusal
from .templates import TemplatedHostvars


def result(
    variables: Mapping[str, Any], tiers: list[str], loader: Any, command_line: Mapping[str, Any], rolled: str = ""
) -> dict[str, Any]:
    """The result of the action plugin: `problems`; `report`, all problems in one text; `refusal`, why the playbooks
    cannot be run with this run's options ("" if they can); and `warnings`, which Ansible shows without stopping.
    `rolled` is the group of hosts that the run is going to roll.
    """
    refusal = refusal_of(variables, tiers)
    if refusal:
        return {"problems": [], "report": refusal, "refusal": refusal}
    options = role_options()
    names = {name for variables_of_role in options.values() for name in variables_of_role}
    hostvars = TemplatedHostvars(variables["hostvars"], loader, role_defaults(options), names)
    sources, playbooks = command_line.get("inventory") or (), command_line.get("args") or ()
    inventory = Inventory(variables["groups"], hostvars, options, sources, playbooks=playbooks)
    refusal = split_refusal(inventory, variables) if rolled == "vllm" else ""
    if refusal:
        return {"problems": [], "report": refusal, "refusal": refusal}
    problems = all_problems(inventory)
    return {"problems": problems, "report": report(problems), "refusal": "", "warnings": all_notices(inventory)}
