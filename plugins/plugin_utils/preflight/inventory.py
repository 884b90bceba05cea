"""Groups, hosts and their variables, as the checks read them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from . import schema
from .forms import as_dicts
from .roles import TIERS, Options, role_defaults, variable_schemas


class Inventory:
    """Groups, hosts and their variables, with a role's default where an operator sets none."""

    def __init__(
        self,
        groups: Mapping[str, list[str]],
        hostvars: Mapping[str, Any],
        options: Options,
        sources: Iterable[str] = (),
        only: str | None = None,
    ) -> None:
        """`sources` are what -i names: files and directories, beside which there may be group_vars.

        With `only`, the variables of no other host are checked.
        """
        self._only = only
        self.groups, self._hostvars, self.options, self.sources = groups, hostvars, options, list(sources)
        self.unreadable: dict[str, str] = {}
        self.schemas, self.definitions = variable_schemas(options)
        self._defaults = role_defaults(options)
        self._fitting = False

    def leave_out_misfits(self) -> None:
        """From now on, leave out of each variable what does not have the right type."""
        self._fitting = True

    def group(self, name: str) -> list[str]:
        """The hosts of a tier, in a stable order."""
        return sorted(self.groups.get(name, []))

    def hosts(self, group: str | None = None) -> list[str]:
        """The hosts to check: of one tier, or of all."""
        found = {host for tier in ([group] if group else TIERS) for host in self.group(tier)}
        return sorted(found if self._only is None else found & {self._only})

    def everyone(self) -> set[str]:
        """All hosts, also those of no tier."""
        return {host for hosts in self.groups.values() for host in hosts}

    def names(self, host: str) -> list[str]:
        """The names of all variables that the host has."""
        return [str(name) for name in self._hostvars[host]]

    def uses(self, host: str, name: str) -> bool:
        """Whether a template of another of the host's variables contains this one."""
        raw = getattr(self._hostvars, "raw_get", self._hostvars.__getitem__)(host)
        word = re.compile(rf"(?<![\w.]){re.escape(name)}(?!\w)")
        return any(word.search(text) for key, value in raw.items() if key != name for text in _templates(value))

    def get(self, host: str, name: str) -> Any:
        """A variable's value; None when it cannot be templated, which `unreadable` then says."""
        try:
            value = self._hostvars[host].get(name, self._defaults.get(name))
            if self._fitting and name in self.schemas and value is not None:
                value = schema.fitting(value, self.schemas[name], self.definitions)
            return value
        except Exception as error:
            self.unreadable.setdefault(f"{name} of {host}", _why_unreadable(name, host, error))
            return None

    def is_empty(self, host: str, name: str) -> bool:
        """Whether the variable is set, but without a value."""
        return (
            name in self._hostvars[host] and self.get(host, name) is None and f"{name} of {host}" not in self.unreadable
        )

    def engines(self, host: str) -> list[Mapping[str, Any]]:
        """Those of the host's engines that are dictionaries: engines.py reports the others."""
        return as_dicts(self.get(host, "vllm_engines"))


def _why_unreadable(name: str, host: str, error: Exception) -> str:
    """The error's own words only if they are just a variable's name, because others may repeat a secret."""
    if missing := re.search(r"'(\w+)' is undefined", str(error)):
        return f"{missing[0]}: set it, or correct the name"
    return (
        f"{type(error).__name__}, whose words may hold a secret. To see them: ansible {host} -m ansible.builtin.debug "
        f"-a var={name}"
    )


def _templates(value: Any) -> Iterator[str]:
    """All texts in a value, at any depth, that contain templates."""
    if isinstance(value, str):
        if "{{" in value or "{%" in value:
            yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _templates(item)
