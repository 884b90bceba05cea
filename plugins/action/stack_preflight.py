"""Everything that can be known to be wrong from the inventory alone: found in one pass, reported at once."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import ipaddress
import json
import re
import socket
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import yaml
from ansible import context
from ansible.plugins.action import ActionBase

UTILS = Path(__file__).resolve().parents[1] / "plugin_utils"
ROLES_DIRECTORY = Path(__file__).resolve().parents[2] / "roles"


def _load(name: str) -> ModuleType:
    """A module of plugin_utils by its file: in a checkout, unlike in an installed collection, it has no name to import."""
    full = f"ec2_inference_stack_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, UTILS / f"{name}.py")
        assert spec is not None, f"{UTILS} has {name}.py"
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


schema, rules, contracts, files = (_load(name) for name in ("schema", "rules", "contracts", "files"))

TIERS = {"vllm": "vllm", "proxy": "proxy", "nginx": "nginx_certbot"}  # group: role
ROLES = [*TIERS.values(), "nvidia_drivers"]
READERS = {role: group for group, role in TIERS.items()} | {"nvidia_drivers": "vllm"}  # role: group
# Of a role's variables, those that the roll of the tier behind it reads on that tier's hosts.
READ_BEHIND = {"proxy_drain_timeout_s", "proxy_start_timeout_s", "nginx_certbot_drain_reason"}
KEY_LENGTH_MIN = 32
PORT_MAX = 65535
# Random keys of that length have more, whatever they are written in.
KEY_VARIETY_MIN = 8
# A name or a text without blanks beyond this length is cut in messages, and so is a message beyond the other one.
WORD_MAX, SENTENCE_MAX = 200, 4000
UTC_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(Z|\+00:00)")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# What each type of an argument spec is in Python; of the others (str, path, raw) any value has a sensible text.
TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "list": ((list,), "a list"),
    "dict": ((Mapping,), "a dictionary"),
}
VAULT_HINT = (
    ". It comes from the vault: cp group_vars/vault.example.yml group_vars/proxy/vault.yml, put in your own keys, "
    "then ansible-vault encrypt group_vars/proxy/vault.yml"
)
COLLECT = "__stack_preflight_collect"
EMPTY = "{name} is empty: give it a value, or take the line out"
# So similar are the name of a role or a group and its misspelling at least.
ALIKE = 0.7
# Molecule skips them in each of its runs. No task here has them.
MOLECULES_TAGS = {"notest", "molecule-notest", "molecule-idempotence-notest"}
ENGINE_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Collect the problems of the inventory; changes nothing, in check mode or out of it."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `problems` (a list of sentences) and `report` (one text of them); never fails because of a problem.

        `refusal` says why these playbooks cannot be run with the options of this run; it is empty if they can.
        """
        super().run(tmp, task_vars)
        variables = task_vars or {}
        refusal = refusal_of(variables, self._task.args.get("tiers", []))
        if refusal:
            return {"changed": False, "problems": [], "report": refusal, "refusal": refusal}
        options = role_options(ROLES_DIRECTORY)
        sources = context.CLIARGS.get("inventory") or ()
        inventory = Inventory(variables["groups"], variables["hostvars"], role_defaults(options), sources)
        problems = all_problems(inventory, options)
        return {"changed": False, "problems": problems, "report": report(problems), "refusal": ""}


def refusal_of(variables: Mapping[str, Any], tiers: list[str]) -> str:
    """Why a run with these options would do less than it says: "" if it would not.

    A roll under a tag would skip what its tasks include, and so prove or put back nothing. A limit without a host of
    the tier would do nothing, and be green.
    """
    hostvars = variables.get("hostvars", {})
    # A play's own variables are not among a host's.
    if any(COLLECT in hostvars[host] for host in hostvars):
        return f"{COLLECT} is set by the inventory or by -e, and would leave checks out: it is for playbooks/preflight.yml alone, so take it out."
    tags = [tag for tag in variables.get("ansible_run_tags", ["all"]) if tag != "all"]
    skipped = [tag for tag in variables.get("ansible_skip_tags", []) if tag not in MOLECULES_TAGS]
    if tags or skipped:
        option, names = ("--tags", tags) if tags else ("--skip-tags", skipped)
        return (
            f"{option} {','.join(map(str, names))} cannot be used here: a part of a roll is not safe by itself. Nothing was changed. Run the "
            "playbook of one tier (playbooks/vllm.yml, playbooks/proxy.yml, playbooks/nginx.yml): it changes only what differs. "
            "--check --diff shows what that would be, playbooks/preflight.yml what is wrong."
        )
    limit = variables.get("ansible_limit")
    if limit and tiers:
        here = set(variables.get("ansible_play_hosts_all", []))
        wanted = [host for tier in tiers for host in variables["groups"].get(tier, [])]
        if wanted and not here & set(wanted):
            return (
                f"--limit {limit} leaves no host of the group {' or '.join(tiers)}, so nothing would be done. Write one or more of "
                f"{', '.join(sorted(set(wanted)))}, or leave --limit out."
            )
    return ""


