"""Which hosts' engines serve somebody, as the proxies see it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

DOCUMENTATION = r"""
name: fleet_serving
short_description: Find the engine hosts that proxies send requests to
positional: _input
options:
  _input:
    description: The registered results of playbooks/files/host_report.py on the proxy and web hosts, as a list.
    type: list
    elements: dict
    required: true
  ranks:
    description: The ids of engines that spread over several hosts, by each of these hosts.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- ansible.builtin.debug:
    msg: "{{ results | ec2_inference.stack.fleet_serving }}"
"""

RETURN = r"""
_value:
  description: C(hosts), those with an engine that a proxy worker sees as C(serving), and C(silent), the hosts that gave no report.
  type: dict
"""


def fleet_serving(
    results: Iterable[Mapping[str, Any]], ranks: Mapping[str, list[str]] | None = None
) -> dict[str, list[str]]:
    """The hosts with an engine that serves, and those that gave no report."""
    answers = list(results)
    reports = [json.loads(answer["stdout"]) for answer in answers if answer.get("rc") == 0]
    views = [worker["ready"]["engines"] for report in reports for worker in report["workers"] if worker["ready"]]
    serving = {engine["id"] for engines in views for engine in engines if engine["state"] == "serving"}
    hosts = {one.rpartition(":")[0] for one in serving}
    hosts |= {host for host, its in (ranks or {}).items() if serving & set(its)}
    silent = {str(answer["item"]) for answer in answers if answer.get("rc") != 0}
    return {"hosts": sorted(hosts), "silent": sorted(silent)}


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {"fleet_serving": fleet_serving}
