"""Names of variables: misspelt ones, and those set where they are not read."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ..inventory import Inventory
from ..misspelt import is_misspelt
from ..roles import READ_BEHIND, READERS, ROLES, STACK, Options
from ..rules import RENAMED

# The least similarity of a name and the one that was probably meant. That of proxy_env and proxy_keys is lower.
_ALIKE = 0.8


def check_places(inventory: Inventory) -> Iterator[str]:
    """No variable is set only for hosts of tiers whose roles do not read it.

    Hosts of no tier may have it, for the operator's own plays: a monitoring host uses the proxies' admin key.
    """
    names = {host: set(inventory.names(host)) for host in inventory.hosts()}
    for role, group in READERS.items():
        readers = inventory.group(group)
        for name in sorted(inventory.options[role].keys() - READ_BEHIND.keys()):
            hosts = [host for host, its in names.items() if name in its]
            if readers and hosts and not set(hosts) & set(readers):
                yield (
                    f"{name} is set for {', '.join(hosts)}, but for no host of the group {group}, where it is read: "
                    f"move it to group_vars/{group}.yml"
                )


def check_variable_names(inventory: Inventory) -> Iterator[str]:
    """No variable is misspelt: its default would silently stay in force."""
    options = inventory.options
    known = {name for variables in options.values() for name in variables}
    prefixes = tuple(f"{role}_" for role in ROLES)
    unknown: dict[str, list[str]] = defaultdict(list)
    for host in inventory.hosts():
        for name in inventory.names(host):
            if name.startswith((*prefixes, "stack_")) and name not in known and name not in STACK:
                unknown[name].append(host)
    others: dict[str, str] = {}
    for host in inventory.hosts():
        for name in inventory.names(host):
            # Except those of Ansible and of the inventory plugin, and facts that roles set earlier in this run.
            if not name.startswith(("ansible_", "aws_", "_")) and name not in known | unknown.keys() | STACK.keys():
                others.setdefault(name, host)
    for name, host in sorted(others.items()):
        meant = _misspelt_role(name, options)
        if meant in STACK and meant in inventory.names(host):
            continue  # slack_domain beside stack_domain is a name of its own
        if not meant and (shortened := _shortened(name, options, partial(inventory.get, host, name))):
            # It may be the operator's own, from which a template makes the collection's.
            unset = [short for short in shortened if short not in inventory.names(host)]
            meant = "" if unset and inventory.uses(host, name) else " and ".join(unset)
        if meant:
            yield f"variable {name} is none of the collection's: did you mean {meant}?"
    for name, hosts in sorted(unknown.items()):
        if name in RENAMED:
            yield f"variable {name} is now {RENAMED[name]} (set for {', '.join(hosts)}): rename it"
            continue
        role = next((role for role in ROLES if name.startswith(f"{role}_")), None)
        close = difflib.get_close_matches(name, options[role] if role else STACK, n=1, cutoff=_ALIKE)
        where = f"roles/{role}/README.md lists the role's variables" if role else f"there are {', '.join(STACK)}"
        where += f"; one of your own needs a name that does not begin with {role or 'stack'}_"
        hint = f"did you mean {close[0]}?" if close else where
        yield f"unknown variable {name} (set for {', '.join(hosts)}): {hint}"


def _misspelt_role(name: str, options: Options) -> str:
    """The intended variable of a name with a misspelt prefix, such as vlm_engines or VLLM_ENGINES; otherwise ""."""
    plain = re.sub(r"[-_]", "", name.lower())
    prefixes: dict[str, Mapping[str, Any]] = {**options, "stack": STACK}
    for role, variables in prefixes.items():
        for known in variables:
            end = known.removeprefix(role)
            if plain == known.replace("_", "") or (name.endswith(end) and is_misspelt(name.removesuffix(end), role)):
                return known
    return ""


def _shortened(name: str, options: Options, get: Callable[[], Any]) -> list[str]:
    """The intended variables of a name that lacks the role's prefix or a part of it.

    Such as nginx_allow_cidrs for nginx_certbot_allow_cidrs, or nginx_certbot: {allow_cidrs: []}. A name without any part of
    the role's, such as build_dir, is the operator's own.
    """
    for role, variables in options.items():
        ends = {known.removeprefix(f"{role}_"): known for known in variables}
        parts = role.split("_") if "_" in role else []
        for part in parts:
            if name.startswith(f"{part}_") and (known := ends.get(name.removeprefix(f"{part}_"))):
                return [known]
        # Only these values are read: other variables are the operator's, and may not even be readable.
        value = get() if name in (role, *parts) else None
        if isinstance(value, Mapping) and value and value.keys() <= ends.keys():
            return [ends[inner] for inner in value]
    return []
