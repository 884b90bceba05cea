"""Refuses options of ansible-playbook with which a run would silently do less than it should."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.constants import LOCALHOST
from ansible.inventory.manager import PATTERN_WITH_SUBSCRIPT, split_host_pattern

from .clusters import hosts_of
from .inventory import Inventory

COLLECT = "__stack_preflight_collect"
# Molecule skips these tags in all its runs. No task here has them.
MOLECULES_TAGS = {"notest", "molecule-notest", "molecule-idempotence-notest"}


def refusal_of(variables: Mapping[str, Any], tiers: list[str]) -> str:
    """Why a run with these options would silently do less than it should; "" if it would not.

    A roll under a tag would skip the included tasks that prove a host healthy and put it back. With a limit that leaves no
    host of the tier, a run would do nothing and still succeed.
    """
    hostvars = variables.get("hostvars", {})
    # playbooks/preflight.yml sets it as a play's variable, which hostvars do not contain.
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
    if limit and (unmatched := _unmatched(limit, variables["groups"])):
        return unmatched
    if limit and tiers:
        here = set(variables.get("ansible_play_hosts_all", []))
        wanted = [host for tier in tiers for host in variables["groups"].get(tier, [])]
        if wanted and not here & set(wanted):
            return (
                f"--limit {limit} leaves no host of the group {' or '.join(tiers)}, so nothing would be done. Write one or more of "
                f"{', '.join(sorted(set(wanted)))}, or leave --limit out."
            )
    return ""


def split_refusal(inventory: Inventory, variables: Mapping[str, Any]) -> str:
    """Why the engine tier cannot be rolled with this run's options; "" if it can. The ranks of an engine over several hosts roll together,
    in the turn of one of them.
    """
    limit, here = variables.get("ansible_limit"), set(variables.get("ansible_play_hosts_all", []))
    clusters = inventory.clusters()
    left_out = []
    for cluster in clusters:
        members = set(hosts_of(cluster)) & set(inventory.group("vllm"))
        if members & here and members - here:
            left_out.append(f"{', '.join(sorted(members - here))} of cluster {cluster.get('name')}")
    if limit and left_out:
        return (
            f"--limit {limit} leaves out {' and '.join(left_out)}, whose ranks are rolled together, so nothing was changed: "
            "add these hosts to the limit, or leave --limit out."
        )
    for name, single in (("stack_batch", {"1"}), ("stack_canary", {"0", "1"})):
        if clusters and str(variables.get(name) or 0) not in {"0"} | single:
            return (
                f"{name} is {variables[name]}, but the hosts of cluster {clusters[0].get('name')} are rolled together in the turn of one of them, "
                f"so nothing was changed: roll one host at a time, without {name}."
            )
    return ""


def _unmatched(limit: str, groups: Mapping[str, list[str]]) -> str:
    """A message about the part of a limit that matches no host and no group; "" if every part matches.

    Ansible only warns. A misspelt host would be skipped or, after a !, changed although it should be left alone.
    """
    names = {*groups, *LOCALHOST, *(host for hosts in groups.values() for host in hosts)}
    for pattern in _patterns(limit):
        name = pattern.lstrip("!&")
        if subscript := PATTERN_WITH_SUBSCRIPT.match(name):
            name = subscript[1]
        if not _matches(name, names):
            close = difflib.get_close_matches(name, names, n=1)
            hint = (
                f"did you mean {close[0]}?"
                if close
                else "correct it, or take it out (an instance that is stopped is in no inventory)"
            )
            return (
                f"--limit names {name}, which is no host and no group of the inventory, so nothing was changed: {hint}"
            )
    return ""


def _patterns(limit: str) -> Iterator[str]:
    """The patterns of a limit, including those in files that it names (@file)."""
    for pattern in split_host_pattern(limit):
        if pattern.startswith("@"):
            yield from filter(None, map(str.strip, Path(pattern[1:]).expanduser().read_text().splitlines()))
        elif pattern:
            yield pattern


def _matches(pattern: str, names: set[str]) -> bool:
    """Whether a pattern, which may have wildcards or, after a ~, be a regular expression, matches one of the names."""
    expression = re.compile(pattern[1:] if pattern.startswith("~") else fnmatch.translate(pattern))
    return any(expression.match(name) for name in names)
