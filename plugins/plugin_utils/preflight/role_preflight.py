"""The problems of the one host that a role runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .checks import role_problems
from .inventory import Inventory
from .roles import READERS, STACK, role_options
from .run_options import COLLECT


def problems_of_host(
    role: str, variables: Mapping[str, Any], template: Callable[[Any], Any], facts: Mapping[str, Any]
) -> list[str]:
    """What is wrong with a task's variables of the role and of the stack. `facts` are known from the host and replace some.

    If the site's preflight collects problems, it has already found those that need no facts.
    """
    told = _problems(role, variables, template, {}) if variables.get(COLLECT, False) else []
    return [problem for problem in _problems(role, variables, template, facts) if problem not in told]


def _problems(
    role: str, variables: Mapping[str, Any], template: Callable[[Any], Any], facts: Mapping[str, Any]
) -> list[str]:
    host, group, options = variables["inventory_hostname"], READERS[role], role_options()
    own = OwnVariables({**variables, **facts}, {*options[role], *STACK}, template)
    # A role may be used for hosts of other groups, and for those of several tiers it checks only its own.
    members = sorted({*variables["groups"].get(group, ()), host})
    return role_problems(Inventory({group: members}, {host: own}, options, only=host), role)


class OwnVariables(Mapping[str, Any]):
    """Variables as a task sees them. Unlike hostvars, they include those of its play and its role."""

    def __init__(self, variables: Mapping[str, Any], names: set[str], template: Callable[[Any], Any]) -> None:
        self._variables = {name: value for name, value in variables.items() if name in names}
        self._template = template

    def __getitem__(self, name: str) -> Any:
        return self._template(self._variables[name])

    def __contains__(self, name: object) -> bool:
        return name in self._variables  # without evaluating its template

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)
