"""Options of a run under which it would do less than it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLLECT = "__stack_preflight_collect"
# Molecule skips these tags in all its runs. No task here has them.
MOLECULES_TAGS = {"notest", "molecule-notest", "molecule-idempotence-notest"}


def refusal_of(variables: Mapping[str, Any], tiers: list[str]) -> str:
    """Why a run with these options would do less than it says; "" if it would not.

    A roll under a tag would skip the included tasks that prove a host healthy and put it back. With a limit that leaves no
    host of the tier, a run would do nothing and still succeed.
    """
    hostvars = variables.get("hostvars", {})
    # playbooks/preflight.yml sets it for a play, and such variables are not in hostvars.
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
