"""One request's way through the tiers, from what each host's logs have of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

DOCUMENTATION = r"""
name: request_trace
short_description: Show one request's way through the tiers, in time order
description:
  - For playbooks/trace.yml.
positional: _input
options:
  _input:
    description: The registered result of playbooks/files/find_request.py on each host, by the host's name.
    type: dict
    required: true
  request_id:
    description: The request's id.
    type: str
    required: true
  hours:
    description: How far back the logs were searched.
    type: int
    required: true
"""

EXAMPLES = r"""
- ansible.builtin.debug:
    msg: "{{ (results | ec2_inference.stack.request_trace(request_id, 24)).lines }}"
"""

RETURN = r"""
_value:
  description: C(lines), for people; C(events), the same for programs; C(lost), why a host could not be searched, by its name.
  type: dict
"""

TIERS = ("nginx", "proxy", "vllm")


def request_trace(results: Mapping[str, Mapping[str, Any]], request_id: str, hours: int) -> dict[str, Any]:
    """The request's events of all hosts in time order, as lines and as data."""
    reports = {host: json.loads(result["stdout"]) for host, result in results.items() if result.get("rc") == 0}
    lost = {host: _reason(result) for host, result in sorted(results.items()) if host not in reports}
    events = [{"host": host, **event} for host, report in reports.items() for event in report["events"]]
    events.sort(key=_place)
    lines = _table([["time (UTC)", "host", "tier", "what"], *map(_row, events)]) if events else []
    more = sorted(host for host, report in reports.items() if report["more"])
    lines += [f"{host} has more of it: this id was used for many requests" for host in more]
    if not events:
        lines.append(f"No host has a line of request {request_id} in the last {hours} hours. Searched:")
        lines += [f"  {host}: {', '.join(report['looked'])}" for host, report in sorted(reports.items())]
        lines.append("If it is older, set trace_hours. The id is in the response's header x-request-id.")
    lines += [f"{host} could not be searched: {reason}" for host, reason in lost.items()]
    return {"lines": lines, "events": events, "lost": lost}


def _place(event: Mapping[str, Any]) -> tuple[float, bool, int]:
    """Where an event belongs. Within a millisecond a request goes down the tiers, and its answer comes back up."""
    ends, depth = bool(event.get("ends")), TIERS.index(event["tier"])
    return round(event["at_s"], 3), ends, -depth if ends else depth


def _reason(result: Mapping[str, Any]) -> str:
    words = str(result.get("stderr") or result.get("msg") or "see above").strip()
    return words.splitlines()[-1]


def _row(event: Mapping[str, Any]) -> list[str]:
    second, milliseconds = divmod(round(event["at_s"] * 1000), 1000)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(second))
    # A client's path may have characters that control a terminal.
    what = "".join(character if character.isprintable() else "?" for character in event["what"])
    return [f"{stamp}.{milliseconds:03d}", event["host"], event["tier"], what]


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """The filters by their names."""
        return {"request_trace": request_trace}
