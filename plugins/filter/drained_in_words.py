"""What preflight reports of hosts that are drained, or will end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

DOCUMENTATION = r"""
name: drained_in_words
short_description: Say which instances of the fleet are drained
description:
  - For playbooks/preflight.yml.
positional: _input
options:
  _input:
    description: The variables of each host, with C(__stack_drained), the registered list of the files that drain instances.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- ansible.builtin.debug:
    msg: "{{ groups.all | map('extract', hostvars) | ec2_inference.stack.drained_in_words }}"
"""

RETURN = r"""
_value:
  description: One sentence for each host that will end, and for each engine or proxy worker that is out of rotation.
  type: list
  elements: str
"""

NOTICE = "/draining.json"


def drained_in_words(hosts: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence for each host that will end, and for each drained instance with the hosts where it is."""
    named = {host["inventory_hostname"]: host for host in hosts}
    found: dict[str, list[str]] = {}
    for name, host in named.items():
        for line in (host.get("__stack_drained") or {}).get("stdout_lines", []):
            path, _, text = line.partition("\t")
            if not path:
                continue
            if path.endswith(NOTICE):
                found[f"{_with_id(name, host)} will end: {_reason(text)}"] = []
            else:
                instance = path.rpartition("/")[2]
                owner = instance.rpartition(":")[0]
                whose = f" of {_with_id(owner, named[owner])}" if owner in named else ""
                found.setdefault(f"{instance}{whose} is drained: {text or 'its marker is empty'}", []).append(name)
    return list(_sentences(found))


def _sentences(found: Mapping[str, list[str]]) -> Iterator[str]:
    for words, hosts in found.items():
        yield words if not hosts else f"{words} (on {', '.join(hosts)})"


def _with_id(name: str, host: Mapping[str, Any]) -> str:
    identity = host.get("aws_instance_id")
    return f"instance {identity} ({name})" if identity else name


def _reason(text: str) -> str:
    try:
        return str(json.loads(text)["reason"])
    except (ValueError, KeyError, TypeError):
        return "for a reason that cannot be read"


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {"drained_in_words": drained_in_words}
