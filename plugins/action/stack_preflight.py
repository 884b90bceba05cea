"""Everything that can be known to be wrong from the inventory alone: found in one pass, reported at once."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase

PACKAGE = Path(__file__).resolve().parents[1] / "plugin_utils" / "preflight"


def load(name: str) -> ModuleType:
    """A module of the package, which is loaded by its path: only in an installed collection it has a name to import."""
    package = "ec2_inference_stack_preflight"
    if package not in sys.modules:
        spec = importlib.util.spec_from_file_location(package, PACKAGE / "__init__.py")
        assert spec is not None, f"{PACKAGE} is a package"
        sys.modules[package] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{package}.{name}")


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Collects the problems of the inventory. Changes nothing, with or without check mode."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `problems` (a list of sentences) and `report` (all of them in one text); never fails because of a problem.

        `refusal` says why the playbooks cannot be run with the options of this run; it is empty if they can.
        """
        super().run(tmp, task_vars)
        variables = task_vars or {}
        refusal = load("run_options").refusal_of(variables, self._task.args.get("tiers", []))
        if refusal:
            return {"changed": False, "problems": [], "report": refusal, "refusal": refusal}
        sources = context.CLIARGS.get("inventory") or ()
        options = load("roles").role_options()
        inventory = load("inventory").Inventory(variables["groups"], variables["hostvars"], options, sources)
        problems = load("checks").all_problems(inventory)
        return {"changed": False, "problems": problems, "report": load("messages").report(problems), "refusal": ""}
