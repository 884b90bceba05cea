"""Whether the hosts that a roll has changed do worse than those that it has not, from what the proxies have counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

DOCUMENTATION = r"""
name: canary_verdict
short_description: Compare the changed hosts of a tier with the others
description:
  - For playbooks/roll.yml.
positional: _input
options:
  _input:
    description: The registered result of playbooks/files/proxy_metrics.py on each proxy host at the end of the soak, by the host's name.
    type: dict
    required: true
  before:
    description: The same at its beginning.
    type: dict
    required: true
  changed:
    description: The hosts that were changed.
    type: list
    elements: str
    required: true
  group:
    description: Their tier, C(vllm) or C(proxy).
    type: str
    required: true
  limits:
    description: >-
      C(min_requests), below which there is no verdict; C(error_points), how many percentage points more errors, and C(ratio), how many times the
      others' 95th percentiles the changed hosts may have.
    type: dict
    required: true
"""

EXAMPLES = r"""
- ansible.builtin.debug:
    msg: "{{ (after | ec2_inference.stack.canary_verdict(before, ['engine1'], 'vllm', limits)).lines }}"
"""

RETURN = r"""
_value:
  description: C(bad), one sentence for each limit that is exceeded; C(lines), the numbers; C(enough), whether there were requests enough to judge.
  type: dict
"""

Counts = Mapping[str, Any]
Results = Mapping[str, Mapping[str, Any]]


def canary_verdict(
    after: Results, before: Results, changed: list[str], group: str, limits: Mapping[str, float]
) -> dict[str, Any]:
    """Compare what was counted between two moments."""
    ours, theirs = _empty(), _empty()
    began = {host: _told(result) for host, result in before.items()}
    for host, engines in ((host, _told(result)) for host, result in after.items()):
        for engine, counts in engines.items():
            place = host if group == "proxy" else engine.rpartition(":")[0]
            # Requests that reached no engine tell nothing of one.
            if place:
                _add(ours if place in changed else theirs, _since(began.get(host, {}).get(engine, {}), counts))
    enough = min(ours["requests"], theirs["requests"]) >= limits["min_requests"]
    rows = [("changed", ours), ("others", theirs)]
    return {
        "enough": enough,
        "bad": list(_worse(ours, theirs, limits)) if enough else [],
        "lines": [f"{name}: {_numbers(counts)}" for name, counts in rows],
    }


def _told(result: Mapping[str, Any]) -> dict[str, Counts]:
    """What a host told; nothing if it gave no answer."""
    if result.get("rc") != 0:
        return {}
    told: dict[str, Counts] = json.loads(result["stdout"])
    return told


def _empty() -> dict[str, Any]:
    return {"requests": 0, "failed": 0, "first_token": {}, "inter_token": {}}


def _since(before: Counts, after: Counts) -> dict[str, Any]:
    """What was counted between two moments. A worker that was restarted meanwhile counts from zero."""
    restarted = after["requests"] < before.get("requests", 0)
    earlier = _empty() if restarted else {**_empty(), **before}
    return {
        **{name: after[name] - earlier[name] for name in ("requests", "failed")},
        **{
            name: {edge: number - earlier[name].get(edge, 0) for edge, number in after[name].items()}
            for name in ("first_token", "inter_token")
        },
    }


def _add(to: dict[str, Any], counts: Counts) -> None:
    for name in ("requests", "failed"):
        to[name] += counts[name]
    for name in ("first_token", "inter_token"):
        for edge, number in counts[name].items():
            to[name][edge] = to[name].get(edge, 0) + number


def _p95_s(buckets: Mapping[str, float]) -> float | None:
    """The 95th percentile of cumulative buckets, as Prometheus' histogram_quantile estimates it; None without streams."""
    edges = sorted((float(edge), number) for edge, number in buckets.items())
    if not edges or edges[-1][1] <= 0:
        return None
    rank, low, below = 0.95 * edges[-1][1], 0.0, 0.0
    for edge, number in edges:
        if number >= rank:
            return low if edge == float("inf") else low + (edge - low) * (rank - below) / (number - below)
        low, below = edge, number
    return low


def _error_percent(counts: Counts) -> float:
    return 100.0 * counts["failed"] / counts["requests"] if counts["requests"] else 0.0


def _worse(ours: Counts, theirs: Counts, limits: Mapping[str, float]) -> Iterator[str]:
    errors, normal = _error_percent(ours), _error_percent(theirs)
    if errors > normal + limits["error_points"]:
        yield f"{errors:.1f} % of their requests failed, and {normal:.1f} % of the others' (limit: {limits['error_points']:g} points more)"
    for name, words in (("first_token", "first token"), ("inter_token", "inter-token time")):
        slow, usual = _p95_s(ours[name]), _p95_s(theirs[name])
        if slow is not None and usual is not None and slow > usual * limits["ratio"]:
            yield f"the 95th percentile of their {words} is {slow:.3f} s, and {usual:.3f} s of the others' (limit: {limits['ratio']:g} times)"


def _numbers(counts: Counts) -> str:
    def seconds(name: str) -> str:
        value = _p95_s(counts[name])
        return "-" if value is None else f"{value:.3f} s"

    return (
        f"{counts['requests']:.0f} requests, {_error_percent(counts):.1f} % failed, p95 of the first token {seconds('first_token')}, "
        f"of the inter-token time {seconds('inter_token')}"
    )


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"canary_verdict": canary_verdict}
