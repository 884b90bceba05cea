"""What a roll did to each host, as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

DOCUMENTATION = r"""
name: roll_table
short_description: Show what a roll did to each host
description:
  - For playbooks/roll.yml.
positional: _input
options:
  _input:
    description: The hosts of the roll.
    type: list
    elements: str
    required: true
  before:
    description: The registered result of playbooks/files/running.py on each host before the roll, by the host's name.
    type: dict
    required: true
  after:
    description: The same after it.
    type: dict
    required: true
  out:
    description: >-
      By the host, the instances that the roll took out of rotation, each with C(since) and C(until) in seconds; C(until) is missing if it is
      still out.
    type: dict
    required: true
"""

EXAMPLES = r"""
- ansible.builtin.debug:
    msg: "{{ ['engine1'] | ec2_inference.stack.roll_table(before, after, {}) | join('\n') }}"
"""

RETURN = r"""
_value:
  description: The table's lines.
  type: list
  elements: str
"""

HEAD = ["host", "changed", "out of service", "runs"]
Results = Mapping[str, Mapping[str, Any]]
Outages = Mapping[str, Mapping[str, Mapping[str, float]]]


def roll_table(hosts: list[str], before: Results, after: Results, out: Outages) -> list[str]:
    """One line per host under a line of titles."""
    rows = [_row(host, _told(before.get(host)), _told(after.get(host)), out.get(host) or {}) for host in sorted(hosts)]
    lines = [HEAD, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _told(result: Mapping[str, Any] | None) -> dict[str, str] | None:
    """What a host said it runs; None if it said nothing."""
    if not result or result.get("rc") != 0:
        return None
    told: dict[str, str] = json.loads(result["stdout"])
    return told


def _row(
    host: str, was: dict[str, str] | None, runs: dict[str, str] | None, out: Mapping[str, Mapping[str, float]]
) -> list[str]:
    outages = ", ".join(_outages(out)) or "-"
    if runs is None:
        return [host, "unknown", outages, "no answer"]
    release, earlier = runs["release"] or "nothing", (was or {}).get("release") or "nothing"
    changed = "unknown" if was is None else "yes" if out or was != runs else "no"
    return [host, changed, outages, release if earlier == release or was is None else f"{earlier} -> {release}"]


def _outages(out: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """How long each instance was out, such as `tiny 41 s`; the host's own name is in the first column."""
    for instance, times in out.items():
        name = instance.rpartition(":")[2]
        yield f"{name} {times['until'] - times['since']:.0f} s" if "until" in times else f"{name} still is"


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        return {"roll_table": roll_table}
