"""The problems of a whole inventory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.utils.vars import load_extra_vars

from .checks import all_notices, all_problems
from .inventory import Inventory
from .messages import report
from .roles import role_defaults, role_options
from .run_options import refusal_of, split_refusal
from .templates import TemplatedHostvars

# Ansible, or this collection, reads them where no host's variables are known; and what breaks a rule is said anew for each run.
_EXTRA_ONLY = ("stack_batch", "stack_break_lock", "stack_canary", "stack_drain_last")


def _misplaced(hostvars: Mapping[str, Any], loader: Any) -> list[str]:
    """Variables in the inventory that only have an effect, or are only safe, as extra variables."""
    given = load_extra_vars(loader)
    misplaced = [name for name in _EXTRA_ONLY if name not in given and any(name in hostvars[host] for host in hostvars)]
    return [f"{name} is set in the inventory: give it to the run that needs it, with -e {name}=…" for name in misplaced]


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
    problems = all_problems(inventory) + _misplaced(variables["hostvars"], loader)
    return {"problems": problems, "report": report(problems), "refusal": "", "warnings": all_notices(inventory)}
