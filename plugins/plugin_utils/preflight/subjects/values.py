"""Values of variables: types, and at any depth the names of options, ranges and formats."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from .. import display, schema, value_types
from ..inventory import Inventory
from ..roles import STACK

# The Python types of each type of an argument spec. Any value can be used as one of the others (str, path, raw).
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "list": ((list,), "a list"),
    "dict": ((Mapping,), "a dictionary"),
}
_EMPTY = "{name} is empty: give it a value, or take the line out"


def check_types(inventory: Inventory) -> Iterator[str]:
    """Each value has its variable's type: a number that is given as a text would fail in the middle of a roll."""
    specs = STACK | {name: spec for variables in inventory.options.values() for name, spec in variables.items()}
    # A line `name:` without a value replaces the default: it is rendered as an empty text or means false.
    needed = {
        name for name, spec in specs.items() if spec.get("default") is not None or spec.get("required")
    } | STACK.keys()
    wrong: dict[str, list[str]] = defaultdict(list)
    for host in inventory.hosts():
        for name in sorted(specs.keys() & set(inventory.names(host))):
            if inventory.is_empty(host, name):
                problem = _EMPTY.format(name=name) if name in needed else ""
            else:
                problem = _type_problem(name, inventory.get(host, name), specs[name].get("type", "str"))
            if problem:
                wrong[problem].append(host)
    for problem, hosts in wrong.items():
        yield f"{problem} (set for {', '.join(hosts)})"


def check_options(inventory: Inventory) -> Iterator[str]:
    """At any depth of a variable: unknown names, wrong types, numbers out of range, malformed texts."""
    schemas = inventory.schemas
    wrong: dict[str, list[str]] = defaultdict(list)
    for host in inventory.hosts():
        for name in sorted(schemas.keys() & set(inventory.names(host))):
            value = inventory.get(host, name)
            kind = schema.resolved(schemas[name], inventory.definitions).get("type")
            # check_types reports variables that are empty, and those of another type unless the type is text.
            text = kind in ("text", "string")
            if value is None or not (text or not kind or value_types.has_type(value, kind)):
                continue
            for problem in schema.problems(name, value, schemas[name], inventory.definitions):
                if host not in wrong[problem]:
                    wrong[problem].append(host)
    for problem, hosts in wrong.items():
        yield f"{problem} (set for {', '.join(hosts)})"


def _type_problem(name: str, value: Any, wanted: str) -> str:
    if value is None or wanted not in _TYPES:
        return ""
    types, noun = _TYPES[wanted]
    # To Python a bool is an int.
    if isinstance(value, types) and (wanted == "bool") == isinstance(value, bool):
        return ""
    if wanted in ("list", "dict"):
        return f"{name} is not {noun}"  # without the value, which may contain a key
    problem = f"{name} is {display.shown(name, value)}, but must be {noun}"
    if isinstance(value, str) and re.fullmatch(r"-?[0-9.]+|true|false", value.lower()):
        problem += (
            f"""; on the command line write -e '{{"{name}": {value.lower()}}}', since name=value is always text"""
        )
    return problem
