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
        """Return `problems` (a list of sentences) and never fail because of one. Without `role`, see also site_preflight."""
        super().run(tmp, task_vars)
        variables, args = task_vars or {}, self._task.args
        if "role" not in args:
            arguments = (variables, args.get("tiers", []), self._loader, context.CLIARGS, args.get("rolled", ""))
            found = load("site_preflight").result(*arguments)
        else:
            of_host = (args["role"], variables, self._templar.template, args.get("facts", {}))
            found = {"problems": load("role_preflight").problems_of_host(*of_host)}
        return {"changed": False, **found}