class Inventory:
    """Groups, hosts and their variables, with a role's default where an operator sets none."""

    def __init__(
        self,
        groups: Mapping[str, list[str]],
        hostvars: Mapping[str, Any],
        defaults: Mapping[str, Any],
        sources: Iterable[str] = (),
    ) -> None:
        """`sources` are what -i names: files and directories, beside which there may be group_vars."""
        self.groups, self._hostvars, self._defaults, self.sources = groups, hostvars, defaults, list(sources)
        self.unreadable: dict[str, str] = {}
        self._schemas: Mapping[str, Any] = {}
        self._definitions: Mapping[str, Any] = {}

    def fit(self, schemas: Mapping[str, Any], definitions: Mapping[str, Any]) -> None:
        """From now on give of each variable only what has the right type."""
        self._schemas, self._definitions = schemas, definitions

    def group(self, name: str) -> list[str]:
        """The hosts of a tier, in a stable order."""
        return sorted(self.groups.get(name, []))

    def hosts(self) -> list[str]:
        """The hosts of all tiers."""
        return sorted({host for group in TIERS for host in self.group(group)})

    def everyone(self) -> set[str]:
        """All hosts, also those of no tier."""
        return {host for hosts in self.groups.values() for host in hosts}

    def names(self, host: str) -> list[str]:
        """The names of all variables that the host has."""
        return [str(name) for name in self._hostvars[host]]

    def uses(self, host: str, name: str) -> bool:
        """Whether another of the host's variables is made of this one."""
        raw = getattr(self._hostvars, "raw_get", self._hostvars.__getitem__)(host)
        word = re.compile(rf"(?<![\w.]){re.escape(name)}(?!\w)")
        return any(word.search(text) for key, value in raw.items() if key != name for text in _templates(value))

    def get(self, host: str, name: str) -> Any:
        """A variable's value; None when it cannot be templated, which `unreadable` then says."""
        try:
            value = self._hostvars[host].get(name, self._defaults.get(name))
            if name in self._schemas and value is not None:
                value = schema.fitting(value, self._schemas[name], self._definitions)
            return value
        except Exception as error:
            self.unreadable.setdefault(f"{name} of {host}", _why_unreadable(name, host, error))
            return None

    def is_empty(self, host: str, name: str) -> bool:
        """Whether somebody wrote the variable without a value, which is not to leave it out."""
        return (
            name in self._hostvars[host] and self.get(host, name) is None and f"{name} of {host}" not in self.unreadable
        )

    def engines(self, host: str) -> list[Mapping[str, Any]]:
        """The host's engines, those that are dicts: the rest is another check's business."""
        value = self.get(host, "vllm_engines")
        return [engine for engine in value if isinstance(engine, Mapping)] if isinstance(value, list) else []


def _why_unreadable(name: str, host: str, error: Exception) -> str:
    """Without the error's own words, which repeat values, unless they say no more than a variable's name."""
    if missing := re.search(r"'(\w+)' is undefined", str(error)):
        return f"{missing[0]}: set it, or correct the name"
    return (
        f"{type(error).__name__}, whose words may hold a secret. To see them: ansible {host} -m ansible.builtin.debug "
        f"-a var={name}"
    )


def _templates(value: Any) -> Iterator[str]:
    """The texts with templates in a value, at any depth."""
    if isinstance(value, str):
        if "{{" in value or "{%" in value:
            yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _templates(item)


