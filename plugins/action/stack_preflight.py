"""Find the problems of an inventory, or those of the host that a role runs on, from the variables alone."""

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
    """A module of the package. Only an installed collection has an import path, so the package is loaded from its file."""
    package = "ec2_inference_stack_preflight"
    if package not in sys.modules:
        spec = importlib.util.spec_from_file_location(package, PACKAGE / "__init__.py")
        assert spec is not None, f"{PACKAGE} is a package"
        assert spec.loader is not None
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Collects problems. Changes nothing, with or without check mode."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `problems` (a list of sentences) and never fail because of one.

        Without `role`, also `report` (all problems in one text) and `refusal`, which says why the playbooks cannot be run
        with the options of this run, and is empty if they can.
        """
        super().run(tmp, task_vars)
        variables, args = task_vars or {}, self._task.args
        if "role" in args:
            return {"changed": False, "problems": self._of_role(args["role"], args.get("facts", {}), variables)}
        refusal = load("run_options").refusal_of(variables, args.get("tiers", []))
        if refusal:
            return {"changed": False, "problems": [], "report": refusal, "refusal": refusal}
        sources = context.CLIARGS.get("inventory") or ()
        options = load("roles").role_options()
        names = {name for variables_of_role in options.values() for name in variables_of_role}
        defaults = load("roles").role_defaults(options)
        hostvars = load("templates").TemplatedHostvars(variables["hostvars"], self._loader, defaults, names)
        inventory = load("inventory").Inventory(
            variables["groups"], hostvars, options, sources, playbooks=context.CLIARGS.get("args") or ()
        )
        problems = load("checks").all_problems(inventory)
        report = load("messages").report(problems)
        notices = load("checks").all_notices(inventory)
        # Ansible shows warnings and goes on.
        return {"changed": False, "problems": problems, "report": report, "refusal": "", "warnings": notices}

    def _of_role(self, role: str, facts: dict[str, Any], variables: dict[str, Any]) -> list[str]:
        """The problems of this host's variables, of which `facts` replace those that only the host can tell.

        If the site's preflight collects problems, it has already found those that need no facts.
        """
        arguments = (role, variables, self._templar.template)
        find = load("role_preflight").problems_of_host
        collecting = variables.get(load("run_options").COLLECT, False)
        told = find(*arguments, {}) if collecting else []
        return [problem for problem in find(*arguments, facts) if problem not in told]
