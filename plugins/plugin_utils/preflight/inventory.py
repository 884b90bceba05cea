"""Groups, hosts and their variables, as the checks read them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from . import schema
from .clusters import engines_of
from .engine_entries import completed
from .forms import as_dicts
from .roles import STACK, TIERS, Options, readers, role_defaults, variable_schemas
from .templates import KnownLater, templates, why_unreadable


class Inventory:
    """Groups, hosts and their variables. A variable that the operator does not set has its role's default."""

    def __init__(
        self,
        groups: Mapping[str, list[str]],
        hostvars: Mapping[str, Any],
        options: Options,
        sources: Iterable[str] = (),
        only: str | None = None,
        playbooks: Iterable[str] = (),
    ) -> None:
        """`sources` are what -i names: files and directories, beside which there may be group_vars.

        `playbooks` are those of the command line.

        With `only`, the variables of no other host are checked.
        """
        self._only, self.playbooks = only, list(playbooks)
        self.groups, self._hostvars, self.options, self.sources = groups, hostvars, options, list(sources)
        self.unreadable: dict[str, str] = {}
        # Variables that a check asked for and that only the role will know.
        self.known_later: set[str] = set()
        self.schemas, self.definitions = variable_schemas(options)
        self._defaults = role_defaults({"stack": STACK, **options})
        self._fitting = False

    def leave_out_misfits(self) -> None:
        """From now on, omit the parts of variables that have the wrong type."""
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
        return any(word.search(text) for key, value in raw.items() if key != name for text in templates(value))

    def get(self, host: str, name: str) -> Any:
        """A variable's value. None if it cannot be templated; then `unreadable` or `known_later` has its name."""
        try:
            value = self._hostvars[host].get(name, self._defaults.get(name))
            if self._fitting and name in self.schemas and value is not None:
                value = schema.fitting(value, self.schemas[name], self.definitions)
            return value
        except KnownLater:
            self.known_later.add(f"{name} of {host}")
        except Exception as error:
            if self._is_read(host, name):
                self.unreadable.setdefault(f"{name} of {host}", why_unreadable(name, host, error))
            else:
                # It may be made of a variable that only the hosts that read it have.
                self.known_later.add(f"{name} of {host}")
        return None

    def _is_read(self, host: str, name: str) -> bool:
        """Whether a role reads the variable on that host."""
        groups = readers(self.options, name)
        return not groups or any(host in self.groups.get(group, ()) for group in groups)

    def has_value(self, host: str, name: str) -> bool:
        """Whether the variable can be read now."""
        self.get(host, name)
        return f"{name} of {host}" not in self.unreadable.keys() | self.known_later

    def is_empty(self, host: str, name: str) -> bool:
        """Whether the variable is set, but without a value."""
        return name in self._hostvars[host] and self.get(host, name) is None and self.has_value(host, name)

    def engines(self, host: str) -> list[dict[str, Any]]:
        """The host's engines, completed. Entries that are not dictionaries are omitted; engines.py reports them."""
        return engines_of(host, self.get(host, "vllm_engines"), self.get(host, "vllm_clusters"))

    def clusters(self) -> list[dict[str, Any]]:
        """The engines over several hosts, with their names. clusters.py reports hosts that have another list."""
        lists = (as_dicts(self.get(host, "vllm_clusters")) for host in self.hosts("vllm"))
        return completed(next((found for found in lists if found), []))