def all_problems(inventory: Inventory, options: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of all checks. Those of the variables' form come first; the others see only what has the right type."""
    found: list[str] = []
    for check in FORM:
        found += _problems_of(check, inventory, options)
    inventory.fit(*_schemas(options))
    for check in CHECKS:
        found += _problems_of(check, inventory, options)
    return list(dict.fromkeys(map(printable, found)))


def _problems_of(check: Any, inventory: Inventory, options: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of one check. The other checks' problems must be told even if it fails."""
    found: list[str] = []
    try:
        found.extend(check(inventory, options))
    except Exception as error:
        # Without the error's own words, in which there may be a key.
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        found.append(f"{check.__name__} could not be made: {type(error).__name__} in {where}. Please report it.")
    return found


def printable(problem: str) -> str:
    """A problem as a terminal may have it: in one line, without control characters, and no longer than can be read."""
    plain = "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in problem
    )
    cut = re.sub(rf"\S{{{WORD_MAX},}}", lambda word: word[0][: WORD_MAX // 2] + "…", plain)
    return cut if len(cut) <= SENTENCE_MAX else cut[:SENTENCE_MAX] + "…"


def report(problems: list[str]) -> str:
    """One text for a person."""
    if not problems:
        return "The inventory is in order."
    noun = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{noun} in the inventory; nothing was changed:\n" + "\n".join(f"  - {problem}" for problem in problems)


def role_options(roles: Path) -> dict[str, dict[str, Any]]:
    """Each role's public variables, from its argument specs."""
    specs = {}
    for role in ROLES:
        data = yaml.safe_load((roles / role / "meta" / "argument_specs.yml").read_text())
        specs[role] = data["argument_specs"]["main"]["options"]
    return specs


def role_defaults(options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The literal defaults of all roles (templated ones are left to the roles)."""
    found = {}
    for variables in options.values():
        for name, spec in variables.items():
            default = spec.get("default")
            if default is not None and "{{" not in str(default):
                found[name] = default
    return found


def check_groups(inventory: Inventory, _: Any) -> Iterator[str]:
    """Each tier has a host, and each host a usable name and address."""
    for group in TIERS:
        if not inventory.group(group):
            yield f"group {group} has no host: give at least one instance the tag Tier={group} (several tiers: Tier=nginx,proxy,vllm)"
    for host in inventory.hosts():
        if not NAME.fullmatch(host):
            yield f"host {host!r}: its name is used in file names and logs; use letters, digits, '.', '_' and '-' in its Name tag"
        address = inventory.get(host, "stack_address")
        try:
            ipaddress.ip_address(str(address))
        except ValueError:
            if inventory.is_empty(host, "stack_address"):
                continue  # check_types says so
            shown = schema.shown("stack_address", address)
            yield f"host {host}: stack_address is {shown}; set it to the private IP address by which the other tiers reach the host"


def check_strays(inventory: Inventory, _: Any) -> Iterator[str]:
    """A host in a misspelt group, or with a misspelt tag, would belong to no tier and serve nothing."""
    idle = inventory.everyone() - set(inventory.hosts())
    for group, hosts in sorted(inventory.groups.items()):
        lost = sorted(idle & set(hosts))
        if lost and group not in TIERS and (meant := _tier_like(group)):
            yield f"group {group} has {', '.join(lost)}, of no tier: did you mean {meant}?"
    for host in sorted(inventory.everyone()):
        tags = inventory.get(host, "aws_ec2_tags") or inventory.get(host, "aws_tags")
        for tier in str(tags.get("Tier", "")).split(",") if isinstance(tags, Mapping) else ():
            if tier.strip() not in TIERS and (meant := _tier_like(tier.strip())):
                yield f"host {host}: its tag Tier has {tier.strip()!r}, which is no tier: did you mean {meant}?"


def _tier_like(name: str) -> str:
    close: list[str] = difflib.get_close_matches(name.lower(), TIERS, n=1, cutoff=ALIKE)
    return close[0] if close else ""


def check_places(inventory: Inventory, options: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A variable that no host of its role's tier has is read by nobody."""
    names = {host: set(inventory.names(host)) for host in sorted(inventory.everyone())}
    for role, group in READERS.items():
        readers = inventory.group(group)
        for name in sorted(options[role].keys() - READ_BEHIND):
            hosts = [host for host, its in names.items() if name in its]
            if readers and hosts and not set(hosts) & set(readers):
                yield (
                    f"{name} is set for {', '.join(hosts)}, but for no host of the group {group}, where it is read: "
                    f"move it to group_vars/{group}.yml"
                )


def check_variable_names(inventory: Inventory, options: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A misspelt variable would silently leave a default in force."""
    known = {name for variables in options.values() for name in variables}
    prefixes = tuple(f"{role}_" for role in ROLES)
    unknown: dict[str, list[str]] = defaultdict(list)
    for host in inventory.hosts():
        for name in inventory.names(host):
            if name.startswith((*prefixes, "stack_")) and name not in known and name not in rules.STACK:
                unknown[name].append(host)
    others: dict[str, str] = {}
    for host in inventory.hosts():
        for name in inventory.names(host):
            # Not those of Ansible, of the inventory, and what roles noted on hosts earlier in this run.
            if (
                not name.startswith(("ansible_", "aws_", "_"))
                and name not in known | unknown.keys() | rules.STACK.keys()
            ):
                others.setdefault(name, host)
    for name, host in sorted(others.items()):
        meant = _misspelt_role(name, options)
        if meant in rules.STACK and meant in inventory.names(host):
            continue  # slack_domain beside stack_domain is a name of its own
        if not meant and (shortened := _shortened(name, options, partial(inventory.get, host, name))):
            # It may be the operator's own, which the collection's is made of.
            unset = [short for short in shortened if short not in inventory.names(host)]
            meant = "" if unset and inventory.uses(host, name) else " and ".join(unset)
        if meant:
            yield f"variable {name} is none of the collection's: did you mean {meant}?"
    for name, hosts in sorted(unknown.items()):
        role = next((role for role in ROLES if name.startswith(f"{role}_")), None)
        close = difflib.get_close_matches(name, options[role] if role else rules.STACK, n=1)
        where = f"roles/{role}/README.md lists the role's variables" if role else f"there are {', '.join(rules.STACK)}"
        hint = f"did you mean {close[0]}?" if close else where
        yield f"unknown variable {name} (set for {', '.join(hosts)}): {hint}"


def _misspelt_role(name: str, options: Mapping[str, Mapping[str, Any]]) -> str:
    """The variable that was meant by one whose role is misspelt: vlm_engines, VLLM_ENGINES; "" for any other."""
    plain = name.lower().replace("-", "_")
    prefixes: dict[str, Mapping[str, Any]] = {**options, "stack": rules.STACK}
    for role, variables in prefixes.items():
        for known in variables:
            end = known.removeprefix(role)
            start = name.removesuffix(end)
            # vault_proxy_keys is a name of its own.
            alike = difflib.SequenceMatcher(None, start, role).ratio() > ALIKE and not start.endswith(f"_{role}")
            if plain == known or (name.endswith(end) and alike):
                return known
    return ""


def _shortened(name: str, options: Mapping[str, Mapping[str, Any]], get: Callable[[], Any]) -> list[str]:
    """The variables that were meant by one with a part of the role's name, or none, before the whole rest of theirs.

    nginx_allow_cidrs and allow_cidrs for nginx_certbot_allow_cidrs, and nginx_certbot: {allow_cidrs: []}. A single word,
    such as keys, says too little to be meant.
    """
    for role, variables in options.items():
        ends = {known.removeprefix(f"{role}_"): known for known in variables}
        parts = role.split("_") if "_" in role else []
        start, end = next(
            ((part, name.removeprefix(f"{part}_")) for part in parts if name.startswith(f"{part}_")), ("", name)
        )
        if end in ends and (start or "_" in end):
            return [ends[end]]
        # Only of such a name: others' values are none of the collection's, and need not even be readable.
        value = get() if name in (role, *parts) else None
        if isinstance(value, Mapping) and value and value.keys() <= ends.keys():
            return [ends[inner] for inner in value]
    return []


def check_types(inventory: Inventory, options: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A value has its variable's type: text that looks like a number would fail in the middle of a roll."""
    specs = {name: spec for variables in options.values() for name, spec in variables.items()}
    # `name:` alone takes a default's place, and is then rendered as an empty text or taken for false.
    needed = {name for name, spec in specs.items() if spec.get("default") is not None or spec.get("required")}
    wrong: dict[str, list[str]] = defaultdict(list)
    for host in inventory.hosts():
        for name in sorted((specs.keys() | rules.STACK.keys()) & set(inventory.names(host))):
            if inventory.is_empty(host, name):
                problem = EMPTY.format(name=name) if name in needed | rules.STACK.keys() else ""
            else:
                problem = _type_problem(name, inventory.get(host, name), specs.get(name, {}).get("type", "str"))
            if problem:
                wrong[problem].append(host)
    for problem, hosts in wrong.items():
        yield f"{problem} (set for {', '.join(hosts)})"


def check_options(inventory: Inventory, options: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What a variable holds, at any depth: unknown names, wrong types, numbers out of range, malformed texts."""
    schemas, definitions = _schemas(options)
    wrong: dict[str, list[str]] = defaultdict(list)
    for host in inventory.hosts():
        for name in sorted(schemas.keys() & set(inventory.names(host))):
            value = inventory.get(host, name)
            kind = schemas[name].get("type")
            # A variable of another type is what check_types reports, and one that is not set is none.
            # Of a variable as a whole check_types says the same, but for texts.
            whole = kind in ("text", "string") or name in rules.STACK
            if value is None or not (whole or not kind or schema.has_type(value, kind)):
                continue
            for problem in schema.problems(name, value, schemas[name], definitions):
                if host not in wrong[problem]:
                    wrong[problem].append(host)
    for problem, hosts in wrong.items():
        yield f"{problem} (set for {', '.join(hosts)})"


def _schemas(options: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of each variable, with the definitions that they refer to. The proxy's own schema wins over its argument spec."""
    found: dict[str, Any] = dict(rules.STACK)
    for variables in options.values():
        for name, described in schema.of_spec(variables)["properties"].items():
            found[name] = rules.with_rules(name, described)
    proxy = json.loads((UTILS / "proxy_schema.json").read_text())
    return found | proxy["variables"], proxy["definitions"]


def _type_problem(name: str, value: Any, wanted: str) -> str:
    if value is None or wanted not in TYPES:
        return ""
    types, noun = TYPES[wanted]
    # To Python a bool is an int.
    if isinstance(value, types) and (wanted == "bool") == isinstance(value, bool):
        return ""
    if wanted in ("list", "dict"):
        return f"{name} is not {noun}"  # without the value, in which there may be a key
    problem = f"{name} is {schema.shown(name, value)}, but must be {noun}"
    if isinstance(value, str) and re.fullmatch(r"-?[0-9.]+|true|false", value.lower()):
        problem += (
            f"""; on the command line write -e '{{"{name}": {value.lower()}}}', since name=value is always text"""
        )
    return problem


def check_engines(inventory: Inventory, _: Any) -> Iterator[str]:
    """Engines are complete, and have names of their own."""
    for host in inventory.group("vllm"):
        value = inventory.get(host, "vllm_engines")
        if inventory.is_empty(host, "vllm_engines"):
            continue  # check_types says so
        if not isinstance(value, list) or not value:
            if not any(key.startswith("vllm_engines") for key in inventory.unreadable):
                yield f"host {host}: vllm_engines lists no engine; see group_vars/vllm.yml for an example"
            continue
        seen = set()
        for number, engine in enumerate(value):
            if not isinstance(engine, Mapping):
                yield f"host {host}: vllm_engines[{number}] is not a dictionary; see group_vars/vllm.yml for an example"
                continue
            where = f"host {host}: engine {engine.get('name', f'number {number + 1}')!r}"
            name = str(engine.get("name", ""))
            if name and not ENGINE_NAME.fullmatch(name):
                yield f"{where}: use lower-case letters, digits and '-' in its name, which becomes a systemd unit's"
            if name and name in seen:
                yield f"{where} stands twice in vllm_engines: give each engine a name of its own"
            seen.add(name)
            model = str(engine.get("model", ""))
            hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model)
            if hub and not re.fullmatch(r"[0-9a-f]{40}", str(engine.get("revision", ""))):
                yield f"{where}: model {model} comes from a hub, so pin it: set revision to the 40 digits of a commit"


def check_engine_args(inventory: Inventory, _: Any) -> Iterator[str]:
    """No option of `vllm serve` takes the place of what the role sets: an engine would listen everywhere, or serve another model."""
    role = yaml.safe_load((ROLES_DIRECTORY / "vllm" / "vars" / "main.yml").read_text())
    reserved, why = role["__vllm_reserved_args"], role["__vllm_reserved_why"]
    for host in inventory.group("vllm"):
        args = {"vllm_args": inventory.get(host, "vllm_args")}
        args |= {f"engine {engine.get('name')!r}: args": engine.get("args") for engine in inventory.engines(host)}
        for where, value in args.items():
            for name in value if isinstance(value, Mapping) else ():
                if str(name).replace("_", "-") in reserved:
                    yield f"host {host}: {where} must not have {name}: take it out; {why}"


def check_ports(inventory: Inventory, _: Any) -> Iterator[str]:
    """No two listeners of a host share a port, unless each has it at an address of its own."""
    for host in inventory.hosts():
        yield from _too_many_workers(inventory, host)
        users: dict[int, list[tuple[str, str]]] = defaultdict(list)
        for port, address, name in _listeners(inventory, host):
            users[port].append((address, name))
        for port, listeners in sorted(users.items()):
            names = [
                name
                for number, (address, name) in enumerate(listeners)
                if any(_overlap(address, other) for at, (other, _) in enumerate(listeners) if at != number)
            ]
            if names:
                yield (
                    f"host {host}: port {port} is used by {' and '.join(names)}; give each a port of its own "
                    "(vllm_engines[].port, proxy_port, proxy_admin_port, proxy_store_port)"
                )


def _listeners(inventory: Inventory, host: str) -> Iterator[tuple[int, str, str]]:
    """Port, address ("" for all of them) and name of whatever listens on a host."""
    private = _address(inventory.get(host, "stack_address"))
    if host in inventory.group("nginx"):
        yield from ((port, "", "nginx") for port in (80, 443))
    if host in inventory.group("proxy"):
        admin_address = _address(inventory.get(host, "proxy_admin_address"))
        for number in range(_workers(inventory, host)):
            for name, address, what in (
                ("proxy_port", private, "proxy worker"),
                ("proxy_admin_port", admin_address, "the admin API of proxy worker"),
            ):
                if isinstance(first := inventory.get(host, name), int):
                    yield first + number, address, f"{what} {number + 1}"
        if host == inventory.get(host, "proxy_store_host"):
            store_port = inventory.get(host, "proxy_store_port")
            if isinstance(store_port, int):
                yield store_port, private, "the store of limits"
    if host in inventory.group("vllm"):
        for engine in inventory.engines(host):
            if isinstance(engine.get("port"), int):
                yield engine["port"], private, f"engine {engine.get('name')}"


def _too_many_workers(inventory: Inventory, host: str) -> Iterator[str]:
    number = _workers(inventory, host) if host in inventory.group("proxy") else 0
    for name in ("proxy_port", "proxy_admin_port") if number else ():
        first = inventory.get(host, name)
        if isinstance(first, int) and first + number - 1 > PORT_MAX:
            yield (
                f"host {host}: {name} is {first}, and {number} workers from there are more than there are ports: "
                f"use at most {PORT_MAX - number + 1}"
            )


def _workers(inventory: Inventory, host: str) -> int:
    """How many a host may have. 0 means one per core, at most four: room for all four is kept."""
    workers = inventory.get(host, "proxy_workers")
    return (workers or 4) if isinstance(workers, int) else 0


def _address(value: Any) -> str:
    """An address in the one form in which it can be compared; "" for all addresses and for what is none."""
    try:
        address = ipaddress.ip_address(str(value))
    except ValueError:
        return ""
    return "" if address.is_unspecified else str(address)


def _overlap(one: str, other: str) -> bool:
    return one == other or not one or not other


def check_pools(inventory: Inventory, _: Any) -> Iterator[str]:
    """An engine's pool is one that the proxies know."""
    told: set[str] = set()  # all proxies normally know the same pools: each problem once
    for host in inventory.group("proxy"):
        routing = inventory.get(host, "proxy_routing")
        if not isinstance(routing, Mapping):
            continue  # could not be templated, or `check_types` says that it is no dictionary
        known = routing.get("pools") or {}
        for engine in (engine for each in inventory.group("vllm") for engine in inventory.engines(each)):
            pool = engine.get("pool")
            problem = f"engine {engine.get('name')!r} is in pool {pool!r}, which proxy_routing.pools does not have: say there which requests are its"
            if pool is not None and pool not in known and problem not in told:
                told.add(problem)
                yield problem


def check_keys(inventory: Inventory, _: Any) -> Iterator[str]:
    """Keys are long enough to be secrets, belong to somebody, and allow models that exist."""
    served = _served(inventory)
    told: set[str] = set()  # all proxies normally share the same keys: each problem once
    for host in inventory.group("proxy"):
        classes = inventory.get(host, "proxy_priorities")
        for problem in _key_problems(host, inventory.get(host, "proxy_keys"), served, classes):
            if problem not in told:
                told.add(problem)
                yield problem
        admin = str(inventory.get(host, "proxy_admin_key") or "")
        for problem in [
            *(f"proxy_admin_key {flaw}" for flaw in (_secret_flaws(admin) if admin else ())),
            *_admins_keys(inventory.get(host, "proxy_keys"), admin),
        ]:
            if problem not in told:
                told.add(problem)
                yield problem


def _admins_keys(keys: Any, admin: str) -> Iterator[str]:
    """A client whose key is the operators'."""
    digest = hashlib.sha256(admin.encode()).hexdigest()
    for number, key in enumerate(_items(keys)):
        if admin and isinstance(key, Mapping) and (str(key.get("key")) == admin or key.get("sha256") == digest):
            yield f"{_key_label(number, key)} is the same as proxy_admin_key, so its client could do what operators can: make another one"


def check_models(inventory: Inventory, _: Any) -> Iterator[str]:
    """Each name of a model has one meaning, and who stands in for a model is served."""
    served = _served(inventory)
    told: set[str] = set()
    for host in inventory.group("proxy"):
        models = inventory.get(host, "proxy_models")
        for problem in _model_problems([model for model in _items(models) if isinstance(model, Mapping)], served):
            if problem not in told:
                told.add(problem)
                yield problem


def _served(inventory: Inventory) -> set[str]:
    return {
        str(engine.get("served_model_name")) for host in inventory.group("vllm") for engine in inventory.engines(host)
    }


def _model_problems(models: list[Mapping[str, Any]], served: set[str]) -> Iterator[str]:
    owner: dict[str, str] = {}
    for model in models:
        own = str(model.get("name"))
        old = [entry.get("name") for entry in _items(model.get("deprecated")) if isinstance(entry, Mapping)]
        for name in map(str, [own, *_items(model.get("aliases")), *old]):
            if name in owner:
                yield f"proxy_models gives the name {name!r} to {owner[name]!r} and to {own!r}: leave one of them out"
            elif name != own and name in served:
                yield f"proxy_models: {name!r}, a name of {own!r}, is a model that engines serve: choose another name"
            owner[name] = own
        fallback = model.get("fallback")
        if own not in served:
            yield f"proxy_models: {own!r} is a model that no engine serves: {_choices(served, own)}"
        if fallback is not None and (fallback not in served or fallback == own):
            yield f"proxy_models: {own!r} cannot fall back on {fallback!r}: name another model that engines serve"


def _key_problems(host: str, keys: Any, served: set[str], classes: Any) -> Iterator[str]:
    if keys is None:
        return  # could not be templated: `check_readable` says why
    if not isinstance(keys, list) or not keys:
        yield f"host {host}: proxy_keys lists no key, so nobody could call the service: copy group_vars/vault.example.yml"
        return
    names = set()
    for number, key in enumerate(keys):
        name = key.get("name")
        where = _key_label(number, key)
        if name and name in names:
            yield f"{where} stands twice in proxy_keys: give each a name of its own"
        names.add(name)
        secret, digest = key.get("key"), key.get("sha256")
        if (secret is None) == (digest is None):
            yield f"{where}: give either `key` or `sha256`"
        elif secret is not None:
            swapped = schema.may_be_secret(str(name)) and len(str(secret)) < KEY_LENGTH_MIN
            hint = " (or are its name and its key swapped?)" if swapped else ""
            yield from (f"{where} {flaw}{hint}" for flaw in _secret_flaws(str(secret)))
        for part in ("models", "cidrs"):
            if key.get(part) == []:
                yield f"{where}: {part} is empty, which allows all of them: name some, or take the line out"
        for model in _items(key.get("models")):
            if model not in served:
                yield f"{where} allows model {_unserved(model, served)}"
        yield from (f"{where}: expires {flaw}" for flaw in _moment_flaws(key.get("expires")))
        for network in map(str, _items(key.get("cidrs"))):
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                # The error repeats what it is about.
                known = not schema.may_be_secret(network) or re.fullmatch(r"[0-9A-Fa-f]*[.:][0-9A-Fa-f.:/]*", network)
                shown, why = (repr(network), f" ({error})") if known else (schema.quoted(network), "")
                yield f"{where}: {shown} in cidrs is not a network{why}: write one such as 203.0.113.0/24"
        yield from _limit_problems(f"{where}: limits", key.get("limits"), served)
        priority = key.get("priority") or "default"
        if isinstance(classes, Mapping) and priority not in classes:
            yield f"{where} has priority {schema.quoted(str(priority))}, which proxy_priorities lacks: it has {', '.join(classes)}"


def _key_label(number: int, key: Mapping[str, Any]) -> str:
    """How messages call a key: by its name, unless that may be a key itself, written into the wrong place."""
    name = str(key.get("name") or "")
    if name and not schema.may_be_secret(name):
        return f"key {name!r}"
    return f"key proxy_keys[{number}]" + (f" ({schema.quoted(name)})" if name else "")


def _unserved(model: Any, served: set[str]) -> str:
    """What to say of a model in a key that no engine serves. It may be a key itself, unless it resembles a model."""
    text = str(model)
    shown = repr(text) if difflib.get_close_matches(text, served, n=1) else schema.quoted(text)
    return f"{shown}, which no engine serves: {_choices(served, text)}"


def _items(value: Any) -> list[Any]:
    """Of a list; none of anything else, which check_options reports: a text would be read letter by letter."""
    return list(value) if isinstance(value, (list, tuple)) else []


def _secret_flaws(secret: str) -> Iterator[str]:
    """What is wrong with a key that clients send; never the key itself."""
    guesses = list(_guesses(secret))
    yield from guesses
    if secret != secret.strip():
        yield "begins or ends with a blank or a line's end, which no client sends: remove it (in YAML, quote the key)"
    elif not re.fullmatch(r"[!-~]*", secret):
        yield "has blanks, control characters or letters beyond ASCII, which no header can carry: use `openssl rand -hex 32`"


def _guesses(secret: str) -> Iterator[str]:
    """Why a secret can be guessed; one reason is enough."""
    instead = "`openssl rand -hex 32`, kept in the vault"
    if len(secret) < KEY_LENGTH_MIN:
        yield f"has {len(secret)} characters and can be guessed: use at least {KEY_LENGTH_MIN}, from {instead}"
    elif re.search(r"change.?me", secret, re.IGNORECASE):
        yield f"is still that of an example: use one from {instead}"
    elif len(set(secret)) < KEY_VARIETY_MIN:
        noun = "1 different character" if len(set(secret)) == 1 else f"{len(set(secret))} different characters"
        yield f"consists of {noun} and can be guessed: use one from {instead}"


def _moment_flaws(expires: Any) -> Iterator[str]:
    if expires is None:
        return
    text = str(expires)
    if not text.strip():
        yield "is empty, so the key would never expire: write a moment such as 2027-01-31T00:00:00Z, or take the line out"
        return
    if not UTC_MOMENT.fullmatch(text):
        shown = schema.shown("proxy_keys[].expires", expires)
        yield f"is {shown}, not a moment in UTC: write it as 2027-01-31T00:00:00Z"
        return
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        yield f"is {text!r}, which does not exist ({error}): write it as 2027-01-31T00:00:00Z"
        return
    if moment <= datetime.now(UTC):
        yield f"is {text!r}, which has passed: choose a later moment, or take the key out"


def _limit_problems(where: str, limits: Any, served: set[str]) -> Iterator[str]:
    """Of a dictionary of limits with those of single models under `models`: models that nobody serves."""
    of_models = limits.get("models") if isinstance(limits, Mapping) else None
    for model in of_models if isinstance(of_models, Mapping) else ():
        if model not in served:
            yield f"{where} names model {_unserved(model, served)}"


def check_limits(inventory: Inventory, _: Any) -> Iterator[str]:
    """Limits are counted in one place, which exists and cannot be entered by a guess."""
    hosts = inventory.group("proxy")
    served = {
        str(engine.get("served_model_name")) for host in inventory.group("vllm") for engine in inventory.engines(host)
    }
    told: set[str] = set()
    for host in hosts:
        for problem in _store_problems(inventory, host, hosts, served):
            if problem not in told:
                told.add(problem)
                yield problem


def _store_problems(inventory: Inventory, host: str, hosts: list[str], served: set[str]) -> Iterator[str]:
    names = (
        "proxy_limits",
        "proxy_keys",
        "proxy_workers",
        "proxy_store_host",
        "proxy_store_url",
        "proxy_store_password",
    )
    general, keys, workers, store_host, url, password = (inventory.get(host, name) for name in names)
    general = general if isinstance(general, Mapping) else {}
    yield from _limit_problems("proxy_limits", general, served)
    limited = bool(general.get("default") or general.get("models")) or any(
        isinstance(key, Mapping) and key.get("limits") for key in (keys if isinstance(keys, list) else [])
    )
    # Of 0, one for each core, only the host itself knows how many they are: the role asks it.
    several = len(hosts) > 1 or (isinstance(workers, int) and workers > 1)
    if limited and several and not store_host and not url:
        yield (
            "limits (proxy_limits, proxy_keys[].limits) would be multiplied by the number of workers, each of which would "
            "count by itself: set proxy_store_host to a host of the group proxy, or proxy_store_url to a Redis or Valkey"
            + ("" if len(hosts) > 1 else ", or proxy_workers to 1")
        )
    if store_host and url:
        yield "proxy_store_host and proxy_store_url: give one of them, the host on which the role runs a store or the address of one"
    if store_host and store_host not in hosts:
        yield f"proxy_store_host is {store_host!r}, which is not in the group proxy: name one of {', '.join(hosts)}"
    if store_host:
        yield from (f"proxy_store_password {flaw}" for flaw in _guesses(str(password or "")))
    if url and not _is_store_url(str(url)):
        yield "proxy_store_url: write redis://host:port/database, or rediss:// for TLS; proxy_store_username and proxy_store_password have the credentials"


def _is_store_url(url: str) -> bool:
    try:
        port = urlsplit(url).port
    except ValueError:
        return False
    return port != 0 and re.fullmatch(r"rediss?://[^/@?#\s]+(/\d*)?", url) is not None


def check_domain(inventory: Inventory, _: Any) -> Iterator[str]:
    """The public name leads to the web tier."""
    hosts = inventory.group("nginx")
    expected = {
        _address(inventory.get(host, name))
        for host in hosts
        for name in ("stack_address", "ansible_host", "aws_public_ip_address")
    }
    domains: set[str] = set()
    for host in hosts:
        expected |= {_address(address) for address in inventory.get(host, "nginx_certbot_public_addresses") or []}
        value = inventory.get(host, "nginx_certbot_domains") or [inventory.get(host, "stack_domain")]
        domains |= {str(domain) for domain in value if domain}
    if hosts and not domains:
        yield "stack_domain is not set: name the service's public host name in group_vars/all.yml"
    for domain in sorted(domains) if hosts else []:
        try:
            found = {_address(entry[4][0]) for entry in socket.getaddrinfo(domain, 443, proto=socket.IPPROTO_TCP)}
        except (OSError, UnicodeError) as error:
            yield f"domain {domain} does not resolve ({getattr(error, 'strerror', error)}): point its DNS record at the web tier ({', '.join(hosts)})"
            continue
        if not found & (expected - {""}):
            yield (
                f"domain {domain} resolves to {', '.join(sorted(found))}, none of which is an address of the web tier ({', '.join(hosts)}): "
                "correct the DNS record, or name the load balancer's addresses in nginx_certbot_public_addresses"
            )


def check_readable(inventory: Inventory, _: Any) -> Iterator[str]:
    """Variables that could not be templated; the last check, because the others find them."""
    for name, error in sorted(inventory.unreadable.items()):
        hint = VAULT_HINT if re.search(r"'vault_\w+' is undefined", error) else ""
        yield f"{name} cannot be read: {error}{hint}"


def _choices(served: set[str], wanted: str) -> str:
    close = difflib.get_close_matches(wanted, served, n=1)
    return f"did you mean {close[0]!r}?" if close else f"the engines serve {', '.join(sorted(served)) or 'none'}"


FORM = [
    check_groups,
    check_strays,
    check_variable_names,
    check_places,
    check_types,
    check_options,
]
CHECKS = [
    check_engines,
    check_engine_args,
    check_ports,
    check_pools,
    check_keys,
    check_limits,
    check_models,
    contracts.check_proxy_sections,
    contracts.check_addresses,
    contracts.check_alike,
    contracts.check_tiers,
    contracts.check_gpus,
    files.check_files,
    files.check_vaults,
    check_domain,
    check_readable,
]
