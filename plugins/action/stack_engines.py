"""Complete the entries of vllm_engines and vllm_clusters with the name, port and so on that follow from the model (see preflight's
engine_entries and clusters)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

# Keys that only the engine's own host needs. They are left out for other hosts, because an environment may hold secrets.
_OWN = {"args", "environment"}


def _load() -> Callable[[str], Any]:
    """The function `load` of the action stack_preflight, in the file beside this one."""
    path = Path(__file__).with_name("stack_preflight.py")
    spec = importlib.util.spec_from_file_location("ec2_inference_stack_preflight_action", path)
    assert spec is not None, f"{path} is a module"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load: Callable[[str], Any] = module.load
    return load


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Reads variables only. Changes nothing, with or without check mode."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `engines` and their `adapters`, or with `group` only a dictionary of the engines of all its hosts, by the host.

        Entries of other hosts are for those who send requests to them, so they lack `args` and `environment`, and an engine over
        several hosts is only with its head. `ranks` are the ids of such engines by each of their hosts.
        """
        super().run(tmp, task_vars)
        variables, args = task_vars or {}, self._task.args
        load = _load()
        engines_of = load("clusters").engines_of
        if "group" not in args:
            said = (self._templar.template(variables.get(name)) for name in ("vllm_engines", "vllm_clusters"))
            own = engines_of(variables["inventory_hostname"], *said)
            return {"changed": False, "engines": own, "adapters": load("engine_entries").adapters_of(own)}
        engines, ranks = {}, {}
        for host in sorted(variables["groups"].get(args["group"], ())):
            its = variables["hostvars"][host]
            found = engines_of(host, its.get("vllm_engines"), its.get("vllm_clusters"))
            for entry in found:
                for key in _OWN & entry.keys():
                    del entry[key]
            engines[host] = [entry for entry in found if "cluster" not in entry or entry["cluster"]["rank"] == 0]
            ranks[host] = [f"{entry['cluster']['hosts'][0]}:{entry['name']}" for entry in found if "cluster" in entry]
        return {"changed": False, "engines": engines, "ranks": ranks}
